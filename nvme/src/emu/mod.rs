//! A model of an NVMe controller: registers, admin and IO queues, namespaces, faults. The driver runs over it in tests and
//! benchmarks, and other drivers through [`crate::vfio_user::server`].
//!
//! - [`bus`]: what the controller sees of its host (memory, doorbells); [`process`]: a host in the same process;
//! - [`controller`]: registers and life cycle; `queue`, `admin`, `io`, `data`: the commands;
//! - [`subsystem`]: namespaces, which several controllers may share; [`medium`]: what they are stored on;
//! - `reservation`: which of several hosts may write; [`faults`]: what it may do wrong, by rules and a seed.
//!
//! The model has no thread and no clock: it acts when somebody calls [`Controller::run_queue`]. It promises to touch host
//! memory only as commands say, and not at all once it has shown CSTS.RDY = 0: what the driver relies on.
//! Not modelled: interrupts, metadata, fused commands, namespace management.

mod admin;
pub mod bus;
pub mod controller;
mod data;
pub mod faults;
mod io;
pub mod medium;
pub mod process;
mod queue;
mod reservation;
pub mod subsystem;

pub use bus::{Bus, BusFault};
pub use controller::{Controller, ControllerConfig};
pub use faults::{Fault, FaultRule, When};
pub use medium::Medium;
pub use process::{EmuTransport, ProcessBus};
pub use subsystem::{NamespaceConfig, Subsystem};
