//! The native world: one reactor per thread, each on one io_uring (or, with the feature `glommio`, on one executor of
//! glommio's: [`Executor`]).
//!
//! - [`ops`]: every operation in flight of the reactor's tasks in its ring (unsafe code);
//! - [`run`]: the reactor's loop, and when it sleeps;
//! - [`awake`]: what keeps idle cores from halting meanwhile;
//! - [`threads`]: reactors on threads and cores;
//! - [`driver`]: how tasks wait, entropy, doorbell; [`socket`]: connected sockets on the ring.

mod awake;
mod config;
mod driver;
mod ops;
mod patience;
mod run;
mod socket;
mod threads;

pub use config::{Config, Executor, PollMode};
pub use threads::{ReactorThread, Reactors, block_on, block_on_with, spawn_thread, spawn_thread_with, start};

pub(crate) use driver::Driver;
pub(crate) use ops::OpId;
pub(crate) use socket::Socket;
