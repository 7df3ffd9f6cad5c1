//! The quorum: who leads, as a state machine. Raft's rules for votes and terms (Ongaro and Ousterhout 2014, with the
//! pre-vote of Ongaro's thesis, section 9.6), durable on a shared device, and fencing of whoever led before.
//!
//! ```text
//!   STARTING --BEGIN durable--> FOLLOWER <------ newer term, a leader's heartbeat ------+
//!                                |    ^                                                 |
//!         nothing from a leader  |    | no majority in time                             |
//!                                v    |                                                 |
//!                            PRE-CANDIDATE --majority would--> CANDIDATE --majority--> LEADER
//!
//!   LEADER: ELECT durable -> read all blocks -> every other unstopped ELECT stopped or fenced -> FENCE durable -> Lead
//!           -> StopLeading -> handle_stopped -> STOP durable          (heartbeats all the while)
//! ```
//! Invariants, by the names that the tests use:
//! - Q1, Q8: `Lead` and FENCE only after every ELECT found in the blocks is stopped or reported fenced; a failed fence is
//!   tried again or given up, never passed over. Q4: blocks are read only after our ELECT is durable, so of two that are
//!   elected at once the later reader sees the other.
//! - Q2: our term only grows, over restarts too. Q3: nothing is written before our own block was read, and never again
//!   after another process was seen in it. Q5: STOP is recorded only after `handle_stopped`, or when nothing was started.
//! - Q9: a vote leaves only when it is durable. Q10: nobody's term grows before a majority would vote for it.
//!
//! Not here: sockets, the device, fencing itself, the engine. A driver carries them out in the order of
//! [`Quorum::poll_output`], and drains received datagrams before it calls [`Quorum::handle_timeout`].

mod config;
mod delays;
mod election;
mod idle;
mod leadership;
mod leaving;
mod messages;
mod output;
mod own_block;
mod peer;
mod status;
mod timers;

use std::collections::VecDeque;
use std::time::Duration;

use vellum_base::mutant::{self, Mutant};
use vellum_base::prng::Prng;
use vellum_base::{Slot, Term, probe};
use vellum_format::quorum::{EventKind, SlotBlock, SlotEvent, SlotState};
use vellum_wire::{QuorumKind, QuorumMessage};

pub use config::{QuorumConfig, QuorumError};
pub use delays::{DELAY_BOUNDS_MS, DelayRecord};
pub use output::{FenceReason, FenceTarget, QuorumOutput, StopReason};
pub use status::{PeerStatus, QuorumCounters, QuorumRole, QuorumStatus};
pub use timers::QuorumTimers;

use crate::backoff::Backoff;
use crate::fact::QuorumFact;
use crate::time::Time;
use leadership::{Leadership, Phase, Predecessor, Stopping};
use own_block::OwnBlock;
use peer::Peer;

/// Outputs that wait for the driver; messages beyond it are dropped, as a network would.
const MAX_OUTPUTS: usize = 1024;

#[derive(Debug)]
enum Role {
    /// Nothing is written before `until`: a live member would have written its block by then.
    Watching {
        until: Time,
    },
    /// BEGIN is on its way to the device.
    Starting {
        begin: u64,
    },
    Follower,
    PreCandidate {
        proposed: Term,
        attempt: u64,
    },
    /// `vote`: the write that makes our vote for ourselves durable.
    Candidate {
        vote: u64,
        asked: Option<Time>,
    },
    Leader(Leadership),
    /// END was recorded by that write, or another process has our slot (`None`).
    Over {
        end: Option<u64>,
    },
}

/// A vote that leaves when its write is durable.
#[derive(Clone, Copy, Debug)]
struct PendingVote {
    to: Slot,
    term: Term,
    write: u64,
}

pub struct Quorum {
    config: QuorumConfig,
    majority: usize,
    prng: Prng,
    started: Time,
    own: OwnBlock,
    role: Role,
    term: Term,
    /// Whom we follow in this term, and when it was last heard.
    leader: Option<(Slot, Time)>,
    leader_round: u64,
    vote: Option<PendingVote>,
    /// When a follower stands, a candidate stands again.
    deadline: Time,
    /// A deadline was found long past once: it was the scheduler that was late, so it got a second chance.
    forgiven: bool,
    /// After giving up a leadership others go first.
    stand_after: Time,
    stand_backoff: Backoff,
    peers: [Option<Peer>; Slot::COUNT],
    blocks: [SlotState; Slot::COUNT],
    /// The blocks are being read; and the answer will be too old for what came up meanwhile.
    reading: bool,
    reading_again: bool,
    /// Since when a probe waits for that read: after our own write it would see nothing but that.
    probing: Option<Time>,
    /// An engine that was told to stop, and its STOP.
    stopping: Option<Stopping>,
    predecessor: Option<Predecessor>,
    leaving: bool,
    /// It leaves when it is let go: see [`leaving`].
    asks_to_leave: bool,
    mounted: bool,
    /// Numbers of heartbeat rounds, over all terms of this run.
    round: u64,
    asked_round: u64,
    confirmed_round: u64,
    error: Option<String>,
    counters: QuorumCounters,
    outputs: VecDeque<QuorumOutput>,
}

