//! Q: who leads, and who writes to the shared device, as the device sees it.
//!
//! Every write that a process submits is looked at. Of the members' own blocks: only the process of that slot writes it
//! [Q3], its terms never go back [Q2], it votes once in a term [Q9], FENCE says the truth [Q8]. (What a run had submitted when
//! it died, and had no answer to, it has told nobody: a later run may know nothing of it.) Of everything else: only a
//! process that was elected, has seen the leaders before it off, and has not stopped writes it [Q4, Q5], so that there is
//! one at a time [Q6]; and none serves before [Q1].

use std::collections::{BTreeMap, BTreeSet};

use vellum_base::{BLOCK_SIZE, Rid, Slot, Term};
use vellum_format::quorum::{EventKind, SlotBlock, SlotState};
use vellum_nvme::fault::{Fact as DeviceFact, ProcessId};
use vellum_server::Fact as ServerFact;

use super::Out;
use super::members::Members;
use crate::cluster::SlotsArea;

/// A leadership, from its ELECT on.
struct Leadership {
    process: ProcessId,
    /// FENCE was written: it may write from now on.
    fenced: bool,
    /// When that was.
    since: u64,
    stopped: bool,
}

/// A member's block on its way to the device.
struct Submitted {
    slot: Slot,
    term: Term,
    /// In which term it votes, and for whom.
    vote: Option<(Term, Slot)>,
}

/// A leader that does not sleep knows by then that it is deposed: its majority follows another one, its device is another's,
/// or it hears of the newer term. (That is 2 s and a stalled write; a tenth of it here.)
const NOTICES: u64 = 1_000_000_000;
/// Two processes that were started in one slot find each other before they have written the block in turn so often: each reads
/// it twice in the time in which a leader is missed, and votes a few times in between.
const MOST_TURNS: u32 = 12;

#[derive(Default)]
pub struct QuorumChecks {
    /// None without a quorum: then nothing is looked at.
    area: Option<SlotsArea>,
    nodes: BTreeMap<ProcessId, usize>,
    /// Runs of members, and the process of each.
    runs: BTreeMap<Rid, ProcessId>,
    /// Of each slot: the newest term that has landed, and its votes.
    terms: BTreeMap<Slot, Term>,
    votes: BTreeMap<(Slot, Term), Slot>,
    /// Blocks on their way, and the newest term that each process has submitted.
    submitted: BTreeMap<(ProcessId, u64), Submitted>,
    newest: BTreeMap<ProcessId, Term>,
    /// Whose BEGIN has landed.
    begun: BTreeSet<ProcessId>,
    leaderships: BTreeMap<Term, Leadership>,
    /// Nothing of them lands any more.
    off: BTreeSet<ProcessId>,
    /// Writes in flight, those of the members' blocks aside.
    in_flight: BTreeMap<ProcessId, BTreeSet<u64>>,
    /// Of each slot: who has written its block, the last one at the end, and how often one came back after another.
    writers: BTreeMap<Slot, (Vec<ProcessId>, u32)>,
    /// What members say.
    pub members: Members,
}

impl QuorumChecks {
    pub fn watch(&mut self, area: SlotsArea) {
        self.area = Some(area);
    }

    pub fn started(&mut self, process: ProcessId, node: usize) {
        self.nodes.insert(process, node);
    }

    /// The device lost its power, and what was on its way to it.
    pub fn power_lost(&mut self) {
        self.off.extend(self.nodes.keys());
    }

    /// The leader of that term is deposed and cannot know it yet. What lay in its socket when it fell asleep it may still
    /// answer when it wakes: nothing of that reaches the device, and nobody who has another leader listens to it.
    pub fn is_unaware(&self, term: Term, now: u64) -> bool {
        let Some(newer) = self.leaderships.iter().find(|(newer, l)| **newer > term && l.fenced).map(|(_, l)| l.since)
        else {
            return false;
        };
        let node = self.leaderships.get(&term).and_then(|l| self.nodes.get(&l.process));
        let woke = node.map_or(0, |node| self.members.woke_at(*node));
        now < newer.max(woke) + NOTICES
    }

    /// The node that was elected last.
    pub fn leader(&self) -> Option<usize> {
        let (_, leadership) = self.leaderships.last_key_value()?;
        self.nodes.get(&leadership.process).copied()
    }

    /// The process of a member's run.
    pub fn process_of(&self, rid: Rid) -> Option<ProcessId> {
        self.runs.get(&rid).copied()
    }

