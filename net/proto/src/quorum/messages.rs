//! What a datagram does.

use vellum_base::mutant::{self, Mutant};
use vellum_base::{Slot, Term, probe};
use vellum_format::quorum::EventKind;
use vellum_wire::{QuorumKind, QuorumMessage};

use super::leadership::Phase;
use super::{Quorum, Role};
use crate::fact::QuorumFact;
use crate::time::Time;

impl Quorum {
    pub(super) fn message(&mut self, now: Time, from: Slot, message: QuorumMessage) {
        if from == self.config.slot && message.rid != self.config.rid && !matches!(self.role, Role::Over { .. }) {
            return self.slot_taken(format!("slot {from} is used by another process too, rid {}", message.rid));
        }
        let known = self.peers.get(from.index()).is_some_and(Option::is_some);
        if !known || message.term >= Term::LIMIT {
            self.counters.dropped += 1;
            return;
        }
        if matches!(self.role, Role::Watching { .. } | Role::Starting { .. } | Role::Over { .. }) {
            return;
        }
        probe::tell(|| QuorumFact::Received { rid: self.config.rid, from, message });
        self.note_peer(now, from, &message);
        match message.kind {
            QuorumKind::PreVote => self.pre_vote(now, from, &message),
            QuorumKind::PreVoteAnswer => self.pre_vote_answer(now, from, &message),
            QuorumKind::RequestVote => self.request_vote(now, from, &message),
            QuorumKind::Vote => self.vote_answer(now, from, &message),
            QuorumKind::Heartbeat => self.heartbeat(now, from, &message),
            QuorumKind::HeartbeatAnswer => self.heartbeat_answer(now, from, &message),
            QuorumKind::Resignation => self.resignation(now, from, &message),
            QuorumKind::Leave => self.leave_asked(now, from, &message),
            QuorumKind::LeaveAnswer => self.leave_answer(from, &message),
        }
    }

    fn note_peer(&mut self, now: Time, from: Slot, message: &QuorumMessage) {
        let Some(peer) = &mut self.peers[from.index()] else { return };
        peer.heard = Some(now);
        if peer.rid != Some(message.rid) {
            (peer.rid, peer.term, peer.let_go) = (Some(message.rid), Term::NONE, false);
        }
        // The term of a PRE_VOTE is a proposal and says nothing about what its sender has left behind.
        if message.kind != QuorumKind::PreVote {
            peer.term = peer.term.max(message.term);
        }
        let ago = std::time::Duration::from_micros(message.written_ago_us.into());
        if message.written_ago_us != u32::MAX {
            peer.written_at = Some(Time(now.0.saturating_sub(ago.as_nanos() as u64)));
        }
    }

    fn heartbeat(&mut self, now: Time, from: Slot, message: &QuorumMessage) {
        if message.term.slot() != from {
            self.counters.dropped += 1;
            return;
        }
        if message.term > self.term {
            self.adopt(now, message.term);
        }
        if message.term == self.term {
            self.follow(now, from, message);
        }
        // An older leader learns of our term by this.
        self.send(now, from, QuorumKind::HeartbeatAnswer, self.term, message.round, false);
    }

    /// A heartbeat of the leader of our term.
    fn follow(&mut self, now: Time, from: Slot, message: &QuorumMessage) {
        let known = self.leader.is_some_and(|(slot, _)| slot == from);
        // One that was recorded and is sent again, or comes late, proves no life.
        if known && message.round <= self.leader_round {
            return;
        }
        self.leader_round = message.round;
        self.leader = Some((from, now));
        self.mounted = !message.granted;
        self.role = Role::Follower;
        self.forgiven = false;
        self.deadline = now + self.config.timers.heartbeat_timeout + self.spread();
        if let Some(peer) = &mut self.peers[from.index()] {
            if !known {
                peer.delays.pause();
            }
            peer.delays.heard(now);
        }
    }

    fn heartbeat_answer(&mut self, now: Time, from: Slot, message: &QuorumMessage) {
        if message.term > self.term {
            return self.adopt(now, message.term);
        }
        let round = self.round;
        let Role::Leader(leadership) = &self.role else { return };
        if message.term != leadership.term || message.round > round || message.round < leadership.first_round {
            return;
        }
        if let Some(peer) = &mut self.peers[from.index()] {
            if message.round > peer.answered_round {
                peer.answered_round = message.round;
                peer.answered_at = now;
            }
            peer.delays.heard(now);
        }
        self.confirm_rounds();
    }

    fn resignation(&mut self, now: Time, from: Slot, message: &QuorumMessage) {
        if message.term.slot() != from {
            self.counters.dropped += 1;
            return;
        }
        if message.term > self.term {
            self.adopt(now, message.term);
        }
        if message.term == self.term && matches!(self.role, Role::Follower | Role::PreCandidate { .. }) {
            self.mounted = !message.granted;
            self.leader = None;
            self.forgiven = false;
            self.role = Role::Follower;
            self.deadline = (now + self.little_while()).max(self.stand_after);
        }
    }

    /// A newer term: whatever we were, we follow, and write it down.
    pub(super) fn adopt(&mut self, now: Time, term: Term) {
        if mutant::active(Mutant::DeafLeader) && matches!(self.role, Role::Leader(_)) {
            return;
        }
        if let Role::Leader(_) = self.role {
            self.step_down(now, super::StopReason::NewerTerm(term));
        }
        probe::tell(|| QuorumFact::Follows { rid: self.config.rid });
        self.term = term;
        self.leader = None;
        self.leader_round = 0;
        self.vote = None;
        self.role = Role::Follower;
        self.forgiven = false;
        self.deadline = now + self.election_span();
        self.record(now, EventKind::Term, term, None);
    }

    pub(super) fn heartbeat_round(&mut self, now: Time) {
        self.round += 1;
        let (round, term) = (self.round, self.term);
        if let Role::Leader(leadership) = &mut self.role {
            leadership.heartbeat_at = now + self.config.timers.heartbeat;
        }
        let fencing = matches!(&self.role, Role::Leader(l) if matches!(l.phase, Phase::Fencing { .. }));
        if !(fencing && mutant::active(Mutant::SilentWhileFencing)) {
            self.send_all(now, QuorumKind::Heartbeat, term, round);
        }
    }

    /// Reports the newest round that a majority has answered, if somebody waits for one.
    pub(super) fn confirm_rounds(&mut self) {
        let Role::Leader(leadership) = &self.role else { return };
        if !matches!(leadership.phase, Phase::Leading | Phase::Stopping { .. }) {
            return;
        }
        let mut answered: Vec<u64> = self.peers.iter().flatten().map(|p| p.answered_round).collect();
        answered.push(self.round);
        answered.sort_unstable_by(|a, b| b.cmp(a));
        let needed = if mutant::active(Mutant::ConfirmUnanswered) { 0 } else { self.majority - 1 };
        let confirmed = answered.get(needed).copied().unwrap_or(0).min(self.asked_round);
        // What an earlier engine of ours waited for is over with its term.
        if confirmed > self.confirmed_round && confirmed >= leadership.first_round {
            self.confirmed_round = confirmed;
            let (rid, term) = (self.config.rid, leadership.term);
            probe::tell(|| QuorumFact::Confirmed { rid, term, round: confirmed });
            self.push(super::QuorumOutput::RoundConfirmed { round: confirmed });
        }
    }
}
