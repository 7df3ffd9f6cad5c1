//! Slots whose earlier processes write nothing any more: what the cluster knows of workers that were lost.
//!
//! Evidence: the slot was fenced by this leadership; its block on the device names a newer run (which got the slot's lock, or
//! watched the block, before it wrote); an operator has taken it out, or moved it, and its member is fenced or known to be
//! dead. And the own slot: a member stops working, with its last write, before it leads. Nothing is concluded from silence.

use std::sync::{Arc, Mutex, PoisonError};

use vellum_base::{Slot, Term};
use vellum_rt::{Instant, now};

use crate::crew::WorkerProbe;

/// When, and by which leadership, it was found out.
type Found = Option<(Instant, Term)>;

/// Shared by the agent, which writes it, and the engine's reactors.
#[derive(Debug, Default)]
pub(super) struct GoneSlots(Mutex<[Found; Slot::COUNT]>);

impl GoneSlots {
    /// Whoever had the slot until now writes nothing any more, says the leadership of that term.
    pub fn note(&self, slot: Slot, term: Term) {
        self.note_at(slot, term, now());
    }

    fn note_at(&self, slot: Slot, term: Term, at: Instant) {
        if let Some(place) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(slot.index()) {
            *place = Some((at, term));
        }
    }

    fn found(&self, slot: u8) -> Found {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(usize::from(slot)).copied().flatten()
    }
}

/// What the engine of one leadership asks.
#[derive(Debug)]
pub(super) struct SlotProbe {
    pub own: Slot,
    pub term: Term,
    pub gone: Arc<GoneSlots>,
}

impl WorkerProbe for SlotProbe {
    fn is_gone(&self, slot: u8, lost: Option<Instant>) -> bool {
        if slot == self.own.0 {
            return true;
        }
        match (self.gone.found(slot), lost) {
            (Some((at, _)), Some(lost)) => at > lost,
            // What an earlier leadership of ours found out may be older than the worker.
            (Some((_, term)), None) => term == self.term,
            (None, _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_lost_before_is_gone() {
        let gone = Arc::new(GoneSlots::default());
        let probe = SlotProbe { own: Slot(0), term: Term(32), gone: gone.clone() };
        assert!(probe.is_gone(0, None) && probe.is_gone(0, Some(Instant(5))), "the own slot");
        assert!(!probe.is_gone(2, None) && !probe.is_gone(2, Some(Instant(5))), "nothing is known");
        gone.note_at(Slot(2), Term(16), Instant(10));
        assert!(probe.is_gone(2, Some(Instant(9))));
        assert!(!probe.is_gone(2, Some(Instant(10))), "it was lost afterwards: it may be another run");
        assert!(!probe.is_gone(2, None), "of an earlier leadership");
        gone.note_at(Slot(2), Term(32), Instant(20));
        assert!(probe.is_gone(2, None) && !probe.is_gone(1, None));
    }
}
