//! Standing and voting.

use std::time::Duration;

use vellum_base::mutant::{self, Mutant};
use vellum_base::{Slot, probe};
use vellum_format::quorum::EventKind;
use vellum_wire::{QuorumKind, QuorumMessage};

use super::leadership::Leadership;
use super::{PendingVote, Quorum, Role};
use crate::fact::QuorumFact;
use crate::time::Time;

/// On a device whose writes take `latency`, a candidate gives voters more than so many of them (Q9).
const LATENCIES: u32 = 10;

impl Quorum {
    /// A random time for one election.
    pub(super) fn election_span(&mut self) -> Duration {
        let slow = self.own.latency() * LATENCIES + Duration::from_nanos(1);
        self.config.timers.election_min.max(slow) + self.spread()
    }

    /// A random time between zero and the difference of the election's bounds.
    pub(super) fn spread(&mut self) -> Duration {
        let timers = &self.config.timers;
        let span = timers.election_max.saturating_sub(timers.election_min);
        self.random_below(span)
    }

    /// After a resignation all stand at once, but not all in the same moment.
    pub(super) fn little_while(&mut self) -> Duration {
        self.random_below(self.config.timers.election_min / 4)
    }

    fn random_below(&mut self, bound: Duration) -> Duration {
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(self.prng.below(nanos))
    }

    /// BEGIN is durable. If somebody may be leading we wait for its heartbeat, else only for an ordinary election.
    fn start_following(&mut self, now: Time) {
        let config = &self.config;
        let elected = config.peers().any(|slot| match &self.blocks[slot.index()] {
            vellum_format::SlotState::Empty => false,
            vellum_format::SlotState::Written(block) => block.unstopped().is_some(),
            vellum_format::SlotState::Unreadable(_) => true,
        });
        let alone = config.peers().next().is_none();
        let timers = config.timers;
        self.role = Role::Follower;
        self.deadline = match (alone, elected) {
            (true, _) => now,
            (false, true) => now + timers.heartbeat_timeout + self.spread(),
            (false, false) => now + self.election_span(),
        };
    }

    /// Whether standing makes sense: our own last leadership must be over on the device.
    fn may_stand(&self, now: Time) -> bool {
        // A device that does not take our vote would only let us inflate the term.
        let writes = self.own.stalled(now) < self.config.timers.election_min;
        self.stopping.is_none() && self.predecessor.is_none() && !self.leaving && writes && now >= self.stand_after
    }

    pub(super) fn election_timeout(&mut self, now: Time) {
        let heartbeat = self.config.timers.heartbeat;
        if let Role::Candidate { asked: Some(asked), .. } = self.role
            && now >= asked + heartbeat
            && now < self.deadline
        {
            return self.ask_for_votes(now);
        }
        if now < self.deadline {
            return;
        }
        // We were not scheduled for long: the leader's heartbeats may not have been delivered either (scenario 27).
        let late = now - self.deadline >= heartbeat && !mutant::active(Mutant::BelieveLateTimeout);
        if late && !std::mem::replace(&mut self.forgiven, true) {
            self.counters.late_wakes += 1;
            self.deadline = now + 2 * heartbeat;
            return;
        }
        if !self.may_stand(now) {
            self.role = Role::Follower;
            self.deadline = now + self.election_span();
            return;
        }
        self.stand(now);
    }

    fn stand(&mut self, now: Time) {
        self.counters.elections += 1;
        let proposed = self.term.max(self.config.floor).next_for(self.config.slot);
        self.leader = None;
        // Random, so that no answer to an earlier run of ours is taken for one to this.
        let attempt = self.prng.next_u64();
        self.role = Role::PreCandidate { proposed, attempt };
        self.deadline = now + self.election_span();
        self.peers.iter_mut().flatten().for_each(super::Peer::ask);
        self.send_all(now, QuorumKind::PreVote, proposed, attempt);
        self.count_pre_votes(now);
    }

    fn granted(&self) -> usize {
        1 + self.peers.iter().flatten().filter(|p| p.granted).count()
    }

    fn count_pre_votes(&mut self, now: Time) {
        let Role::PreCandidate { proposed, .. } = self.role else { return };
        if self.granted() < self.majority && !mutant::active(Mutant::SkipPreVote) {
            return;
        }
        self.term = proposed;
        self.leader_round = 0;
        self.vote = None;
        let vote = self.record(now, EventKind::Term, proposed, Some(self.config.slot));
        self.peers.iter_mut().flatten().for_each(super::Peer::ask);
        self.role = Role::Candidate { vote, asked: None };
        self.deadline = now + self.election_span();
    }

