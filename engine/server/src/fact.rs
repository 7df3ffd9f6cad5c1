//! What a node does, in words for the simulation's checkers: see [`vellum_base::probe`].

use vellum_base::{Rid, Term};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fact {
    /// A reactor begins with these clients of the term before to wait for.
    Expects { term: Term, rids: Vec<Rid> },
    /// Clients are accepted from now on.
    Serving { term: Term },
    /// The greeting of this client is answered; `fresh`: it has never met a leader, and holds nothing.
    Greeted { term: Term, rid: Rid, fresh: bool },
    /// A client of the term before is back with its locks, or gone for good.
    Returned { term: Term, rid: Rid },
    /// Nobody of the term before is waited for any more.
    RecoveryComplete { term: Term },
    /// The client is given up: it uses nothing any more, and its locks go next.
    Reclaims { term: Term, rid: Rid },
    /// The client said farewell; its locks go next.
    Farewell { term: Term, rid: Rid },
}
