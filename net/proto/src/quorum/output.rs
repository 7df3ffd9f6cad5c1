//! What the machine asks of its driver.

use std::fmt;

use vellum_base::{Rid, Slot, Term};
use vellum_format::{ProcessIdentity, SlotBlock};
use vellum_wire::QuorumMessage;

#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "a queue of a few")]
pub enum QuorumOutput {
    /// Send to that slot's address; losing it is allowed.
    Send { to: Slot, message: QuorumMessage },
    /// Write our own block, durably, then say [`super::Quorum::handle_written`] with `seq`. One is in flight at a time.
    Write { seq: u64, block: SlotBlock },
    /// Read all blocks and answer with [`super::Quorum::handle_blocks`]. One is in flight at a time.
    ReadBlocks,
    /// Make sure that none of these runs can write any more, then say [`super::Quorum::handle_fenced`] with `term`.
    Fence { term: Term, targets: Vec<FenceTarget> },
    /// We lead: all before us are stopped or fenced and FENCE of this term is durable. Start the engine with it.
    Lead { term: Term },
    /// The engine of this term stops: device writes before anything else. [`super::Quorum::handle_stopped`] answers.
    StopLeading { term: Term, why: StopReason },
    /// A majority answered a heartbeat round begun at or after [`super::Quorum::begin_round`] gave this number, or a
    /// smaller one.
    RoundConfirmed { round: u64 },
    /// END is durable (after [`super::Quorum::leave`]): nothing will come any more.
    Stopped,
    /// We must not be a member: another process runs in our slot. Nothing will come any more but a StopLeading that
    /// stands before this.
    Failed { why: String },
}

/// A leader of before, or what might be one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FenceTarget {
    pub slot: Slot,
    /// `None` where the block cannot be read: whoever runs in that slot.
    pub rid: Option<Rid>,
    pub term: Option<Term>,
    pub process: Option<ProcessIdentity>,
    pub reason: FenceReason,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FenceReason {
    /// It was elected and has not written STOP.
    EarlierLeader,
    /// Its block cannot be read, so it counts as elected.
    Unreadable,
    /// An earlier run of our own slot was elected and has not written STOP.
    EarlierRun,
    /// An operator takes it out of the quorum, or gives its slot another address, and it is not heard.
    Removed,
}

impl fmt::Display for FenceReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FenceReason::EarlierLeader => "earlier leader that has not stopped",
            FenceReason::Unreadable => "its quorum block cannot be read",
            FenceReason::Removed => "taken out of the quorum, and silent",
            FenceReason::EarlierRun => "earlier run of our own slot that has not stopped",
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// Somebody has a newer term.
    NewerTerm(Term),
    /// No majority answered for a heartbeat timeout.
    LostMajority,
    /// Our device writes stall while the others' succeed (Q9).
    SlowDevice,
    /// [`super::Quorum::resign`] or [`super::Quorum::leave`].
    Resigned,
    /// Another process runs in our slot.
    SlotTaken,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopReason::NewerTerm(term) => write!(f, "term {term} of slot {} has begun", term.slot()),
            StopReason::LostMajority => f.write_str("no majority answers"),
            StopReason::SlowDevice => f.write_str("our device writes stall while the others' succeed"),
            StopReason::Resigned => f.write_str("it resigned"),
            StopReason::SlotTaken => f.write_str("another process runs in our slot"),
        }
    }
}
