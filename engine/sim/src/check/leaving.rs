//! U: while anyone remains mounted, a member that leaves in order leaves a majority behind [U1]; who says farewell is let go,
//! once or more often [U2, U3]. What is not let go ends the run as a liveness violation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use vellum_base::Rid;
use vellum_nvme::fault::ProcessId;
use vellum_server::Fact as ServerFact;

use super::Out;

/// A member that is gone may count for so long as one that is here: its leader has not missed it yet.
const MISSED_AFTER: Duration = Duration::from_millis(300);
/// Who was told for so long may end whoever needs it.
const STAYS: Duration = Duration::from_secs(2);

/// An operator told a process to stop.
struct Told {
    at: Duration,
    again: bool,
    /// It took no part in the quorum then, and leaves as it likes.
    stranger: bool,
    /// Clients that were mounted then.
    mounted: BTreeSet<Rid>,
}

#[derive(Default)]
pub struct Leaving {
    told: BTreeMap<ProcessId, Told>,
    /// Nodes that are not there, and since when.
    gone: BTreeMap<usize, Duration>,
}

/// A node as the run sees it.
pub struct NodeSeen {
    pub process: ProcessId,
    /// Its process runs and has not ended.
    pub here: bool,
    /// It was told to stop, and ended well.
    pub ended_well: bool,
}

impl Leaving {
    pub fn server(&mut self, fact: &ServerFact, out: &mut Out) {
        if let ServerFact::Farewell { term, rid } = fact {
            let name = out.name(*rid);
            out.story.say(format!("{name} says farewell to term {term}"));
        }
    }

    pub fn told(&mut self, process: ProcessId, now: Duration, stranger: bool, mounted: BTreeSet<Rid>) {
        let told = self.told.entry(process).or_insert(Told { at: now, again: false, stranger, mounted });
        told.again |= told.at != now;
    }

    /// The members at a moment; `is_mounted`: the client is still there.
    pub fn look(&mut self, nodes: &[NodeSeen], now: Duration, is_mounted: impl Fn(Rid) -> bool, out: &mut Out) {
        for (node, seen) in nodes.iter().enumerate() {
            if seen.here {
                self.gone.remove(&node);
            } else {
                self.gone.entry(node).or_insert(now);
            }
        }
        for (node, left) in nodes.iter().enumerate().filter(|(_, seen)| seen.ended_well) {
            let Some(told) = self.told.remove(&left.process) else { continue };
            let waited = told.again || now > told.at + STAYS;
            let Some(client) = told.mounted.iter().find(|rid| is_mounted(**rid)) else { continue };
            if waited || told.stranger {
                continue;
            }
            let remains = |other: &usize| self.gone.get(other).is_none_or(|since| told.at <= *since + MISSED_AFTER);
            let remain = (0..nodes.len()).filter(|other| *other != node).filter(remains).count();
            // Of fewer than three, one is enough.
            let majority = if nodes.len() < 3 { 1 } else { nodes.len() / 2 + 1 };
            if remain < majority {
                let (all, client) = (nodes.len(), out.name(*client));
                out.violate("U1", format!("node {node} leaves, {remain} of {all} remain, and {client} is mounted"));
            }
        }
    }
}
