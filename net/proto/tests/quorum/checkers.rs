//! The invariants of the quorum, each a check of its own against what really happened in the world.

use std::collections::{BTreeMap, BTreeSet};

use vellum_base::{Rid, Slot, Term};
use vellum_format::quorum::{EventKind, SlotBlock, SlotState};
use vellum_proto::Time;
use vellum_wire::{QuorumKind, QuorumMessage};

#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Fact {
    Started {
        slot: Slot,
        rid: Rid,
    },
    Failed {
        rid: Rid,
    },
    /// `device`: the sender's own block as the device has it.
    Sent {
        by: Slot,
        to: Slot,
        message: QuorumMessage,
        device: SlotState,
    },
    Received {
        by: Slot,
        from: Slot,
        message: QuorumMessage,
    },
    Writes {
        rid: Rid,
    },
    BlockLanded {
        rid: Rid,
        before: SlotState,
        block: SlotBlock,
    },
    Lead {
        rid: Rid,
        slot: Slot,
        term: Term,
        blocks: Vec<SlotState>,
    },
    Serves {
        term: Term,
    },
    EngineWrote {
        rid: Rid,
        term: Term,
    },
    EngineStopped {
        term: Term,
    },
    RoundConfirmed {
        term: Term,
        begun: Time,
    },
    /// Dead, and nothing of it will land any more.
    Fenced {
        rid: Rid,
    },
}

#[derive(Default)]
pub struct Checkers {
    slots: usize,
    runs: BTreeMap<Slot, Vec<Rid>>,
    failed: BTreeSet<Rid>,
    fenced: BTreeSet<Rid>,
    /// ELECTs that are durable: run, when; and which of them are over by a durable STOP.
    elected: BTreeMap<Term, (Rid, Time)>,
    stopped: BTreeSet<Term>,
    led: BTreeMap<Term, Time>,
    engine_stopped: BTreeSet<Term>,
    /// Slots that would vote for (slot, attempt), the candidate included.
    pre_votes: BTreeMap<(Slot, u64), BTreeSet<Slot>>,
    /// Newest PRE_VOTE of a slot: its term and attempt.
    attempts: BTreeMap<Slot, (Term, u64)>,
    votes: BTreeMap<Slot, Term>,
    /// The story starts two processes in one slot.
    pub two_writers: bool,
    pub leads: u64,
    pub rounds: u64,
}

impl Checkers {
    pub fn new(slots: usize) -> Checkers {
        Checkers { slots, ..Checkers::default() }
    }

    pub fn runs(&self, slot: Slot) -> Vec<Rid> {
        self.runs.get(&slot).cloned().unwrap_or_default()
    }

