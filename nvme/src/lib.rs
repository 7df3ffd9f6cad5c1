//! Polled block devices behind one [`Device`] trait.
//!
//! A [`Device`] is shared by all reactors; each reactor opens its own [`Queue`] on it and polls that queue. Nothing here
//! knows the runtime: the owner of a queue registers [`Queue::process_completions`] as a poller and
//! [`Queue::wake_fd`] as what may end its sleep.
//!
//! Backends: [`uring`] (regular files and block devices), [`driver`] (NVMe controllers, over [`vfio`], [`vfio_user`] and [`emu`], a
//! model in this process), `spdk` (an installed SPDK, behind the feature of that name), [`memory`] (tests, scratch), [`fault`] (a seeded model of a device that lies, stalls, tears and dies).
//! [`spec`] holds the words of NVM Express.
//!
//! Promises every backend keeps (tests in `tests/` and in the backends hold them to it):
//! - an operation owns its memory until the device has answered, whatever happens to who asked;
//! - operations in flight together are not ordered; a flush covers the writes that were *complete* when it was
//!   submitted, on any queue of the device, and nothing else;
//! - after a failed flush the device answers [`DeviceError::Failed`] to everything, on every queue, for ever;
//! - no allocation per operation while a queue stays within its depth.

mod device;
mod device_spec;
pub mod driver;
pub mod emu;
mod error;
pub mod fault;
mod health;
mod image;
mod live_size;
pub mod memory;
mod open;
mod ops;
mod reservation;
#[cfg(feature = "spdk")]
pub mod spdk;
pub mod spec;
pub mod testing;
mod tracker;
pub mod uring;
mod valve;
pub mod vfio;
pub mod vfio_user;

pub use device::{Device, Geometry, IoDone, IoOp, Queue};
pub use device_spec::{DeviceSpec, EmuSpec};
pub use error::DeviceError;
pub use image::Image;
pub use open::{NvmeController, OpenMode, Opened, open, open_controller};
pub use ops::{IoFuture, OpFuture, ReadFuture};
pub use reservation::{HostId, Registrant, ReservationReport, Reservations};
pub use tracker::{MAX_TRACKERS, Ticket};
pub use valve::Valve;
