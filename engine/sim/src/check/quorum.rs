//! Q: who leads, and who writes to the shared device.

use vellum_nvme::fault::Fact as DeviceFact;

use super::Out;

#[derive(Default)]
pub struct QuorumChecks {
    writes: u64,
}

impl QuorumChecks {
    pub fn device(&mut self, fact: &DeviceFact, out: &mut Out) {
        match fact {
            DeviceFact::Writes { .. } => self.writes += 1,
            DeviceFact::Fenced { process } => out.story.say(format!("process {} is fenced from the device", process.0)),
        }
    }
}
