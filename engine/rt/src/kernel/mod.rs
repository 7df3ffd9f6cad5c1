//! What the worlds on the kernel share, whatever executor drives their reactors: sockets, descriptors, clocks.
//!
//! - [`driver`]: which executor it is, and how it waits for a descriptor;
//! - [`stream`], [`listener`], [`datagram`], [`async_fd`]: IO, tried at once and waited for when it would block;
//! - [`clock`]: time and entropy; [`main_future`]: what a reactor is run for.

mod async_fd;
mod clock;
mod datagram;
mod driver;
mod listener;
mod main_future;
mod stream;

pub(crate) use async_fd::AsyncFd;
pub(crate) use clock::{clock, unpredictable, wall_clock};
pub(crate) use datagram::Datagram;
pub(crate) use driver::{Driver, Parts};
pub(crate) use listener::Listener;
pub(crate) use main_future::MainFuture;
pub(crate) use stream::Stream;
#[cfg(feature = "glommio")]
pub(crate) use stream::try_send;