    fn ask_for_votes(&mut self, now: Time) {
        if let Role::Candidate { asked, .. } = &mut self.role {
            *asked = Some(now);
        }
        let silent: Vec<Slot> =
            self.config.peers().filter(|slot| self.peers[slot.index()].as_ref().is_some_and(|p| !p.granted)).collect();
        for slot in silent {
            self.send(now, slot, QuorumKind::RequestVote, self.term, 0, false);
        }
    }

    fn count_votes(&mut self, now: Time) {
        let Role::Candidate { asked: Some(_), .. } = self.role else { return };
        if self.granted() < self.majority {
            return;
        }
        let elect = self.record(now, EventKind::Elect, self.term, None);
        self.counters.elected += 1;
        self.peers.iter_mut().flatten().for_each(|p| p.elected(now));
        self.mounted = true; // until the engine knows
        self.role = Role::Leader(Leadership::new(self.term, elect, self.round + 1, now));
        self.heartbeat_round(now);
    }

    /// Goes on with what was waiting for a write.
    pub(super) fn settle_votes(&mut self, now: Time) {
        let hasty = mutant::active(Mutant::VoteBeforeDurable);
        match self.role {
            Role::Starting { begin } if self.own.is_durable(begin) => self.start_following(now),
            Role::Candidate { vote, asked: None } if hasty || self.own.is_durable(vote) => {
                self.ask_for_votes(now);
                self.count_votes(now);
            }
            _ => {}
        }
        if let Some(PendingVote { to, term, write }) = self.vote
            && (hasty || self.own.is_durable(write))
        {
            self.vote = None;
            self.send(now, to, QuorumKind::Vote, term, 0, true);
        }
        if matches!(self.role, Role::Follower) && self.config.peers().next().is_none() && now >= self.deadline {
            // Alone there is nobody to wait for.
            if self.may_stand(now) {
                self.stand(now);
            }
        }
    }

    pub(super) fn pre_vote(&mut self, now: Time, from: Slot, message: &QuorumMessage) {
        if message.term.slot() != from {
            self.counters.dropped += 1;
            return;
        }
        let loyal = match self.role {
            Role::Leader(_) => true,
            _ => self.leader.is_some_and(|(_, heard)| now - heard < self.config.timers.loyalty()),
        };
        let granted = message.term > self.term && !loyal;
        self.send(now, from, QuorumKind::PreVoteAnswer, self.term, message.round, granted);
    }

    pub(super) fn pre_vote_answer(&mut self, now: Time, from: Slot, message: &QuorumMessage) {
        if !message.granted && message.term > self.term {
            return self.adopt(now, message.term);
        }
        if let (Role::PreCandidate { attempt, .. }, Some(peer)) = (&self.role, &mut self.peers[from.index()])
            && message.granted
            && message.round == *attempt
        {
            peer.granted = true;
            self.count_pre_votes(now);
        }
    }

    pub(super) fn request_vote(&mut self, now: Time, from: Slot, message: &QuorumMessage) {
        if message.term.slot() != from {
            self.counters.dropped += 1;
            return;
        }
        if message.term < self.term {
            return self.send(now, from, QuorumKind::Vote, self.term, 0, false);
        }
        if message.term > self.term {
            self.adopt(now, message.term);
        }
        let cast = self.own.vote().filter(|e| e.term == self.term).and_then(|e| Some((e.vote?, e.write)));
        let write = match cast {
            // A vote that was cast, and whose answer was lost, is said again.
            Some((slot, write)) if slot == from => write,
            Some(_) => return self.send(now, from, QuorumKind::Vote, self.term, 0, false),
            None => self.record(now, EventKind::Term, self.term, Some(from)),
        };
        self.deadline = now + 2 * self.election_span();
        self.vote = Some(PendingVote { to: from, term: self.term, write });
    }

    pub(super) fn vote_answer(&mut self, now: Time, from: Slot, message: &QuorumMessage) {
        if message.term > self.term {
            return self.adopt(now, message.term);
        }
        if let (Role::Candidate { .. }, Some(peer)) = (&self.role, &mut self.peers[from.index()])
            && message.granted
            && message.term == self.term
        {
            peer.granted = true;
            self.count_votes(now);
        }
    }

    /// Others are to stand first, for longer each time.
    pub(super) fn stand_aside(&mut self, now: Time) {
        let pause = self.stand_backoff.pause();
        self.stand_after = now + pause;
    }

    pub(super) fn stood_well(&mut self) {
        self.stand_backoff.succeeded();
    }

    /// After our own leadership: wait as any follower does.
    pub(super) fn follow_nobody(&mut self, now: Time) {
        probe::tell(|| QuorumFact::Follows { rid: self.config.rid });
        self.role = Role::Follower;
        self.leader = None;
        self.forgiven = false;
        self.deadline = (now + self.election_span()).max(self.stand_after);
    }
}