    /// Every process that ever ran in the slot.
    pub fn processes_of(&self, node: usize) -> Vec<ProcessId> {
        self.nodes.iter().filter(|(_, at)| **at == node).map(|(process, _)| *process).collect()
    }

    /// Its BEGIN is durable; before, it neither votes nor follows.
    pub fn takes_part(&self, process: ProcessId) -> bool {
        self.begun.contains(&process)
    }

    /// It was fenced, or lost its device.
    pub fn is_off(&self, process: ProcessId) -> bool {
        self.off.contains(&process)
    }

    pub fn device(&mut self, fact: &DeviceFact, out: &mut Out) {
        match fact {
            DeviceFact::Fenced { process } => {
                self.off.insert(*process);
                out.story.say(format!("process {} is fenced from the device", process.0));
            }
            DeviceFact::Written { process, id, landed } => {
                self.members.written(*process, *id, *landed, out.story.now());
                if let Some(block) = self.submitted.remove(&(*process, *id))
                    && *landed
                {
                    self.begun.insert(*process);
                    self.slot_landed(&block, out);
                }
                if let Some(writes) = self.in_flight.get_mut(process) {
                    writes.remove(id);
                }
            }
            DeviceFact::Writes { process, id, at_bytes, data } => {
                let Some(area) = self.area else { return };
                let first = area.blocks.start.bytes();
                let end = first + area.blocks.len_bytes() as u64;
                if (first..end).contains(at_bytes) {
                    let slot = Slot(((at_bytes - first) / BLOCK_SIZE as u64) as u8);
                    let state = SlotState::decode(data, slot, &area.fsid);
                    if let Some(block) = state.block() {
                        self.members.writes(*process, *id, block, out.story.now());
                    }
                    self.slot_written(*process, *id, slot, &state, out);
                } else {
                    self.in_flight.entry(*process).or_default().insert(*id);
                    self.written(*process, *at_bytes, out);
                }
            }
        }
    }

    fn slot_written(&mut self, process: ProcessId, id: u64, slot: Slot, state: &SlotState, out: &mut Out) {
        let node = self.nodes.get(&process).copied();
        if node != Some(usize::from(slot.0)) {
            return out
                .violate("Q3", format!("process {} of node {node:?} writes the block of slot {slot}", process.0));
        }
        let Some(block) = state.block() else {
            return out.violate("Q3", format!("slot {slot} writes what is no block: {state:?}"));
        };
        if let Some(begin) = block.get(EventKind::Begin) {
            self.runs.insert(begin.rid, process);
        }
        let contested = self.is_contested(process, slot, out);
        let term = block.newest_term();
        let own = self.newest.entry(process).or_default();
        let newest = self.terms.get(&slot).copied().unwrap_or_default().max(*own);
        *own = newest.max(term);
        if term < newest && !contested {
            out.violate("Q2", format!("slot {slot} goes back from term {newest} to {term}"));
        }
        let vote = block.get(EventKind::Term).and_then(|event| Some((event.term, event.vote?))).filter(|_| !contested);
        if let Some(vote) = vote {
            self.votes_once(slot, vote, out);
        }
        self.submitted.insert((process, id), Submitted { slot, term, vote });
        self.election(process, slot, block, out);
    }

    /// Another process writes the slot's block too, and was not there before us: both were started in one slot. Each sees the
    /// other when it reads the block next, and who sees it writes no more; until then terms and votes are those of two.
    fn is_contested(&mut self, process: ProcessId, slot: Slot, out: &mut Out) -> bool {
        let (writers, turns) = self.writers.entry(slot).or_default();
        if writers.last() != Some(&process) {
            let before = writers.len();
            writers.retain(|writer| *writer != process);
            *turns += u32::from(writers.len() < before);
            writers.push(process);
        }
        if *turns == MOST_TURNS {
            let two: Vec<u64> = writers.iter().rev().take(2).map(|writer| writer.0).collect();
            out.violate("Q3", format!("processes {two:?} write the block of slot {slot} in turn"));
        }
        *turns > 0
    }

    /// From now on others may hear of it.
    fn slot_landed(&mut self, block: &Submitted, out: &mut Out) {
        let Submitted { slot, term, vote } = *block;
        let newest = self.terms.entry(slot).or_default();
        *newest = term.max(*newest);
        if let Some((term, vote)) = vote
            && self.votes_once(slot, (term, vote), out)
            && self.votes.insert((slot, term), vote).is_none()
        {
            out.story.say(format!("slot {slot} votes for slot {vote} in term {term}"));
        }
    }

