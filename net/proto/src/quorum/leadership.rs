//! From an election to serving, and back: the blocks are read, predecessors stopped or fenced, and at the end our own
//! leadership is marked as over.

use std::collections::BTreeSet;
use std::time::Duration;

use vellum_base::mutant::{self, Mutant};
use vellum_base::{Rid, Slot, Term, probe};
use vellum_format::quorum::{EventKind, SlotEvent, SlotState};
use vellum_wire::QuorumKind;

use super::{FenceReason, FenceTarget, Quorum, QuorumOutput, QuorumTimers, Role, StopReason};
use crate::fact::QuorumFact;
use crate::time::Time;

/// Our own block unreadable so often in a row: it is our reading that fails.
const READ_ATTEMPTS: u32 = 5;
/// After so many failed fences another member may try.
const FENCE_ATTEMPTS: u32 = 4;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// ELECT is on its way to the device.
    Electing {
        elect: u64,
    },
    /// The blocks are being read, or read again at `at`: for the first time, or for a STOP that is expected.
    Reading {
        at: Option<Time>,
    },
    Fencing {
        targets: Vec<FenceTarget>,
        since: Time,
    },
    /// A fence failed.
    Resting {
        until: Time,
    },
    /// FENCE is on its way to the device.
    Recording {
        fence: u64,
    },
    Leading,
    /// The engine stops in order; others are kept from standing until it has.
    Stopping {
        since: Time,
    },
}

#[derive(Debug)]
pub(super) struct Leadership {
    pub term: Term,
    pub phase: Phase,
    pub since: Time,
    /// Heartbeats of this term have this number or a greater one.
    pub first_round: u64,
    pub heartbeat_at: Time,
    /// A busy engine's rounds put heartbeats off for ever; whether we may lead is looked at all the same.
    check_at: Time,
    pub fenced: BTreeSet<(Slot, Option<Rid>, Option<Term>)>,
    pub fence_attempts: u32,
    read_attempts: u32,
}

impl Leadership {
    pub fn new(term: Term, elect: u64, first_round: u64, now: Time) -> Leadership {
        Leadership {
            term,
            phase: Phase::Electing { elect },
            since: now,
            first_round,
            heartbeat_at: now,
            check_at: now,
            fenced: BTreeSet::new(),
            fence_attempts: 0,
            read_attempts: 0,
        }
    }
}

/// A leadership of ours whose STOP is not durable yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopping {
    pub term: Term,
    /// The write that carries STOP, once the engine has stopped.
    pub write: Option<u64>,
    /// RESIGNATION goes out when STOP is durable.
    pub resigns: bool,
}

/// An earlier run of our own slot that was elected and has not stopped: it must be gone before we stand, for our own
/// ELECT will take its place in the block and nobody would know of it any more.
#[derive(Debug)]
pub(super) struct Predecessor {
    pub target: FenceTarget,
    state: PredecessorState,
    attempts: u32,
}

#[derive(Debug)]
enum PredecessorState {
    Due(Time),
    Fencing(Time),
    /// The write that carries its STOP.
    Recording(u64),
}

impl Predecessor {
    pub fn new(target: FenceTarget, now: Time) -> Predecessor {
        Predecessor { target, state: PredecessorState::Due(now), attempts: 0 }
    }

    pub fn due(&self, timers: &QuorumTimers) -> Option<Time> {
        match self.state {
            PredecessorState::Due(at) => Some(at),
            PredecessorState::Fencing(since) => Some(since + timers.fence_timeout),
            PredecessorState::Recording(_) => None,
        }
    }
}

impl Quorum {
    fn phase(&self) -> Option<&Phase> {
        match &self.role {
            Role::Leader(leadership) => Some(&leadership.phase),
            _ => None,
        }
    }

    fn set_phase(&mut self, phase: Phase) {
        if let Role::Leader(leadership) = &mut self.role {
            leadership.phase = phase;
        }
    }

