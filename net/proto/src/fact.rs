//! What sessions and lock tables do, in words for the simulation's checkers: see [`vellum_base::probe`].

use vellum_base::{Rid, Term};
use vellum_wire::{LockGrant, LockMode, LockName};

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
    /// The client holds no more than this from now on.
    Weakened {
        term: Term,
        rid: Rid,
        name: LockName,
        mode: LockMode,
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
