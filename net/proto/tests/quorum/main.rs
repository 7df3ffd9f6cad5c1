//! The quorum machine against a modelled world: several members in virtual time on a shared device that is slow, fails
//! and stalls, over a network that loses, delays and cuts. The checkers are the invariants Q1 to Q10 of the specification
//! and the gate; random runs print their seed (`QUORUM_SEED` runs one, `QUORUM_RUNS` more of them, `QUORUM_TRACE` tells its
//! story).

mod checkers;
mod mutants;
mod random;
mod stories;
mod world;
