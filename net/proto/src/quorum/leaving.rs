//! The barrier of members that leave: while anyone remains mounted, who leaves in order leaves a majority behind [U1].
//!
//! A member that would leave asks the leader, again and again. It is let go when a majority remains without it, or when
//! nobody is mounted: then all may leave together, the leader too; heartbeats say so, and its resignation. Who was let go
//! does not count any more; a new run of its slot does. The leader asks itself.
//!
//! How long a member that is not let go stays is its driver's to say: [`Quorum::leave`] asks nobody.

use vellum_base::Slot;
use vellum_base::mutant::{self, Mutant};
use vellum_wire::{QuorumKind, QuorumMessage};

use super::leadership::Phase;
use super::{Quorum, Role, StopReason};
use crate::time::Time;

impl Quorum {
    /// Whether the engine of our leadership has clients; before anybody says, it has. What was so when it began to stop stays.
    /// Followers know it from heartbeats.
    pub fn set_mounted(&mut self, mounted: bool) {
        if let Role::Leader(leadership) = &self.role
            && !matches!(leadership.phase, Phase::Stopping { .. })
        {
            self.mounted = mounted;
        }
    }

    /// Leaves as [`Self::leave`] does, but only when it is let go. Each call asks once; a lost question is asked by the next.
    pub fn ask_to_leave(&mut self, now: Time) {
        self.asks_to_leave = true;
        let heard = self.config.timers.heartbeat_timeout;
        if let (Role::Follower, Some((leader, at))) = (&self.role, self.leader)
            && now - at < heard
        {
            self.send(now, leader, QuorumKind::Leave, self.term, self.config.rid.0, false);
        }
        self.settle(now);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving || matches!(self.role, Role::Over { .. })
    }

    /// Members that are here and were not let go, without that one.
    fn present_without(&self, now: Time, without: Slot) -> usize {
        let stopping = matches!(&self.role, Role::Leader(l) if matches!(l.phase, Phase::Stopping { .. }));
        let own = usize::from(without != self.config.slot && !stopping);
        let here = |slot: &Slot| {
            let peer = self.peers[slot.index()].as_ref();
            // It has answered in this term, and not long ago.
            let recent = |at: Time| now - at < self.config.timers.heartbeat_timeout;
            peer.is_some_and(|p| !p.let_go && p.answered_round > 0 && recent(p.answered_at))
        };
        own + self.config.peers().filter(|slot| *slot != without && here(slot)).count()
    }

    fn may_let_go(&self, now: Time, slot: Slot) -> bool {
        let let_all_go = mutant::active(Mutant::LetAllGo);
        let_all_go || !self.mounted || self.present_without(now, slot) >= self.majority
    }

    pub(super) fn leave_asked(&mut self, now: Time, from: Slot, message: &QuorumMessage) {
        let Role::Leader(leadership) = &self.role else { return };
        if message.term != leadership.term || !matches!(leadership.phase, Phase::Leading | Phase::Stopping { .. }) {
            return;
        }
        let may = self.may_let_go(now, from);
        let Some(peer) = &mut self.peers[from.index()] else { return };
        peer.let_go |= may;
        let granted = peer.let_go;
        self.send(now, from, QuorumKind::LeaveAnswer, message.term, message.round, granted);
    }

    pub(super) fn leave_answer(&mut self, from: Slot, message: &QuorumMessage) {
        let of_leader = self.leader.is_some_and(|(leader, _)| leader == from) && message.term == self.term;
        let to_us = message.round == self.config.rid.0;
        if self.asks_to_leave && message.granted && of_leader && to_us && matches!(self.role, Role::Follower) {
            self.leaving = true;
        }
    }

    pub(super) fn settle_leaving(&mut self, now: Time) {
        if !self.asks_to_leave || self.leaving {
            return;
        }
        match &self.role {
            // It takes no part yet.
            Role::Starting { .. } | Role::Watching { .. } => self.leaving = true,
            // The leader has left, and said before that nobody needs it.
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. }
                if self.leader.is_none() && !self.mounted =>
            {
                self.leaving = true;
            }
            Role::Leader(leadership)
                if leadership.phase == Phase::Leading && self.may_let_go(now, self.config.slot) =>
            {
                self.leaving = true;
                self.give_up(now, StopReason::Resigned);
            }
            _ => {}
        }
    }
}