impl Quorum {
    /// Starts a member from the blocks as they were just read. Its first output writes BEGIN.
    pub fn new(config: QuorumConfig, blocks: &[SlotState; Slot::COUNT], now: Time) -> Result<Quorum, QuorumError> {
        if !config.is_configured(config.slot) {
            return Err(QuorumError::UnknownSlot(config.slot));
        }
        if config.rid.0 == 0 {
            return Err(QuorumError::NoIdentity);
        }
        let own = match &blocks[config.slot.index()] {
            SlotState::Empty => SlotBlock::new(config.slot),
            SlotState::Written(block) => *block,
            SlotState::Unreadable(error) => return Err(error.clone().into()),
        };
        let known = if mutant::active(Mutant::ForgetTerm) { &[] } else { &blocks[..] };
        let term = known.iter().filter_map(|b| b.block()).map(SlotBlock::newest_term).max().unwrap_or_default();
        let timers = config.timers;
        let backoff = |salt: u64, min, max| Backoff::new(min, max, config.seed ^ salt);
        let mut quorum = Quorum {
            majority: config.majority(),
            prng: Prng::new(config.seed ^ config.rid.0),
            started: now,
            own: OwnBlock::new(own, backoff(1, timers.retry_min, timers.retry_max)),
            role: Role::Starting { begin: 0 },
            term,
            leader: None,
            leader_round: 0,
            vote: None,
            deadline: now,
            forgiven: false,
            stand_after: now,
            stand_backoff: backoff(2, timers.heartbeat_timeout, timers.heartbeat_timeout * 16),
            peers: std::array::from_fn(|_| None),
            blocks: blocks.clone(),
            reading: false,
            reading_again: false,
            probing: None,
            stopping: None,
            predecessor: None,
            leaving: false,
            asks_to_leave: false,
            mounted: true,
            round: 0,
            asked_round: 0,
            confirmed_round: 0,
            error: None,
            counters: QuorumCounters::default(),
            outputs: VecDeque::new(),
            config,
        };
        for slot in quorum.config.peers().collect::<Vec<_>>() {
            quorum.peers[slot.index()] = Some(Peer::default());
        }
        if quorum.config.watch && quorum.own.block().running().is_some() {
            quorum.role = Role::Watching { until: now + 3 * timers.probe() };
        } else {
            quorum.begin(now);
        }
        quorum.settle(now);
        Ok(quorum)
    }

    pub(in crate::quorum) fn begin(&mut self, now: Time) {
        let own = *self.own.block();
        let ended = self.newest_fence();
        self.predecessor = own.unstopped().filter(|elect| elect.term >= ended).map(|elect| {
            let reason = FenceReason::EarlierRun;
            let (slot, rid, term, process) = (self.config.slot, Some(elect.rid), Some(elect.term), Some(elect.process));
            Predecessor::new(FenceTarget { slot, rid, term, process, reason }, now)
        });
        let begin = self.record(now, EventKind::Begin, self.term, None);
        // "Start as follower from the greatest term in all blocks": a vote in that very term stays.
        if own.get(EventKind::Term).is_none_or(|e| e.term < self.term) {
            self.record(now, EventKind::Term, self.term, None);
        }
        self.role = Role::Starting { begin };
    }

    /// A datagram from the member in `from`, already checked for filesystem and addressee.
    pub fn handle_message(&mut self, now: Time, from: Slot, message: QuorumMessage) {
        self.message(now, from, message);
        self.settle(now);
    }

    pub fn handle_timeout(&mut self, now: Time) {
        self.timeout(now);
        self.settle(now);
    }

    /// The write `seq` is durable; it was in flight for `took`.
    pub fn handle_written(&mut self, now: Time, seq: u64, took: Duration) {
        if !self.own.written(now, seq, took) {
            self.counters.ignored += 1;
        }
        self.settle(now);
    }

    /// The write `seq` failed: it is tried again after a pause.
    pub fn handle_write_failed(&mut self, now: Time, seq: u64, error: &str) {
        if self.own.write_failed(now, seq) {
            self.error = Some(format!("writing the block of slot {}: {error}", self.config.slot));
        }
        self.settle(now);
    }

