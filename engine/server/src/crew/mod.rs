//! The leader's side of workers: processes that have the device and run compactions for it.
//!
//! ```text
//!  store of reactor R: a job -> Crew of R: next worker in rotation -> home of its rid: Seat -> session -> worker
//!                                                                       | answer, in time: an outcome or an error
//!                                                                       | too late, lost, forged: withheld until quiet
//! ```
//! What a worker may still be writing is never anybody else's space. While the leader lives, it knows the blocks: a job
//! that is not answered ends as *lost* for the store, which does it anew with other blocks and withholds these until the
//! worker is **quiet**: the job was answered after all, or the worker has said `Work` anew (under another rid, or in another
//! term: it does so only when nothing of it runs), or has said farewell, or is gone: its process does not exist any more,
//! or its slot is fenced ([`WorkerProbe`]).
//!
//! And when the leader dies? The blocks that it had set aside are in no manifest, so to the next leader they look free.
//! - They lie in chunks that the manifest gives to segments: a chunk is given (durably) before a block of it is set aside,
//!   and is not taken back while one is.
//! - Each worker has a durable client record, marked as a worker's, from before its first `Work` is answered until it was
//!   quiet for good (F3). So the next leader knows every worker that may still be writing.
//! - Therefore it opens the store with everything unreferenced in segments' chunks withheld (`OpenOptions::withhold`), and
//!   releases that when the last worker of the terms before is quiet ([`old`]). Until then segments go to chunks that were
//!   free: nothing waits, unless the device is full.
//!
//! With that a crash leaks nothing (what no manifest names is free in the end) and reuses nothing too early.
//!
//! Whom to believe: a worker has a node's certificate, or is the engine's own user or root on a unix socket (`Access::node`;
//! without keys, on loopback, anybody). An outcome counts only when it is found on the medium (`vellum_store::lsm::Plan`): who cannot write to
//! the device cannot forge one. A slot is believed as said: over a network that is not authenticated somebody could claim
//! another's, and with it that it is quiet.

mod old;
mod placing;
mod seat;

use std::cell::{Cell, RefCell};
use std::fmt::Debug;

use vellum_base::{ReactorId, Rid};
use vellum_rt::Instant;
use vellum_store::lsm::MAX_JOB_BYTES;

pub(crate) use old::OldWorkers;
pub(crate) use placing::CrewHelpers;
pub(crate) use seat::{JobEnd, Seat, answer_later};

/// Jobs that one worker has in hand at a time, whatever it offers.
const MOST_JOBS: u32 = 4;
/// Jobs that may be lost and not quiet at a time, of all workers; beyond it nothing is handed over.
const MOST_LOST: usize = 64;

const _: () = assert!(MAX_JOB_BYTES <= vellum_wire::MAX_JOB_BYTES && MAX_JOB_BYTES < vellum_wire::MAX_CONTROL);

/// Whether a member's process can still write to the device: what the cluster's fencing knows.
pub trait WorkerProbe: Send + Sync + Debug {
    /// True only when it is certain that a process that had this slot, and was lost then, writes nothing any more. `None`: it
    /// was lost with a term before.
    fn is_gone(&self, slot: u8, lost: Option<Instant>) -> bool;
}

/// A worker as every reactor knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hand {
    pub rid: Rid,
    pub home: ReactorId,
    pub jobs: u32,
}

/// The workers that take jobs, in the order of their coming. One on each reactor.
#[derive(Default)]
pub(crate) struct Crew {
    hands: RefCell<Vec<Hand>>,
    /// Whose turn is next.
    turn: Cell<usize>,
    /// Jobs of this reactor that are lost and not quiet.
    lost: Cell<usize>,
}

impl Crew {
    pub fn up(&self, hand: Hand) {
        let mut hands = self.hands.borrow_mut();
        hands.retain(|known| known.rid != hand.rid);
        hands.push(hand);
    }

    pub fn down(&self, rid: Rid) {
        self.hands.borrow_mut().retain(|hand| hand.rid != rid);
    }

    pub fn len(&self) -> usize {
        self.hands.borrow().len()
    }

    fn slots(&self) -> usize {
        if self.lost.get() >= MOST_LOST {
            return 0;
        }
        self.hands.borrow().iter().map(|hand| hand.jobs as usize).sum()
    }

    /// Everybody once, beginning with whose turn it is.
    fn in_turn(&self) -> Vec<Hand> {
        let hands = self.hands.borrow();
        if hands.is_empty() {
            return Vec::new();
        }
        let first = self.turn.get() % hands.len();
        self.turn.set(first + 1);
        hands.iter().cycle().skip(first).take(hands.len()).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_take_turns() {
        let crew = Crew::default();
        assert!(crew.in_turn().is_empty() && crew.slots() == 0);
        let hand = |n| Hand { rid: Rid(n), home: ReactorId(0), jobs: 2 };
        (1..=3).for_each(|n| crew.up(hand(n)));
        crew.up(hand(2)); // said twice
        assert_eq!((crew.len(), crew.slots()), (3, 6));
        let firsts: Vec<u64> = (0..6).map(|_| crew.in_turn()[0].rid.0).collect();
        assert_eq!(firsts, [1, 3, 2, 1, 3, 2]);
        crew.down(Rid(3));
        assert!(crew.in_turn().iter().all(|hand| hand.rid != Rid(3)));
        crew.lost.set(MOST_LOST);
        assert_eq!(crew.slots(), 0, "who loses everything gets nothing more");
    }
}
