//! The simulated cluster: a node over a device that loses, tears and delays, clients over a network that breaks, all in
//! one thread and virtual time, from one seed.
//!
//! - [`run`]: one run, its faults and its end; [`server`]: the node's lives; [`client`]: work on items, [`gateway`]: on names and files;
//! - [`file`]: what they write; [`history`]: what must then be found, and who may hold which lock; [`inspect`]: what a
//!   device holds after a crash; [`agent`]: who walks the index meanwhile.
//!
//! Checked: P1 (what was acknowledged as durable survives), P2 (a crash leaves a prefix of each client's batches, each
//! whole), P4 and L1 (nobody reads stale state, no two clients hold conflicting locks), E9 (an index walk misses no change), the store's own checker, and that
//! all work ends once the faults have.

pub mod agent;
pub mod client;
pub mod file;
pub mod gateway;
pub mod history;
pub mod inspect;
pub mod run;
pub mod server;

pub use run::{Outcome, run};
