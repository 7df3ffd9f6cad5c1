//! What a client does, in words for the simulation's checkers: see [`vellum_base::probe`].

use vellum_base::{BatchNo, ItemOp, Rid, Term};
use vellum_wire::{LockGrant, LockMode, LockName};

use crate::Client;
use crate::cache::group_of;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fact {
    /// A grant is noted; `dirty`: undurable changes are under a lock of which nothing was held.
    Granted { rid: Rid, grant: LockGrant, dirty: bool },
    /// The client's view of a lock that it gives away, after all is done; `dirty`: undurable changes are left under it.
    Weakened { rid: Rid, name: LockName, mode: LockMode, dirty: bool },
    /// A lock is used from memory or after a grant, within the lease.
    Used { rid: Rid, name: LockName, mode: LockMode },
    /// What a new leader is told.
    Reports { rid: Rid, term: Term, held: Vec<LockGrant> },
    /// A new leader knows everything of this client.
    Recovered { rid: Rid, term: Term },
    /// All batches up to this one are believed to be durable.
    Durable { rid: Rid, through: BatchNo },
    /// Nothing is used any more.
    Ended { rid: Rid },
}

fn group_of_op(op: &ItemOp) -> u64 {
    match op {
        ItemOp::Put { key, .. } | ItemOp::Delete { key } => group_of(key),
        ItemOp::DeleteInode { ino } => ino.group(),
    }
}

impl Client {
    /// Changes under the lock that are not known to be durable.
    pub(crate) fn is_dirty(&self, name: LockName) -> bool {
        let LockName::Group(group) = name else { return false };
        let retained = self.batches.retained.borrow();
        let open = self.batches.open.borrow().ops_now();
        retained.iter().flat_map(|batch| batch.ops.iter()).chain(&open).any(|op| group_of_op(op) == group)
    }
}
