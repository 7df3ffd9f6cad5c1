//! Q as members say it to each other: no vote leaves before it is durable [Q9], nobody enters a term that a majority would not
//! vote for [Q10], nobody looks back before its own ELECT is durable [Q4], and a leader follows the news: it says nothing more in
//! a term when it has heard a newer one [Q2], gives up when others write to the device and it cannot [Q9], and is never silent for
//! long, else others stand while it leads [Q7]. A round counts as answered when a majority has answered it [E11]. Who has slept
//! listens before it stands [27].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use vellum_base::{Rid, Slot, Term};
use vellum_format::quorum::{EventKind, SlotBlock};
use vellum_nvme::fault::ProcessId;
use vellum_proto::fact::QuorumFact;
use vellum_proto::quorum::QuorumTimers;
use vellum_wire::{QuorumKind, QuorumMessage};

use super::Out;

/// A leader that has to give up because it is slow looks at it so often at least.
const LOOKS: Duration = Duration::from_millis(60);
/// What a leader knows a little later than we.
const SLACK: Duration = Duration::from_millis(30);

fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}

/// What a member has heard of another one.
#[derive(Clone, Copy, Default)]
struct Heard {
    /// The newest round of ours that it has answered, and when.
    round: u64,
    at: u64,
    /// Its last durable write of its own block.
    written: Option<u64>,
}

/// One run of a member.
#[derive(Default)]
struct Run {
    /// Its block, as the device has confirmed it.
    durable: Option<SlotBlock>,
    durable_at: u64,
    /// The writes of its block that are not answered, and since when.
    writes: BTreeMap<(ProcessId, u64), (SlotBlock, u64)>,
    /// Its newest attempt to stand: for which term, and who would vote for it.
    attempt: (Term, u64),
    agreed: BTreeSet<Slot>,
    /// The newest term that binds it.
    newest: Term,
    /// The term in which it sends heartbeats, when it sent the last one, and who has answered.
    leads: Option<Term>,
    beat: u64,
    others: BTreeMap<Slot, Heard>,
    /// Since when it should have given up.
    slow: Option<u64>,
    /// When it heard the leader last that it follows.
    followed: Option<u64>,
}

impl Run {
    fn event(&self, kind: EventKind) -> Option<(Term, Option<Slot>)> {
        self.durable.as_ref()?.get(kind).map(|event| (event.term, event.vote))
    }
}

#[derive(Default)]
pub struct Members {
    timers: QuorumTimers,
    /// 0 without a quorum.
    slots: usize,
    runs: BTreeMap<Rid, Run>,
    /// When the machine of a slot fell asleep, and woke.
    asleep: BTreeMap<Slot, u64>,
    slept: BTreeMap<Slot, (u64, u64)>,
}

impl Members {
    pub fn watch(&mut self, slots: usize, timers: QuorumTimers) {
        (self.slots, self.timers) = (slots, timers);
    }

    fn majority(&self) -> usize {
        if self.slots < 3 { 1 } else { self.slots / 2 + 1 }
    }

    pub fn falls_asleep(&mut self, node: usize, now: u64) {
        self.asleep.insert(Slot(node as u8), now);
    }

    pub fn wakes(&mut self, node: usize, now: u64) {
        let slot = Slot(node as u8);
        if let Some(since) = self.asleep.remove(&slot) {
            self.slept.insert(slot, (since, now));
        }
    }

    pub fn woke_at(&self, node: usize) -> u64 {
        self.slept.get(&Slot(node as u8)).map_or(0, |slept| slept.1)
    }

    /// A block is on its way to the device.
    pub fn writes(&mut self, process: ProcessId, id: u64, block: &SlotBlock, now: u64) {
        if let Some(begin) = block.get(EventKind::Begin) {
            self.runs.entry(begin.rid).or_default().writes.insert((process, id), (*block, now));
        }
    }

    pub fn written(&mut self, process: ProcessId, id: u64, landed: bool, now: u64) {
        for run in self.runs.values_mut() {
            if let Some((block, _)) = run.writes.remove(&(process, id))
                && landed
            {
                (run.durable, run.durable_at) = (Some(block), now);
            }
        }
    }

    pub fn member(&mut self, fact: &QuorumFact, out: &mut Out) {
        let now = out.story.now();
        match fact {
            QuorumFact::Sent { rid, by, to, message } => self.sent(*rid, *by, *to, message, now, out),
            QuorumFact::Received { rid, from, message } => self.received(*rid, *from, message, now, out),
            QuorumFact::LooksBack { rid, by, term } => {
                let elect = self.runs.get(rid).and_then(|run| run.event(EventKind::Elect));
                if elect.is_none_or(|(elected, _)| elected != *term) {
                    out.violate("Q4", format!("slot {by} looks back in term {term} before its ELECT is durable"));
                }
            }
            QuorumFact::Confirmed { rid, term, round } => self.confirmed(*rid, *term, *round, out),
            QuorumFact::Follows { rid } => {
                let run = self.runs.entry(*rid).or_default();
                (run.leads, run.slow) = (None, None);
            }
        }
    }

