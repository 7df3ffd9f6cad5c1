//! A worker: runs compactions for the leader, in a process that has the device open (a follower, or `vellum
//! compact-worker`).
//!
//! ```text
//!  connect (new rid, worker flag) -> Work { jobs } -> Compact { job } .. answered with its outcome or an error
//!      ^                               ^ new term: cancel, wait for the last write, Reassert { }, then Work again
//!      +-- refused, closed: cancel, wait for the last write
//! ```
//! Invariants
//! - A job is answered, well or badly, only when its last write has been: the leader reuses its space then.
//! - `Work` is said only when nothing runs of an earlier term or an earlier rid. It is the leader's proof that the space of
//!   what it had lost is free again; so a process (and a slot) runs one worker on a device.
//! - The leader's bound is also kept here: more jobs than it was told are refused.
//!
//! Not here: what a job is (`vellum_store::lsm`), and whom a leader hands jobs to ([`crate::crew`]).

mod jobs;
mod run;

pub use run::{WorkerError, WorkerOptions, run};
