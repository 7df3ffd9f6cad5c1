//! One io_uring of a thread, and the lanes of all who submit to it.
//!
//! A reactor's sockets and its device queues use one ring ([`current`]): whatever a turn has started goes to the kernel with one
//! system call, and where the reactor then sleeps, that call is the sleep. A device queue without such a reactor has a ring of
//! its own ([`Kind::Watched`]).
//!
//! ```text
//!  sockets   queue   queue          Lane::push(entry, key)    Lane::take: answers to its keys
//!     │        │       │                     │                          ▲
//!  ┌──┴────────┴───────┴──┐                  ▼                          │
//!  │         Ring         │ ── enter / wait ── the kernel ── reap: by lane
//!  └──────────────────────┘
//! ```
//!
//! Invariants: an answer reaches the lane that pushed its entry, and no other; a lane's index is used again only when the kernel
//! has answered everything of the one before; nothing that was pushed is lost when the submission queue is full.

mod current;
mod lane;
mod ring;

pub use current::{Installed, current, install};
pub use io_uring::{opcode, squeue, types};
pub use lane::Lane;
pub use ring::{Answer, Kind, Ring};

#[cfg(test)]
mod tests;
