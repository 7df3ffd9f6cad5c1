//! What happened, as a hash of everything and the last steps in words.

use std::collections::VecDeque;

/// Steps kept in words.
const KEPT: usize = 4096;

#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub at: u64,
    /// Node, and reactor or connection.
    pub place: (u16, u64),
    pub what: &'static str,
}

#[derive(Default)]
pub(super) struct Trace {
    hash: u64,
    steps: u64,
    last: VecDeque<Step>,
}

impl Trace {
    pub fn add(&mut self, step: Step) {
        self.fold(step.at);
        self.fold(u64::from(step.place.0));
        self.fold(step.place.1);
        self.fold(u64::from(vellum_base::crc32c(step.what.as_bytes())));
        self.steps += 1;
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(step);
    }

    fn fold(&mut self, x: u64) {
        self.hash = (self.hash.rotate_left(5) ^ x).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.last.iter().map(|step| {
            let (us, ns) = (step.at / 1000, step.at % 1000);
            format!("{us:>12}.{ns:03}us  node {} / {:<4} {}", step.place.0, step.place.1, step.what)
        })
    }
}