    fn votes_once(&self, slot: Slot, (term, vote): (Term, Slot), out: &mut Out) -> bool {
        let before = self.votes.get(&(slot, term)).filter(|before| **before != vote);
        if let Some(before) = before {
            out.violate("Q9", format!("slot {slot} votes for {before} and for {vote} in term {term}"));
        }
        before.is_none()
    }

    fn election(&mut self, process: ProcessId, slot: Slot, block: &SlotBlock, out: &mut Out) {
        let own = |kind| block.get(kind).filter(|event| self.runs.get(&event.rid) == Some(&process));
        if let Some(elect) = own(EventKind::Elect)
            && !self.leaderships.contains_key(&elect.term)
        {
            out.story.say(format!("slot {slot} is elected in term {}", elect.term));
            let leadership = Leadership { process, fenced: false, since: 0, stopped: false };
            self.leaderships.insert(elect.term, leadership);
        }
        if let Some(fence) = own(EventKind::Fence)
            && self.leaderships.get(&fence.term).is_some_and(|l| !l.fenced)
        {
            out.story.say(format!("slot {slot} has seen off all leaders before term {}", fence.term));
            self.older_are_gone("Q8", fence.term, out);
            self.is_newest(fence.term, out);
            if let Some(leadership) = self.leaderships.get_mut(&fence.term) {
                (leadership.fenced, leadership.since) = (true, out.story.now());
            }
        }
        if let Some(stop) = block.get(EventKind::Stop)
            && let Some(leadership) = self.leaderships.get_mut(&stop.term)
            && !std::mem::replace(&mut leadership.stopped, true)
        {
            out.story.say(format!("slot {slot} has stopped leading term {}", stop.term));
            let busy = self.in_flight.get(&process).map_or(0, BTreeSet::len);
            if leadership.process == process && busy > 0 {
                out.violate("Q5", format!("slot {slot} has stopped leading term {}, and {busy} writes fly", stop.term));
            }
            // A later run of the slot says it of a dead one: that must be off the device.
            if leadership.process != process && !self.off.contains(&leadership.process) {
                let dead = leadership.process.0;
                out.violate(
                    "Q8",
                    format!("slot {slot} says that term {} has stopped; process {dead} may write", stop.term),
                );
            }
        }
    }

    /// Every older leader that may write has stopped, or can write nothing any more. One whose ELECT is younger than our look
    /// at the blocks may not write yet, and never will: it finds our ELECT ([`Self::is_newest`]).
    fn older_are_gone(&self, invariant: &'static str, term: Term, out: &mut Out) {
        for (older, leadership) in self.leaderships.range(..term) {
            if leadership.fenced && !leadership.stopped && !self.off.contains(&leadership.process) {
                let process = leadership.process.0;
                out.violate(invariant, format!("term {term} leads, and process {process} of term {older} is not off"));
            }
        }
    }

    /// Who has seen the leaders before it off is not older than one that has done so before.
    fn is_newest(&self, term: Term, out: &mut Out) {
        let is_off = |term: &Term| self.leaderships.get(term).is_some_and(|l| self.off.contains(&l.process));
        let newer = self.leaderships.iter().rev().find(|(_, leadership)| leadership.fenced).map(|(newer, _)| *newer);
        if let Some(newer) = newer.filter(|newer| *newer > term && !is_off(&term)) {
            out.violate("Q8", format!("term {term} leads after term {newer} did"));
        }
    }

    fn written(&mut self, process: ProcessId, at_bytes: u64, out: &mut Out) {
        if !self.nodes.contains_key(&process) || self.off.contains(&process) {
            return; // mkfs; or it is refused
        }
        let leads = |l: &&Leadership| l.process == process && l.fenced && !l.stopped;
        if !self.leaderships.values().any(|l| leads(&l)) {
            let stopped = self.leaderships.values().any(|l| l.process == process && l.stopped);
            let invariant = if stopped { "Q5" } else { "Q4" };
            out.violate(invariant, format!("process {} leads nothing, and writes at byte {at_bytes}", process.0));
        }
    }

    pub fn server(&mut self, fact: &ServerFact, out: &mut Out) {
        let ServerFact::Serving { term } = fact else { return };
        if self.area.is_some() {
            self.older_are_gone("Q1", *term, out);
        }
    }
}