    /// Goes on with what was waiting for a write.
    pub(super) fn settle_leadership(&mut self, now: Time) {
        match self.phase() {
            Some(Phase::Electing { elect })
                if self.own.is_durable(*elect) || mutant::active(Mutant::ReadBeforeElect) =>
            {
                self.set_phase(Phase::Reading { at: None });
                let (rid, by, term) = (self.config.rid, self.config.slot, self.term);
                probe::tell(|| QuorumFact::LooksBack { rid, by, term });
                self.read_blocks();
            }
            Some(Phase::Recording { fence }) if self.own.is_durable(*fence) => {
                self.set_phase(Phase::Leading);
                self.error = None;
                let term = self.term;
                self.push(QuorumOutput::Lead { term });
                self.confirm_rounds();
            }
            _ => {}
        }
        if let Some(Stopping { write: Some(write), resigns, term }) = self.stopping
            && self.own.is_durable(write)
        {
            self.stopping = None;
            if resigns {
                self.send_all(now, QuorumKind::Resignation, term, self.round);
            }
            if matches!(self.phase(), Some(Phase::Stopping { .. })) {
                self.follow_nobody(now);
            }
        }
    }

    /// `current`: the read began after all that it is to decide about.
    pub(super) fn blocks_read(&mut self, now: Time, blocks: &[SlotState; Slot::COUNT], current: bool) {
        let own = self.config.slot;
        if let SlotState::Written(found) = &blocks[own.index()]
            && self.own.is_foreign(found)
            && !matches!(self.role, Role::Watching { .. } | Role::Over { .. })
        {
            return self.slot_taken(format!("another process has written the block of slot {own}"));
        }
        let reading = current && matches!(self.phase(), Some(Phase::Reading { .. }));
        // A read of our own block that fails, and one that gives an older block than before, prove nothing about anybody.
        let doubtful = matches!(blocks[own.index()], SlotState::Unreadable(_) | SlotState::Empty)
            || Slot::all().any(|slot| went_back(&self.blocks[slot.index()], &blocks[slot.index()]));
        if doubtful {
            if reading {
                self.read_failed(now);
            }
            return;
        }
        let own_before = self.blocks[own.index()].block().map_or(0, |b| b.newest_write());
        self.blocks.clone_from(blocks);
        if let (Role::Watching { .. }, SlotState::Written(found)) = (&self.role, &blocks[own.index()]) {
            return if found.newest_write() == own_before {
                self.begin(now);
            } else {
                self.slot_taken(format!("another process, perhaps on another host, runs in slot {own}"));
            };
        }
        if reading {
            self.judge(now);
        }
    }

    fn read_failed(&mut self, now: Time) {
        let retry = now + self.config.timers.retry_min;
        let Role::Leader(leadership) = &mut self.role else { return };
        leadership.read_attempts += 1;
        leadership.phase = Phase::Reading { at: Some(retry) };
        if leadership.read_attempts >= READ_ATTEMPTS {
            self.error = Some("the quorum blocks cannot be read reliably".into());
            self.stand_aside(now);
            self.give_up(now, StopReason::Resigned);
        }
    }

    /// We are elected and know all blocks as they were after our ELECT.
    fn judge(&mut self, now: Time) {
        let newest = self.config.peers().filter_map(|s| self.blocks[s.index()].block()).map(|b| b.newest_term()).max();
        if let Some(newest) = newest.filter(|term| *term > self.term) {
            // Somebody was elected after us, or tried to: another election decides, and all terms grow.
            return self.adopt(now, newest);
        }
        let targets = if mutant::active(Mutant::LeadUnfenced) { Vec::new() } else { self.targets() };
        let Role::Leader(leadership) = &mut self.role else { return };
        if targets.is_empty() {
            let term = leadership.term;
            let fence = self.record(now, EventKind::Fence, term, None);
            return self.set_phase(Phase::Recording { fence });
        }
        let (timers, since) = (self.config.timers, leadership.since);
        let due = |target: &FenceTarget| {
            let alive = self.peers[target.slot.index()]
                .as_ref()
                .is_some_and(|p| p.term >= self.term && (target.rid.is_none() || p.rid == target.rid));
            // Who is alive and knows our term is about to stop by itself; of others, wait for a sign of life.
            now >= since + if alive { timers.stop_grace } else { timers.answer_wait }
        };
        let (due, patient): (Vec<_>, Vec<_>) = targets.into_iter().partition(due);
        if due.is_empty() {
            debug_assert!(!patient.is_empty());
            return self.set_phase(Phase::Reading { at: Some(now + timers.reread) });
        }
        self.counters.fences += 1;
        self.set_phase(Phase::Fencing { targets: due.clone(), since: now });
        let term = self.term;
        self.push(QuorumOutput::Fence { term, targets: due });
    }

