//! What sessions, lock tables and quorum members do, in words for the simulation's checkers: see [`vellum_base::probe`].

use vellum_base::{Rid, Slot, Term};
use vellum_wire::{LockGrant, LockMode, LockName, QuorumMessage};

/// Of the engine's lock tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LockFact {
    Opened {
        term: Term,
        recovering: bool,
    },
    Granted {
        term: Term,
        rid: Rid,
        grant: LockGrant,
    },
    /// A client said that it holds this from the term before.
    Reasserted {
        term: Term,
        rid: Rid,
        name: LockName,
        mode: LockMode,
    },
    /// An invalidation goes to the client.
    Asked {
        term: Term,
        rid: Rid,
        name: LockName,
    },
    /// The client holds no more than this from now on.
    Weakened {
        term: Term,
        rid: Rid,
        name: LockName,
        mode: LockMode,
        /// No invalidation of it is under way any more.
        answered: bool,
    },
}

/// Of both ends of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionFact {
    /// The engine handles a request.
    Handled { term: Term, rid: Rid, request: u64 },
    /// A response reaches the client's caller.
    Answered { term: Term, rid: Rid, request: u64 },
}

/// Of a member of the quorum; `rid` is its run's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuorumFact {
    Sent {
        rid: Rid,
        by: Slot,
        to: Slot,
        message: QuorumMessage,
    },
    Received {
        rid: Rid,
        from: Slot,
        message: QuorumMessage,
    },
    /// It is elected in `term`, and asks for all blocks, to see who led before.
    LooksBack {
        rid: Rid,
        by: Slot,
        term: Term,
    },
    /// A majority is said to have answered this heartbeat round, or a later one.
    Confirmed {
        rid: Rid,
        term: Term,
        round: u64,
    },
    /// It leads nothing, whatever it did before.
    Follows {
        rid: Rid,
    },
}
