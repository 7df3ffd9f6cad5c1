//! Epochs: the unit of atomic durability. `coordinator` decides when one closes, is sealed and durable; `local` counts
//! what belongs to it on one reactor; `log` places parts; `ring` says where logical positions lie.

pub mod coordinator;
mod local;
mod log;
mod ring;

pub use coordinator::{Command, Coordinator, Start};
pub use local::{LocalEpochs, Part};
pub use log::LogWriter;
pub use ring::Ring;
