//! Completion queue entries (4.2).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Status;

/// The phase tag in the last half word (4.2.4): it flips each time the controller passes the end of the queue.
pub const PHASE: u16 = 1;

/// A completion queue entry (4.2, figure 90).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Completion {
    /// DW0: the command's result.
    pub result: U32,
    pub dw1: U32,
    /// SQHD: how far the controller has read the submission queue.
    pub sq_head: U16,
    /// SQID.
    pub sq_id: U16,
    /// CID.
    pub cid: U16,
    /// Phase tag in bit 0, status field in 15:1.
    pub status_phase: U16,
}
const _: () = assert!(size_of::<Completion>() == 1 << super::COMPLETION_SHIFT);

impl Completion {
    pub fn new(cid: u16, sq_id: u16, sq_head: u16, status: Status, result: u32) -> Completion {
        Completion {
            result: result.into(),
            dw1: 0.into(),
            sq_head: sq_head.into(),
            sq_id: sq_id.into(),
            cid: cid.into(),
            status_phase: (status.0 << 1).into(),
        }
    }

    pub fn phase(&self) -> bool {
        self.status_phase.get() & PHASE != 0
    }

    pub fn with_phase(mut self, phase: bool) -> Completion {
        self.status_phase = (self.status_phase.get() & !PHASE | u16::from(phase)).into();
        self
    }

    pub fn status(&self) -> Status {
        Status(self.status_phase.get() >> 1)
    }

    pub fn to_words(self) -> [u64; 2] {
        zerocopy::transmute!(self)
    }

    pub fn from_words(words: [u64; 2]) -> Completion {
        zerocopy::transmute!(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_does_not_touch_the_status() {
        let done = Completion::new(5, 1, 9, Status::UNRECOVERED_READ, 0);
        for phase in [false, true] {
            let done = done.with_phase(phase);
            assert_eq!((done.phase(), done.status()), (phase, Status::UNRECOVERED_READ));
            assert_eq!(Completion::from_words(done.to_words()), done);
        }
    }
}