    /// What was read for [`QuorumOutput::ReadBlocks`]. A sector that does not verify was read again by the driver.
    pub fn handle_blocks(&mut self, now: Time, blocks: &[SlotState; Slot::COUNT]) {
        if std::mem::take(&mut self.reading) {
            let again = std::mem::take(&mut self.reading_again);
            self.blocks_read(now, blocks, !again);
            if again {
                self.read_blocks();
            }
            self.probe_now(now);
        } else {
            self.counters.ignored += 1;
        }
        self.settle(now);
    }

    /// Success says that none of the targets of that `Fence` can write any more. Anything else is an error.
    pub fn handle_fenced(&mut self, now: Time, term: Term, result: Result<(), String>) {
        self.fenced(now, term, result);
        self.settle(now);
    }

    /// The engine that was told to stop has done its last device write and serves nothing.
    pub fn handle_stopped(&mut self, now: Time) {
        match &mut self.stopping {
            Some(stopping) if stopping.write.is_none() && !matches!(self.role, Role::Over { .. }) => {
                let term = stopping.term;
                let write = self.own.next_write();
                stopping.write = Some(write);
                self.record(now, EventKind::Stop, term, None);
            }
            _ => self.counters.ignored += 1,
        }
        self.settle(now);
    }

    /// From now on elections are for terms beyond this: what the engine found in use.
    pub fn raise_floor(&mut self, term: Term) {
        self.config.floor = self.config.floor.max(term);
    }

    /// Gives up a leadership and lets others go first: the engine failed, or an operator wishes it. The member stays.
    pub fn resign(&mut self, now: Time, why: &str) {
        self.error = Some(why.to_string());
        self.stand_aside(now);
        if matches!(self.role, Role::Leader(_)) {
            self.give_up(now, StopReason::Resigned);
        }
        self.settle(now);
    }

    /// Ends the member in order, whoever needs it: gives up a leadership, writes END, then says [`QuorumOutput::Stopped`].
    pub fn leave(&mut self, now: Time) {
        self.leaving = true;
        if matches!(self.role, Role::Leader(_)) {
            self.give_up(now, StopReason::Resigned);
        }
        self.settle(now);
    }

    /// The superblock names other slots than before; they differ by one, so that any two majorities, by the one and by the
    /// other, have a member in common. Who is not among them any more leaves.
    pub fn reconfigure(&mut self, now: Time, configured: u16) {
        if configured == self.config.configured {
            return;
        }
        self.config.configured = configured;
        self.majority = self.config.majority();
        for slot in Slot::all() {
            let is_peer = slot != self.config.slot && self.config.is_configured(slot);
            let known = &mut self.peers[slot.index()];
            match (known.is_some(), is_peer) {
                // A leader waits for its first answer as after an election.
                (false, true) => *known = Some(Peer::added(now)),
                (true, false) => *known = None,
                _ => {}
            }
        }
        if self.leader.is_some_and(|(leader, _)| !self.config.is_configured(leader)) {
            self.leader = None;
        }
        if !self.config.is_configured(self.config.slot) {
            return self.leave(now);
        }
        match &self.role {
            // Votes were counted by another measure.
            Role::PreCandidate { .. } | Role::Candidate { .. } => self.follow_nobody(now),
            Role::Leader(l) if !matches!(l.phase, Phase::Leading | Phase::Stopping { .. }) => {
                self.give_up(now, StopReason::Resigned);
            }
            _ => {}
        }
        self.settle(now);
    }

    /// Begins a heartbeat round; [`QuorumOutput::RoundConfirmed`] says when a majority has answered it. Only a leader's
    /// rounds are ever confirmed: one that was deposed is told to stop instead.
    pub fn begin_round(&mut self, now: Time) -> u64 {
        if matches!(self.role, Role::Leader(_)) {
            self.heartbeat_round(now);
        } else {
            self.round += 1;
        }
        self.asked_round = self.round;
        self.confirm_rounds();
        self.asked_round
    }

    pub fn poll_output(&mut self) -> Option<QuorumOutput> {
        self.outputs.pop_front()
    }

    fn push(&mut self, output: QuorumOutput) {
        self.outputs.push_back(output);
    }

    fn send(&mut self, now: Time, to: Slot, kind: QuorumKind, term: Term, round: u64, granted: bool) {
        if self.outputs.len() >= MAX_OUTPUTS {
            return;
        }
        let ago = self.own.written_at().map_or(Duration::MAX, |at| now - at);
        let written_ago_us = u32::try_from(ago.as_micros()).unwrap_or(u32::MAX);
        let message = QuorumMessage { kind, term, round, rid: self.config.rid, granted, written_ago_us };
        let (rid, by) = (self.config.rid, self.config.slot);
        probe::tell(|| QuorumFact::Sent { rid, by, to, message });
        self.push(QuorumOutput::Send { to, message });
    }