    /// Every other ELECT that is neither stopped nor fenced, and every block that hides one.
    fn targets(&self) -> Vec<FenceTarget> {
        let ended = self.newest_fence();
        let Role::Leader(leadership) = &self.role else { return Vec::new() };
        let target = |slot: Slot| {
            let elected = |elect: &SlotEvent| FenceTarget {
                slot,
                rid: Some(elect.rid),
                term: Some(elect.term),
                process: Some(elect.process),
                reason: FenceReason::EarlierLeader,
            };
            match &self.blocks[slot.index()] {
                SlotState::Empty => None,
                SlotState::Written(block) => block.unstopped().filter(|e| e.term >= ended).map(elected),
                SlotState::Unreadable(_) if mutant::active(Mutant::UnreadableIsNobody) => None,
                SlotState::Unreadable(_) => self.config.is_configured(slot).then_some(FenceTarget {
                    slot,
                    rid: None,
                    term: None,
                    process: None,
                    reason: FenceReason::Unreadable,
                }),
            }
        };
        let others = Slot::all().filter(|slot| *slot != self.config.slot);
        others.filter_map(target).filter(|t| !leadership.fenced.contains(&(t.slot, t.rid, t.term))).collect()
    }

    pub(super) fn fenced(&mut self, now: Time, term: Term, mut result: Result<(), String>) {
        if mutant::active(Mutant::BelieveFailedFence) {
            result = Ok(());
        }
        if let Some(Predecessor { target, state: PredecessorState::Fencing(_), .. }) = &self.predecessor
            && target.term == Some(term)
        {
            return self.predecessor_fenced(now, result);
        }
        let attempts = match &self.role {
            Role::Leader(Leadership { term: ours, phase: Phase::Fencing { .. }, fence_attempts, .. })
                if *ours == term =>
            {
                *fence_attempts
            }
            _ => {
                self.counters.ignored += 1;
                return;
            }
        };
        match result {
            Ok(()) => {
                if let Role::Leader(leadership) = &mut self.role {
                    if let Phase::Fencing { targets, .. } = &leadership.phase {
                        leadership.fenced.extend(targets.iter().map(|t| (t.slot, t.rid, t.term)));
                    }
                    leadership.phase = Phase::Reading { at: None };
                }
                self.read_blocks();
            }
            Err(why) => {
                self.counters.fences_failed += 1;
                self.error = Some(format!("fencing for term {term} failed: {why}"));
                let pause = (self.config.timers.retry_min * (1 << attempts.min(10))).min(self.config.timers.retry_max);
                if attempts + 1 >= FENCE_ATTEMPTS && self.config.peers().next().is_some() {
                    return self.fence_abandoned(now);
                }
                if let Role::Leader(leadership) = &mut self.role {
                    leadership.fence_attempts += 1;
                    leadership.phase = Phase::Resting { until: now + pause };
                }
            }
        }
    }

    /// Another member may have a fencer that works. A late answer is then for a term that is over.
    fn fence_abandoned(&mut self, now: Time) {
        self.stand_aside(now);
        self.give_up(now, StopReason::Resigned);
    }