    fn sent(&mut self, rid: Rid, by: Slot, to: Slot, message: &QuorumMessage, now: u64, out: &mut Out) {
        let term = message.term;
        match message.kind {
            QuorumKind::Vote if message.granted => self.vote(rid, by, to, term, out),
            QuorumKind::RequestVote => {
                self.vote(rid, by, by, term, out);
                self.agreed(rid, by, term, out);
            }
            QuorumKind::PreVote => {
                self.listened(rid, by, now, out);
                let run = self.runs.entry(rid).or_default();
                if run.attempt != (term, message.round) {
                    (run.attempt, run.agreed) = ((term, message.round), BTreeSet::new());
                }
            }
            QuorumKind::Heartbeat => self.beats(rid, by, term, now, out),
            _ => {}
        }
    }

    fn vote(&self, rid: Rid, by: Slot, vote: Slot, term: Term, out: &mut Out) {
        let durable = self.runs.get(&rid).and_then(|run| run.event(EventKind::Term));
        // A probe may have written the same vote again.
        if durable != Some((term, Some(vote))) {
            out.violate("Q9", format!("slot {by} votes for {vote} in term {term} before that is durable"));
        }
    }

    fn agreed(&self, rid: Rid, by: Slot, term: Term, out: &mut Out) {
        let run = self.runs.get(&rid).filter(|run| run.attempt.0 == term);
        let agreed = 1 + run.map_or(0, |run| run.agreed.len());
        if agreed < self.majority() {
            out.violate("Q10", format!("slot {by} enters term {term} though only {agreed} would vote for it"));
        }
    }

    /// Who has slept longer than a leader is missed, and followed one before, waits for two heartbeats.
    fn listened(&self, rid: Rid, by: Slot, now: u64, out: &mut Out) {
        let timers = &self.timers;
        let missed = timers.heartbeat_timeout + timers.election_max + 2 * timers.heartbeat;
        let Some((since, woke)) = self.slept.get(&by).copied() else { return };
        let followed = self.runs.get(&rid).and_then(|run| run.followed);
        let followed = followed.is_some_and(|at| at <= since && since - at < nanos(timers.heartbeat_timeout / 2));
        if followed && woke - since > nanos(missed) && now - woke < nanos(timers.heartbeat) {
            out.violate("27", format!("slot {by} has slept, and stands before it has listened"));
        }
    }

    fn beats(&mut self, rid: Rid, by: Slot, term: Term, now: u64, out: &mut Out) {
        let (majority, timeout) = (self.majority(), self.timers.heartbeat_timeout);
        let run = self.runs.entry(rid).or_default();
        if term < run.newest {
            out.violate("Q2", format!("slot {by} leads on in term {term}, and has heard of term {}", run.newest));
        }
        if run.leads != Some(term) {
            (run.leads, run.slow) = (Some(term), None);
            run.others.values_mut().for_each(|heard| heard.round = 0);
        }
        run.beat = now;
        // Its own block waits, and those who could elect another write theirs.
        let recent = |at: u64| now - at.min(now) < nanos(timeout - SLACK);
        let well = |heard: &&Heard| recent(heard.at) && heard.written.is_some_and(recent);
        let writes = run.writes.values().any(|(_, since)| now - since > nanos(timeout + SLACK));
        // It is read before it is written again, every half timeout.
        let waits = writes || now - run.durable_at.min(now) > nanos(timeout + timeout / 2 + SLACK);
        if !waits || run.others.values().filter(well).count() < majority {
            return run.slow = None;
        }
        let since = *run.slow.get_or_insert(now);
        if now - since > nanos(LOOKS) {
            out.violate("Q9", format!("slot {by} leads term {term} on, and its block waits while others write"));
        }
    }

    fn received(&mut self, rid: Rid, from: Slot, message: &QuorumMessage, now: u64, out: &mut Out) {
        self.silence(rid, now, out);
        let run = self.runs.entry(rid).or_default();
        let heard = run.others.entry(from).or_default();
        if message.written_ago_us != u32::MAX {
            heard.written = Some(now.saturating_sub(u64::from(message.written_ago_us) * 1000));
        }
        let of_sender = message.term.slot() == from;
        let binds = match message.kind {
            QuorumKind::PreVoteAnswer => !message.granted,
            QuorumKind::RequestVote | QuorumKind::Heartbeat | QuorumKind::Resignation => of_sender,
            QuorumKind::Vote | QuorumKind::HeartbeatAnswer => true,
            QuorumKind::PreVote | QuorumKind::Leave | QuorumKind::LeaveAnswer => false,
        };
        if binds && message.term < Term::LIMIT {
            run.newest = run.newest.max(message.term);
        }
        match message.kind {
            QuorumKind::PreVoteAnswer if message.granted && message.round == run.attempt.1 => {
                run.agreed.insert(from);
            }
            QuorumKind::HeartbeatAnswer if run.leads == Some(message.term) && message.round > heard.round => {
                (heard.round, heard.at) = (message.round, now);
            }
            QuorumKind::Heartbeat if of_sender && message.term >= run.newest => run.followed = Some(now),
            QuorumKind::Resignation => run.followed = None,
            _ => {}
        }
    }

