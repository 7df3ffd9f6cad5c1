//! The native world: one reactor per thread on one io_uring each.
//!
//! - [`ring`]: the ring and every operation in flight (the crate's one home of unsafe code);
//! - [`run`]: the reactor's loop, and when it sleeps;
//! - [`threads`]: reactors on threads and cores;
//! - [`driver`]: clock, entropy, doorbell; [`stream`], [`listener`], [`datagram`], [`async_fd`]: IO.

mod async_fd;
mod config;
mod datagram;
mod driver;
mod listener;
mod ring;
mod run;
mod stream;
mod threads;

pub use config::{Config, PollMode};
pub use threads::{ReactorThread, Reactors, block_on, block_on_with, spawn_thread, start};

pub(crate) use async_fd::AsyncFd;
pub(crate) use datagram::Datagram;
pub(crate) use driver::{Driver, clock, wall_clock};
pub(crate) use listener::Listener;
pub(crate) use ring::OpId;
pub(crate) use stream::Stream;