    fn predecessor_fenced(&mut self, now: Time, result: Result<(), String>) {
        let timers = self.config.timers;
        let Some(predecessor) = &mut self.predecessor else { return };
        match result {
            Ok(()) => {
                let target = predecessor.target;
                let write = self.own.next_write();
                predecessor.state = PredecessorState::Recording(write);
                if let Some(elect) = self.own.block().get(EventKind::Elect).copied()
                    && (Some(elect.rid), Some(elect.term)) == (target.rid, target.term)
                {
                    self.own.record(now, EventKind::Stop, elect);
                }
            }
            Err(why) => {
                self.counters.fences_failed += 1;
                let pause = (timers.retry_min * (1 << predecessor.attempts.min(10))).min(timers.retry_max);
                predecessor.attempts += 1;
                predecessor.state = PredecessorState::Due(now + pause);
                self.error = Some(format!("the earlier run of our slot is not known to be gone: {why}"));
            }
        }
    }

    pub(super) fn settle_predecessor(&mut self, now: Time) {
        let (timeout, ended) = (self.config.timers.fence_timeout, self.newest_fence());
        let Some(predecessor) = &mut self.predecessor else { return };
        let recorded = |write: &u64| self.own.is_durable(*write);
        match &predecessor.state {
            PredecessorState::Recording(write) if recorded(write) => return self.predecessor_gone(now),
            // A leader of another slot has fenced it.
            _ if predecessor.target.term < Some(ended) => return self.predecessor_gone(now),
            _ => {}
        }
        match predecessor.state {
            PredecessorState::Due(at)
                if now >= at && !matches!(self.role, Role::Starting { .. } | Role::Over { .. }) =>
            {
                predecessor.state = PredecessorState::Fencing(now);
                let target = predecessor.target;
                let term = target.term.unwrap_or_default();
                self.counters.fences += 1;
                self.push(QuorumOutput::Fence { term, targets: vec![target] });
            }
            PredecessorState::Fencing(since) if now >= since + timeout => {
                self.predecessor_fenced(now, Err("the fencer has not answered".into()));
            }
            _ => {}
        }
    }

    fn predecessor_gone(&mut self, now: Time) {
        self.predecessor = None;
        if self.config.peers().next().is_none() {
            self.deadline = now;
        }
    }

    pub(super) fn leader_timeout(&mut self, now: Time) {
        let timers = self.config.timers;
        let Role::Leader(leadership) = &mut self.role else { return };
        let term = leadership.term;
        leadership.check_at = now + timers.heartbeat;
        match leadership.phase {
            Phase::Reading { at: Some(at) } if now >= at => {
                leadership.phase = Phase::Reading { at: None };
                self.read_blocks();
            }
            Phase::Resting { until } if now >= until => {
                leadership.phase = Phase::Reading { at: None };
                self.read_blocks();
            }
            Phase::Fencing { since, .. } if now >= since + timers.fence_timeout => {
                self.counters.fences_failed += 1;
                self.error = Some(format!("fencing for term {term} failed: the fencer has not answered"));
                return self.fence_abandoned(now);
            }
            Phase::Stopping { since } if now >= since + timers.resign_grace => {
                return self.abdicate(now, term);
            }
            _ => {}
        }
        if !matches!(self.role, Role::Leader(_)) {
            return;
        }
        if now >= self.majority_heard(now) + timers.heartbeat_timeout && !mutant::active(Mutant::DeafLeader) {
            return self.step_down(now, StopReason::LostMajority);
        }
        let slow = now >= self.slow_at() && !mutant::active(Mutant::KeepSlowLeader);
        if slow && self.device_takes_others_writes(now) {
            self.stand_aside(now);
            return self.step_down(now, StopReason::SlowDevice);
        }
        if let Role::Leader(Leadership { heartbeat_at, since, .. }) = self.role {
            if now - since > 16 * timers.heartbeat_timeout {
                self.stood_well();
            }
            if now >= heartbeat_at {
                self.heartbeat_round(now);
            }
        }
    }