    /// A leader that hears others has sent heartbeats.
    fn silence(&self, rid: Rid, now: u64, out: &mut Out) {
        let Some(run) = self.runs.get(&rid) else { return };
        let Some(term) = run.leads else { return };
        let quiet = now - run.beat.max(self.woke_at(usize::from(term.slot().0)));
        if quiet > nanos(self.timers.heartbeat_timeout / 2) {
            let ms = quiet / 1_000_000;
            out.violate("Q7", format!("the leader of term {term} has sent no heartbeat for {ms} ms"));
        }
    }

    fn confirmed(&self, rid: Rid, term: Term, round: u64, out: &mut Out) {
        let Some(run) = self.runs.get(&rid) else { return };
        let of_term = run.leads == Some(term);
        let answered = 1 + run.others.values().filter(|heard| of_term && heard.round >= round).count();
        if answered < self.majority() {
            out.violate("E11", format!("round {round} of term {term} counts as answered, and {answered} know of it"));
        }
    }
}

#[cfg(test)]
mod tests {
    use vellum_format::quorum::SlotEvent;
    use vellum_rt::sim::{SimConfig, World};

    use super::*;
    use crate::check::Checks;

    const RID: Rid = Rid(5);
    const TERM: Term = Term(16);

    fn message(kind: QuorumKind, term: Term, granted: bool) -> QuorumMessage {
        QuorumMessage { kind, term, round: 1, rid: RID, granted, written_ago_us: 0 }
    }

    fn found(facts: &[QuorumFact]) -> Vec<&'static str> {
        let checks = Checks::new(World::new(1, SimConfig::default()).clock());
        let mut checks = checks.borrow_mut();
        checks.quorum.members.watch(3, QuorumTimers::DEFAULT);
        facts.iter().for_each(|fact| checks.see(fact));
        checks.violations().iter().map(|violation| violation.invariant).collect()
    }

    #[test]
    fn q9_q10_votes_are_durable_and_agreed_to() {
        let by = Slot(0);
        let asks =
            QuorumFact::Sent { rid: RID, by, to: Slot(1), message: message(QuorumKind::RequestVote, TERM, false) };
        assert_eq!(found(&[asks]), ["Q9", "Q10"]);
        let stands = QuorumFact::Sent { rid: RID, by, to: Slot(1), message: message(QuorumKind::PreVote, TERM, false) };
        let agrees = message(QuorumKind::PreVoteAnswer, Term::NONE, true);
        let agrees = QuorumFact::Received { rid: RID, from: Slot(1), message: agrees };
        assert_eq!(found(&[stands, agrees, asks]), ["Q9"]);
    }

    #[test]
    fn q2_a_leader_that_has_heard_a_newer_term_says_no_more() {
        let beat = message(QuorumKind::Heartbeat, TERM, false);
        let beat = QuorumFact::Sent { rid: RID, by: Slot(0), to: Slot(1), message: beat };
        let newer = message(QuorumKind::HeartbeatAnswer, Term(33), false);
        let newer = QuorumFact::Received { rid: RID, from: Slot(1), message: newer };
        assert!(found(&[beat, newer, QuorumFact::Follows { rid: RID }]).is_empty());
        assert_eq!(found(&[beat, newer, beat]), ["Q2"]);
    }

    #[test]
    fn e11_a_round_is_confirmed_by_a_majority() {
        let beat = message(QuorumKind::Heartbeat, TERM, false);
        let beat = QuorumFact::Sent { rid: RID, by: Slot(0), to: Slot(1), message: beat };
        let answer = message(QuorumKind::HeartbeatAnswer, TERM, false);
        let answer = QuorumFact::Received { rid: RID, from: Slot(1), message: answer };
        let confirmed = QuorumFact::Confirmed { rid: RID, term: TERM, round: 1 };
        assert_eq!(found(&[beat, confirmed]), ["E11"]);
        assert!(found(&[beat, answer, confirmed]).is_empty());
    }

    #[test]
    fn q4_nobody_looks_back_before_its_elect_is_durable() {
        let looks = QuorumFact::LooksBack { rid: RID, by: Slot(0), term: TERM };
        assert_eq!(found(&[looks]), ["Q4"]);
        let event = SlotEvent { write: 1, rid: RID, term: TERM, vote: None, time_ms: 0, process: Default::default() };
        let mut block = SlotBlock::new(Slot(0));
        [EventKind::Begin, EventKind::Elect].into_iter().for_each(|kind| block.set(kind, event));
        let checks = Checks::new(World::new(1, SimConfig::default()).clock());
        let mut checks = checks.borrow_mut();
        checks.quorum.members.writes(ProcessId(1), 1, &block, 0);
        checks.quorum.members.written(ProcessId(1), 1, true, 0);
        checks.see(&looks);
        assert!(checks.violations().is_empty());
    }
}
