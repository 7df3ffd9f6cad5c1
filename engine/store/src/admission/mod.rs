//! Batches: from a client's request to records in an epoch.
//!
//! `home` runs on the client's home reactor: one batch of a client after the other, duplicates recognised, all owners
//! reserved, then the epoch taken. `blocks` says what a batch does to blocks. `reserve` runs on the owner of the keys: rights, structure, old values, room. `check`
//! says what a value must look like, `pace` how fast batches may come. After the last reservation nothing can fail.

mod blocks;
mod check;
mod engine;
mod home;
mod pace;
mod reserve;

pub(crate) use home::Home;
pub use home::Judge;
pub(crate) use pace::{Pace, rate};
pub(crate) use reserve::Reservations;