    pub fn check(&mut self, now: Time, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Started { slot, rid } => self.runs.entry(*slot).or_default().push(*rid),
            Fact::Failed { rid } => drop(self.failed.insert(*rid)),
            Fact::Fenced { rid } => drop(self.fenced.insert(*rid)),
            Fact::Received { by, from, message } => self.count_pre_vote(*by, *from, message),
            Fact::Sent { by, to, message, device } => {
                self.q9_votes_are_durable(*by, *to, message, device)?;
                self.q10_a_majority_agreed(*by, message)?;
            }
            Fact::Writes { rid } if self.failed.contains(rid) => {
                return Err(format!("Q3: {rid} writes on though it knows another writer of its slot"));
            }
            Fact::Writes { .. } => {}
            Fact::BlockLanded { rid, before, block } => {
                self.q2_terms_never_go_back(before, block)?;
                self.q3_one_writer(*rid, block)?;
                self.note_block(now, block);
                self.q8_fence_says_the_truth(before, block)?;
            }
            Fact::Lead { rid, slot, term, blocks } => {
                self.q4_elect_is_durable(*slot, *rid, *term, blocks)?;
                self.q1_nobody_else_leads(*term)?;
                self.leads += 1;
            }
            Fact::Serves { term } => {
                if let Some(newer) = self.led.keys().next_back().filter(|newest| *newest >= term) {
                    return Err(format!("Q1: term {term} is served after term {newer}"));
                }
                self.led.insert(*term, now);
            }
            Fact::EngineWrote { rid, term } => {
                self.q5_no_write_after_stop(*rid, *term)?;
                self.q6_one_node_writes(*rid, *term)?;
            }
            Fact::EngineStopped { term } => drop(self.engine_stopped.insert(*term)),
            Fact::RoundConfirmed { term, begun } => {
                self.rounds += 1;
                self.gate_no_newer_leader_before(*term, *begun)?;
            }
        }
        Ok(())
    }

    /// Which older ELECT, durable before that of `term`, is neither stopped nor really fenced. One that became durable
    /// later finds the newer one when it reads the blocks.
    fn alive_before(&self, term: Term) -> Option<Term> {
        let ours = self.elected.get(&term).map_or(Time(u64::MAX), |e| e.1);
        let over =
            |t: &Term, rid: &Rid| self.stopped.contains(t) || self.fenced.contains(rid) || self.failed.contains(rid);
        self.elected.iter().find(|(t, (rid, at))| **t < term && *at <= ours && !over(t, rid)).map(|(t, _)| *t)
    }

    fn q1_nobody_else_leads(&self, term: Term) -> Result<(), String> {
        match self.alive_before(term) {
            Some(other) => {
                Err(format!("Q1: term {term} is served while the leader of {other} is not stopped or fenced"))
            }
            None => Ok(()),
        }
    }

    fn q2_terms_never_go_back(&self, before: &SlotState, block: &SlotBlock) -> Result<(), String> {
        let Some(before) = before.block().filter(|_| !self.two_writers) else { return Ok(()) };
        for kind in [EventKind::Term, EventKind::Elect, EventKind::Fence, EventKind::Stop] {
            let term = |b: &SlotBlock| b.get(kind).map_or(Term::NONE, |e| e.term);
            if term(block) < term(before) {
                return Err(format!("Q2: {kind:?} of slot {} goes back", block.slot));
            }
        }
        if block.newest_term() < before.newest_term() || block.newest_write() <= before.newest_write() {
            return Err(format!("Q2: slot {} goes back", block.slot));
        }
        Ok(())
    }

    fn q3_one_writer(&self, rid: Rid, block: &SlotBlock) -> Result<(), String> {
        let runs = self.runs.get(&block.slot).map_or(&[][..], |r| r);
        if !runs.contains(&rid) {
            return Err(format!("Q3: {rid} of another slot writes the block of slot {}", block.slot));
        }
        Ok(())
    }

    fn note_block(&mut self, now: Time, block: &SlotBlock) {
        if let Some(elect) = block.get(EventKind::Elect) {
            self.elected.entry(elect.term).or_insert((elect.rid, now));
        }
        if let Some(stop) = block.get(EventKind::Stop) {
            self.stopped.insert(stop.term);
        }
    }

    fn q4_elect_is_durable(&self, slot: Slot, rid: Rid, term: Term, blocks: &[SlotState]) -> Result<(), String> {
        let elect = blocks[slot.index()].block().and_then(|b| b.get(EventKind::Elect));
        match elect.is_some_and(|e| e.term == term && e.rid == rid) {
            true => Ok(()),
            false => Err(format!("Q4: term {term} is served before its ELECT is durable")),
        }
    }

    fn q5_no_write_after_stop(&self, rid: Rid, term: Term) -> Result<(), String> {
        match self.stopped.contains(&term) && !self.fenced.contains(&rid) {
            true => Err(format!("Q5: {rid} writes after the STOP of its term {term}")),
            false => Ok(()),
        }
    }

    fn q6_one_node_writes(&self, rid: Rid, term: Term) -> Result<(), String> {
        match self.led.keys().next_back().is_some_and(|newest| *newest > term) {
            true => Err(format!("Q6: {rid} of term {term} writes though a newer term is served")),
            false => Ok(()),
        }
    }

    fn q8_fence_says_the_truth(&self, before: &SlotState, block: &SlotBlock) -> Result<(), String> {
        let known = before.block().and_then(|b| b.get(EventKind::Fence)).map(|e| e.term);
        let Some(fence) = block.get(EventKind::Fence).filter(|e| Some(e.term) != known) else { return Ok(()) };
        match self.alive_before(fence.term) {
            Some(other) => Err(format!("Q8: FENCE of {} though the leader of {other} lives", fence.term)),
            None => Ok(()),
        }
    }

    fn q9_votes_are_durable(
        &mut self,
        by: Slot,
        to: Slot,
        message: &QuorumMessage,
        device: &SlotState,
    ) -> Result<(), String> {
        let (term, vote) = match message.kind {
            QuorumKind::Vote if message.granted => (message.term, to),
            QuorumKind::RequestVote => (message.term, by),
            _ => return Ok(()),
        };
        let durable = device.block().and_then(|b| b.get(EventKind::Term));
        // A probe may have written the same vote again; a newer term may be on its way.
        if durable.is_none_or(|e| e.term != term || e.vote != Some(vote)) {
            return Err(format!("Q9: slot {by} votes for {vote} in term {term} before that is durable"));
        }
        if self.votes.insert(by, term).is_some_and(|before| before > term) {
            return Err(format!("Q9: slot {by} votes in term {term} after a vote in a newer one"));
        }
        Ok(())
    }

    fn count_pre_vote(&mut self, by: Slot, from: Slot, message: &QuorumMessage) {
        if message.kind == QuorumKind::PreVoteAnswer && message.granted {
            self.pre_votes.entry((by, message.round)).or_default().insert(from);
        }
    }

    fn q10_a_majority_agreed(&mut self, by: Slot, message: &QuorumMessage) -> Result<(), String> {
        if message.kind == QuorumKind::PreVote {
            self.attempts.insert(by, (message.term, message.round));
            return Ok(());
        }
        if message.kind != QuorumKind::RequestVote {
            return Ok(());
        }
        let majority = if self.slots < 3 { 1 } else { self.slots / 2 + 1 };
        let attempt = self.attempts.get(&by).filter(|(term, _)| *term == message.term).map_or(u64::MAX, |a| a.1);
        let agreed = 1 + self.pre_votes.get(&(by, attempt)).map_or(0, BTreeSet::len);
        match agreed >= majority {
            true => Ok(()),
            false => Err(format!("Q10: slot {by} enters term {} though only {agreed} would vote for it", message.term)),
        }
    }

    fn gate_no_newer_leader_before(&self, term: Term, begun: Time) -> Result<(), String> {
        if let Some((newer, _)) = self.led.iter().find(|(t, at)| **t > term && **at < begun) {
            return Err(format!("gate: a round of term {term} is confirmed though {newer} was served before it began"));
        }
        if self.slots >= 3
            && let Some((newer, _)) = self.elected.iter().find(|(t, (_, at))| **t > term && *at < begun)
        {
            return Err(format!(
                "gate: a round of term {term} is confirmed though {newer} was elected before it began"
            ));
        }
        Ok(())
    }
}
