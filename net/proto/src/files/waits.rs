//! Who waits for whom, over all files and reactors: the engine has one such graph.
//!
//! Owners are nodes. A wait is added when a request begins to wait, changed when others come into its way, and removed
//! when it ends. Tables send their changes in order, and the answers that follow from a change only behind it: so what a
//! client has been told is in the graph, and a circle that is found was there. Every circle is found, when its last edge
//! arrives; the wait that closes it is the one to be refused.
//!
//! As in Linux, an owner of whom one thread waits counts as waiting. Bound: one entry per waiting request, and those are
//! bounded per client ([`super::MAX_FILE_WAITS_PER_CLIENT`]).

use std::collections::{BTreeMap, BTreeSet};

use vellum_base::{Ino, Rid};

use super::Owner;

/// A waiting request: the client's ticket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WaitId {
    pub rid: Rid,
    pub ticket: u64,
}

/// What a table tells the graph.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WaitChange {
    /// `id` waits for a lock of `ino`, and for all of these: in place of those it waited for before.
    Waits {
        id: WaitId,
        ino: Ino,
        owner: Owner,
        blockers: Vec<Owner>,
    },
    Ended {
        id: WaitId,
    },
}

struct Wait {
    ino: Ino,
    owner: Owner,
    blockers: Vec<Owner>,
}

#[derive(Default)]
pub struct WaitGraph {
    waits: BTreeMap<WaitId, Wait>,
    of_owner: BTreeMap<Owner, BTreeSet<WaitId>>,
}

impl WaitGraph {
    /// Applies what follows from one input of a table; halfway through nothing is true. The waits that close circles: they
    /// must be refused, and count no more, so that one circle costs one wait.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = WaitChange>) -> Vec<(WaitId, Ino)> {
        let mut changed = Vec::new();
        for change in changes {
            match change {
                WaitChange::Waits { id, ino, owner, blockers } => {
                    self.waits.insert(id, Wait { ino, owner, blockers });
                    self.of_owner.entry(owner).or_default().insert(id);
                    changed.push(id);
                }
                WaitChange::Ended { id } => drop(self.remove(id)),
            }
        }
        let closes = |graph: &WaitGraph, id: &WaitId| {
            graph.waits.get(id).is_some_and(|wait| graph.reaches(&wait.blockers, wait.owner))
        };
        let mut refused = Vec::new();
        for id in changed {
            if closes(self, &id) {
                refused.extend(self.remove(id).map(|wait| (id, wait.ino)));
            }
        }
        refused
    }

    fn remove(&mut self, id: WaitId) -> Option<Wait> {
        let wait = self.waits.remove(&id)?;
        if let Some(waits) = self.of_owner.get_mut(&wait.owner) {
            waits.remove(&id);
            if waits.is_empty() {
                self.of_owner.remove(&wait.owner);
            }
        }
        Some(wait)
    }

    /// Somebody among `from` waits, over others or directly, for `goal`.
    fn reaches(&self, from: &[Owner], goal: Owner) -> bool {
        let mut seen: BTreeSet<Owner> = from.iter().copied().collect();
        let mut todo: Vec<Owner> = from.to_vec();
        while let Some(owner) = todo.pop() {
            if owner == goal {
                return true;
            }
            for id in self.of_owner.get(&owner).into_iter().flatten() {
                let next = self.waits.get(id).map(|wait| wait.blockers.as_slice()).unwrap_or_default();
                todo.extend(next.iter().filter(|owner| seen.insert(**owner)));
            }
        }
        false
    }

    pub fn len(&self) -> usize {
        self.waits.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }
}