    fn send_all(&mut self, now: Time, kind: QuorumKind, term: Term, round: u64) {
        let said_by_leaders = matches!(kind, QuorumKind::Heartbeat | QuorumKind::Resignation);
        let nobody_mounted = said_by_leaders && !self.mounted;
        for slot in self.config.peers().collect::<Vec<_>>() {
            self.send(now, slot, kind, term, round, nobody_mounted);
        }
    }

    fn record(&mut self, now: Time, kind: EventKind, term: Term, vote: Option<Slot>) -> u64 {
        let config = &self.config;
        let time_ms = config.wall_ms + u64::try_from((now - self.started).as_millis()).unwrap_or(0);
        let event = SlotEvent { write: 0, rid: config.rid, term, vote, time_ms, process: config.process };
        self.own.record(now, kind, event)
    }

    /// Reads the blocks as they are from now on: a read that is in flight was begun too early.
    fn read_blocks(&mut self) {
        if std::mem::replace(&mut self.reading, true) {
            self.reading_again = true;
        } else {
            self.push(QuorumOutput::ReadBlocks);
        }
    }

    /// Leaders below it are fenced.
    fn newest_fence(&self) -> Term {
        let others = self.blocks.iter().filter_map(|b| b.block()?.get(EventKind::Fence)).map(|e| e.term).max();
        others.unwrap_or_default().max(self.own.fence_term())
    }

    /// Carries on with whatever became possible: the end of every input.
    fn settle(&mut self, now: Time) {
        self.settle_predecessor(now);
        self.settle_votes(now);
        self.settle_predecessor(now);
        self.settle_leadership(now);
        self.settle_leaving(now);
        self.settle_end(now);
        if !matches!(self.role, Role::Over { end: None })
            && let Some((seq, block)) = self.own.start_write(now)
        {
            self.push(QuorumOutput::Write { seq, block });
        }
    }

    fn settle_end(&mut self, now: Time) {
        match self.role {
            Role::Over { end: Some(write) } if self.own.is_durable(write) && self.leaving => {
                self.leaving = false;
                self.push(QuorumOutput::Stopped);
            }
            Role::Watching { .. } if self.leaving => {
                self.leaving = false;
                self.role = Role::Over { end: None };
                self.push(QuorumOutput::Stopped);
            }
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. }
                if self.leaving && self.stopping.is_none() && self.vote.is_none() =>
            {
                let end = self.record(now, EventKind::End, self.term, None);
                self.role = Role::Over { end: Some(end) };
            }
            _ => {}
        }
    }

    /// Another process runs in our slot: whoever of us is wrong, two writers of one block are (Q3).
    fn slot_taken(&mut self, why: String) {
        if mutant::active(Mutant::ShareSlot) {
            return;
        }
        if let Role::Leader(Leadership { term, phase: Phase::Leading, .. }) = self.role {
            self.push(QuorumOutput::StopLeading { term, why: StopReason::SlotTaken });
        }
        self.error = Some(why.clone());
        self.role = Role::Over { end: None };
        self.push(QuorumOutput::Failed { why });
    }

    fn timeout(&mut self, now: Time) {
        match &self.role {
            Role::Over { .. } | Role::Starting { .. } => return,
            Role::Watching { until } if now >= *until => {
                self.role = Role::Watching { until: now + self.config.timers.probe() };
                return self.read_blocks();
            }
            Role::Watching { .. } => return,
            Role::Leader(_) => self.leader_timeout(now),
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } => self.election_timeout(now),
        }
        if self.probe_due().is_some_and(|at| now >= at) {
            self.probing = Some(now);
            if !self.reading {
                self.read_blocks();
            }
        }
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Option<Time> {
        let role = match &self.role {
            Role::Over { end: None } => return None,
            Role::Over { .. } | Role::Starting { .. } => return self.own.retry_at(),
            Role::Watching { until } => return Some(*until),
            Role::Leader(leadership) => Some(self.leader_due(leadership)),
            Role::Candidate { asked: Some(asked), .. } => {
                Some(self.deadline.min(*asked + self.config.timers.heartbeat))
            }
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } => Some(self.deadline),
        };
        let probe = self.probe_due();
        let predecessor = self.predecessor.as_ref().and_then(|p| p.due(&self.config.timers));
        [role, self.own.retry_at(), probe, predecessor].into_iter().flatten().min()
    }
}
