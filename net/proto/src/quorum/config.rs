//! What a member is told when it starts.

use thiserror::Error;
use vellum_base::{Rid, Slot, Term};
use vellum_format::ProcessIdentity;
use vellum_format::quorum::SlotError;

use super::timers::QuorumTimers;

#[derive(Clone, Debug)]
pub struct QuorumConfig {
    pub slot: Slot,
    /// Slots with an address in the superblock, bit per slot.
    pub configured: u16,
    /// Identity of this run: random, never used before.
    pub rid: Rid,
    pub timers: QuorumTimers,
    /// Spreads the timeouts of the members.
    pub seed: u64,
    /// Every election gets a greater term: what the engine has already used without a quorum.
    pub floor: Term,
    /// Milliseconds since 1970 at the `now` of [`super::Quorum::new`].
    pub wall_ms: u64,
    pub process: ProcessIdentity,
    /// The run that the slot's block names last may be alive, on another host: watch it for a while before we write.
    /// A driver that holds the slot's lock knows better and says false.
    pub watch: bool,
}

impl QuorumConfig {
    /// A member of `configured` slots with the default timers.
    pub fn new(slot: Slot, configured: u16, rid: Rid, seed: u64) -> QuorumConfig {
        QuorumConfig {
            slot,
            configured,
            rid,
            timers: QuorumTimers::DEFAULT,
            seed,
            floor: Term::NONE,
            wall_ms: 0,
            process: ProcessIdentity::default(),
            watch: false,
        }
    }

    pub fn is_configured(&self, slot: Slot) -> bool {
        slot.index() < Slot::COUNT && self.configured >> slot.0 & 1 == 1
    }

    /// The others.
    pub fn peers(&self) -> impl Iterator<Item = Slot> + '_ {
        Slot::all().filter(|slot| *slot != self.slot && self.is_configured(*slot))
    }

    /// Votes (and answers to a heartbeat round) that decide, our own included. With fewer than three slots our own is
    /// enough: unique terms and fencing protect, not numbers.
    pub fn majority(&self) -> usize {
        match Slot::all().filter(|slot| self.is_configured(*slot)).count() {
            0..3 => 1,
            slots => slots / 2 + 1,
        }
    }
}

/// Why a member cannot start.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum QuorumError {
    #[error("slot {0} has no address in the superblock: give one of the configured slots, or change the quorum")]
    UnknownSlot(Slot),
    /// Our own vote is in there: without it we might vote twice (Q9).
    #[error("the block of our own slot cannot be believed, and our vote is in it: {0}")]
    OwnBlock(SlotError),
    #[error("rid 0 is no identity")]
    NoIdentity,
}

impl From<SlotError> for QuorumError {
    fn from(error: SlotError) -> QuorumError {
        QuorumError::OwnBlock(error)
    }
}
