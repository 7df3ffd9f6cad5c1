//! The deterministic simulation: many nodes with many reactors on one thread, in virtual time.
//!
//! A run is a pure function of its seed and of the program: the order in which ready tasks run, the time they take,
//! and everything that the network does are drawn from seeded generators. [`World::trace_hash`] folds every step, so that
//! two runs can be compared.
//!
//! - [`world`]: nodes, scheduling, time, faults by hand; [`config`]: faults by chance;
//! - [`core`]: what reactors share (clock, entropy, events, trace); [`driver`]: one reactor's view of it;
//! - [`network`]: connections, listeners, datagrams between nodes; [`net`]: the sockets that tasks hold.
//!
//! What it does not simulate: threads (a task runs undisturbed from one await to the next), and hidden inputs: code under
//! test must not read clocks, files, addresses or the order of a `HashMap`.

mod clock;
mod config;
mod connection;
mod core;
mod driver;
pub(crate) mod net;
mod network;
mod trace;
mod world;

pub use config::SimConfig;
pub use world::{NodeId, ReactorHandle, World, WorldClock};

pub(crate) use driver::Driver;
