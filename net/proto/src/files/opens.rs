//! Inodes that clients have open although they gave the lease of their group away.
//!
//! A client that holds a lease opens and closes under it without a word. Before it gives the lease away it names what it
//! has open, and when it closes one of those it says so. So whoever holds WRITE on a group learns with the grant which of
//! its inodes somebody else may have open, and until the lease goes nobody else can open more.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use thiserror::Error;
use vellum_base::{Ino, Rid};

/// Most inodes that one client may have open on one reactor without their leases.
pub const MAX_OPENS_PER_CLIENT: usize = 1 << 20;

#[derive(Error, Clone, PartialEq, Eq, Debug)]
#[error("{open} inodes are open without their leases; {MAX_OPENS_PER_CLIENT} are allowed")]
pub struct TooManyOpens {
    pub open: usize,
}

#[derive(Default)]
pub struct OpenTable {
    pub(super) inodes: BTreeMap<Ino, BTreeSet<Rid>>,
    pub(super) clients: HashMap<Rid, BTreeSet<Ino>>,
    recovering: bool,
}

impl OpenTable {
    /// While `recovering`, every inode counts as open: its client may not have said so yet [L11].
    pub fn new(recovering: bool) -> OpenTable {
        OpenTable { recovering, ..OpenTable::default() }
    }

    pub fn opened(&mut self, rid: Rid, inos: &[Ino]) -> Result<(), TooManyOpens> {
        let mine = self.clients.entry(rid).or_default();
        let open = mine.len() + inos.len();
        if open > MAX_OPENS_PER_CLIENT {
            return Err(TooManyOpens { open });
        }
        for ino in inos {
            mine.insert(*ino);
            self.inodes.entry(*ino).or_default().insert(rid);
        }
        Ok(())
    }

    pub fn closed(&mut self, rid: Rid, inos: &[Ino]) {
        let Some(mine) = self.clients.get_mut(&rid) else { return };
        for ino in inos {
            if mine.remove(ino) {
                forget(&mut self.inodes, *ino, rid);
            }
        }
        if mine.is_empty() {
            self.clients.remove(&rid);
        }
    }

    /// Somebody besides `rid` has it open.
    pub fn is_open_elsewhere(&self, rid: Rid, ino: Ino) -> bool {
        self.recovering || self.inodes.get(&ino).is_some_and(|rids| rids.iter().any(|other| *other != rid))
    }

    /// Inodes of a group that others have open, ascending.
    pub fn elsewhere_in(&self, rid: Rid, group: u64) -> Vec<Ino> {
        let range = Ino::first_of_group(group)..=Ino::last_of_group(group);
        let open = self.inodes.range(range).filter(|(_, rids)| rids.iter().any(|other| *other != rid));
        open.map(|(ino, _)| *ino).collect()
    }

    /// The client is gone for good.
    pub fn reclaim(&mut self, rid: Rid) {
        while !self.reclaim_some(rid, usize::MAX) {}
    }

    /// A part of [`Self::reclaim`], of at most so many inodes. True when none is left.
    pub fn reclaim_some(&mut self, rid: Rid, most: usize) -> bool {
        for _ in 0..most {
            let Some(mine) = self.clients.get_mut(&rid) else { return true };
            let Some(ino) = mine.pop_first() else { break };
            forget(&mut self.inodes, ino, rid);
        }
        if self.clients.get(&rid).is_some_and(BTreeSet::is_empty) {
            self.clients.remove(&rid);
        }
        !self.clients.contains_key(&rid)
    }

    pub fn recovered(&mut self) {
        self.recovering = false;
    }

    /// Open inodes, for the status page.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }
}

fn forget(inodes: &mut BTreeMap<Ino, BTreeSet<Rid>>, ino: Ino, rid: Rid) {
    if let Some(rids) = inodes.get_mut(&ino) {
        rids.remove(&rid);
        if rids.is_empty() {
            inodes.remove(&ino);
        }
    }
}
