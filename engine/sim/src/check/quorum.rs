//! Q: who leads, and who writes to the shared device, as the device sees it.
//!
//! Every write that a process submits is looked at. Of the members' own blocks: only the process of that slot writes it
//! [Q3], its terms never go back [Q2], it votes once in a term [Q9], FENCE says the truth [Q8]. Of everything else: only a
//! process that was elected, has seen the leaders before it off, and has not stopped writes it [Q4, Q5], so that there is
//! one at a time [Q6]; and none serves before [Q1].

use std::collections::{BTreeMap, BTreeSet};

use vellum_base::{BLOCK_SIZE, Rid, Slot, Term};
use vellum_format::quorum::{EventKind, SlotBlock, SlotState};
use vellum_nvme::fault::{Fact as DeviceFact, ProcessId};
use vellum_server::Fact as ServerFact;

use super::Out;
use crate::cluster::SlotsArea;

/// A leadership, from its ELECT on.
struct Leadership {
    process: ProcessId,
    /// FENCE was written: it may write from now on.
    fenced: bool,
    stopped: bool,
}

#[derive(Default)]
pub struct QuorumChecks {
    /// None without a quorum: then nothing is looked at.
    area: Option<SlotsArea>,
    nodes: BTreeMap<ProcessId, usize>,
    /// Runs of members, and the process of each.
    runs: BTreeMap<Rid, ProcessId>,
    /// Of each slot: the newest term, and its votes.
    terms: BTreeMap<Slot, Term>,
    votes: BTreeMap<(Slot, Term), Slot>,
    leaderships: BTreeMap<Term, Leadership>,
    /// Nothing of them lands any more.
    off: BTreeSet<ProcessId>,
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
            DeviceFact::Writes { process, at_bytes, data } => {
                let Some(area) = self.area else { return };
                let first = area.blocks.start.bytes();
                let end = first + area.blocks.len_bytes() as u64;
                if (first..end).contains(at_bytes) {
                    let slot = Slot(((at_bytes - first) / BLOCK_SIZE as u64) as u8);
                    self.slot_written(*process, slot, &SlotState::decode(data, slot, &area.fsid), out);
                } else {
                    self.written(*process, *at_bytes, out);
                }
            }
        }
    }

    fn slot_written(&mut self, process: ProcessId, slot: Slot, state: &SlotState, out: &mut Out) {
        let node = self.nodes.get(&process).copied();
        if node != Some(usize::from(slot.0)) {
            return out
                .violate("Q3", format!("process {} of node {node:?} writes the block of slot {slot}", process.0));
        }
        let Some(block) = state.block() else {
            return out.violate("Q3", format!("slot {slot} writes what is no block: {state:?}"));
        };
        let newest = self.terms.entry(slot).or_default();
        if block.newest_term() < *newest {
            let (term, newest) = (block.newest_term(), *newest);
            out.violate("Q2", format!("slot {slot} goes back from term {newest} to {term}"));
        }
        *newest = block.newest_term().max(*newest);
        if let Some(begin) = block.get(EventKind::Begin) {
            self.runs.insert(begin.rid, process);
        }
        self.vote(slot, block, out);
        self.election(process, slot, block, out);
    }

    fn vote(&mut self, slot: Slot, block: &SlotBlock, out: &mut Out) {
        let Some(event) = block.get(EventKind::Term) else { return };
        let Some(vote) = event.vote else { return };
        match self.votes.insert((slot, event.term), vote) {
            Some(before) if before != vote => {
                out.violate("Q9", format!("slot {slot} votes for {before} and for {vote} in term {}", event.term));
            }
            Some(_) => {}
            None => out.story.say(format!("slot {slot} votes for slot {vote} in term {}", event.term)),
        }
    }

    fn election(&mut self, process: ProcessId, slot: Slot, block: &SlotBlock, out: &mut Out) {
        let own = |kind| block.get(kind).filter(|event| self.runs.get(&event.rid) == Some(&process));
        if let Some(elect) = own(EventKind::Elect)
            && !self.leaderships.contains_key(&elect.term)
        {
            out.story.say(format!("slot {slot} is elected in term {}", elect.term));
            let leadership = Leadership { process, fenced: false, stopped: false };
            self.leaderships.insert(elect.term, leadership);
        }
        if let Some(fence) = own(EventKind::Fence)
            && self.leaderships.get(&fence.term).is_some_and(|l| !l.fenced)
        {
            out.story.say(format!("slot {slot} has seen off all leaders before term {}", fence.term));
            self.older_are_gone("Q8", fence.term, out);
            self.is_newest(fence.term, out);
            if let Some(leadership) = self.leaderships.get_mut(&fence.term) {
                leadership.fenced = true;
            }
        }
        if let Some(stop) = block.get(EventKind::Stop)
            && let Some(leadership) = self.leaderships.get_mut(&stop.term)
            && !std::mem::replace(&mut leadership.stopped, true)
        {
            out.story.say(format!("slot {slot} has stopped leading term {}", stop.term));
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
