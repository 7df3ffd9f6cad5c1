//! The NVMe driver: queue pairs polled from userspace, over any [`Transport`]. No `unsafe` here.
//!
//! - [`transport`]: registers, doorbells, device addresses;
//! - [`rings`]: one submission and one completion ring, shadow doorbells; `pages`: where a command's data is;
//! - `admin`: the admin queue; `bring_up`: reset and initialisation as a state machine;
//! - [`controller`]: what all queues share: state, recovery, events, namespaces;
//! - `reservation`: which of several hosts may write;
//! - [`queue`]: the queue pair of one reactor behind the [`crate::Queue`] trait; [`device`]: a namespace as a [`crate::Device`].
//!
//! Invariants, also towards a controller that lies:
//! - memory lent to a command is given back only when the command was answered, its queue was deleted, or the controller
//!   is known to have stopped; where that cannot be known it is kept until the transport is closed;
//! - an answer is taken only for a command that is at the device, by id and generation, and from its own queue;
//! - nothing that the controller says is used as an index, a length or an address without a check;
//! - the hot path takes no lock, allocates nothing and makes no system call; each poll rings each doorbell at most once, and the
//!   completion queue's when the controller could need the room.

mod admin;
mod bring_up;
pub mod controller;
pub mod device;
mod error;
mod events;
mod namespace;
mod pages;
pub mod queue;
mod reservation;
mod rings;
pub mod transport;

pub use controller::{Controller, ControllerInfo, Counters, Options};
pub use device::NvmeDevice;
pub use error::{ControllerError, TransportError};
pub use namespace::NamespaceInfo;
pub use queue::NvmeQueue;
pub use transport::Transport;