    pub(super) fn leader_due(&self, leadership: &Leadership) -> Time {
        let timers = &self.config.timers;
        let phase = match &leadership.phase {
            Phase::Reading { at } => *at,
            Phase::Resting { until } => Some(*until),
            Phase::Fencing { since, .. } => Some(*since + timers.fence_timeout),
            Phase::Stopping { since } => Some(*since + timers.resign_grace),
            Phase::Electing { .. } | Phase::Recording { .. } | Phase::Leading => None,
        };
        // Alone there is nobody to send heartbeats to.
        let alone = self.config.peers().next().is_none();
        let heartbeat = (!alone).then_some(leadership.heartbeat_at.min(leadership.check_at));
        let far = leadership.heartbeat_at + Duration::from_secs(3600);
        phase.into_iter().chain(heartbeat).min().unwrap_or(far)
    }

    /// When a majority, we included, had last answered.
    fn majority_heard(&self, now: Time) -> Time {
        let mut heard: Vec<Time> = self.peers.iter().flatten().map(|p| p.answered_at).collect();
        heard.push(now);
        heard.sort_unstable_by(|a, b| b.cmp(a));
        heard.get(self.majority - 1).copied().unwrap_or(now)
    }

    fn slow_at(&self) -> Time {
        // A device that stalls holds up the read before the write.
        let since = self.own.waiting_since().into_iter().chain(self.probing).min();
        since.map_or(Time(u64::MAX), |since| since + self.config.timers.heartbeat_timeout)
    }

    /// Whether so many others as could elect one of them write to the device while we cannot.
    fn device_takes_others_writes(&self, now: Time) -> bool {
        let timeout = self.config.timers.heartbeat_timeout;
        let recent = |at: Time| now - at < timeout;
        let well = |p: &&super::Peer| recent(p.answered_at) && p.written_at.is_some_and(recent);
        self.peers.iter().flatten().filter(well).count() >= self.majority
    }

    /// Ends our leadership by our own will: in order, with heartbeats until the engine has stopped.
    pub(super) fn give_up(&mut self, now: Time, why: StopReason) {
        let Role::Leader(leadership) = &mut self.role else { return };
        let term = leadership.term;
        match leadership.phase {
            Phase::Stopping { .. } => {}
            Phase::Leading => {
                leadership.phase = Phase::Stopping { since: now };
                self.stopping = Some(Stopping { term, write: None, resigns: true });
                self.push(QuorumOutput::StopLeading { term, why });
            }
            _ => self.step_down(now, why),
        }
    }

    /// The engine takes too long to stop: others need not wait any longer, they will fence us.
    fn abdicate(&mut self, now: Time, term: Term) {
        if let Some(stopping) = &mut self.stopping {
            stopping.resigns = false;
        }
        self.send_all(now, QuorumKind::Resignation, term, self.round);
        self.follow_nobody(now);
    }

    /// Ends our leadership at once: we are no leader any more, whether the engine knows it or not.
    pub(super) fn step_down(&mut self, now: Time, why: StopReason) {
        let Role::Leader(leadership) = &self.role else { return };
        let (term, phase) = (leadership.term, leadership.phase.clone());
        self.counters.deposed += 1;
        let resigns = !matches!(why, StopReason::NewerTerm(_));
        match phase {
            Phase::Leading => {
                self.stopping = Some(Stopping { term, write: None, resigns: false });
                if mutant::active(Mutant::StopTooEarly) {
                    let write = self.record(now, EventKind::Stop, term, None);
                    self.stopping = Some(Stopping { term, write: Some(write), resigns });
                }
                self.push(QuorumOutput::StopLeading { term, why });
                if resigns {
                    self.send_all(now, QuorumKind::Resignation, term, self.round);
                }
            }
            // The engine knows already.
            Phase::Stopping { .. } => {}
            // Nothing was started.
            _ => {
                let write = self.record(now, EventKind::Stop, term, None);
                self.stopping = Some(Stopping { term, write: Some(write), resigns });
            }
        }
        self.follow_nobody(now);
    }
}

/// Whether `now` is older than `before`: a read that gave what the device has no longer.
fn went_back(before: &SlotState, now: &SlotState) -> bool {
    match (before, now) {
        (SlotState::Written(before), SlotState::Written(now)) => now.newest_write() < before.newest_write(),
        (SlotState::Written(_), SlotState::Empty) => true,
        _ => false,
    }
}
