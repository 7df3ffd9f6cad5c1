//! The simulated cluster: nodes over a shared device that loses, tears and delays, clients over a network that breaks, all in
//! one thread and virtual time, from one seed.
//!
//! - [`plan`]: what a run consists of, drawn from its seed; [`fault`]: what goes wrong; [`mod@run`]: a plan carried out;
//! - [`cluster`]: the nodes' lives; [`fencer`]: who ends those of others; [`work`]: what clients do;
//! - [`check`]: the invariants, one file per family; [`story`]: what happened, in sentences;
//! - [`shrink`]: a failing run made smaller; [`mutants`]: deliberate bugs, to prove that the checkers bite;
//!   [`mod@idle`]: how fast virtual time goes.

pub mod check;
pub mod cluster;
pub mod fault;
pub mod fencer;
pub mod idle;
pub mod mutants;
pub mod plan;
pub mod run;
pub mod shrink;
pub mod story;
pub mod work;

pub use plan::{Edits, Plan, Profile};
pub use run::{Outcome, run};
