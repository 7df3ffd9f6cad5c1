//! An NVMe controller served by another process over a unix socket: the vfio-user protocol 0.1, as libvfio-user and QEMU
//! speak it.
//!
//! - [`client`]: a [`crate::driver::Transport`]. The arena's memory files are given to the server, doorbells are a page
//!   that it shares, everything else (registers, mapping) is a message;
//! - [`server`]: the controller model ([`crate::emu`]) for such clients, ours or others';
//! - `wire`: messages; `socket`: framing with descriptors; `mapping`: memory of another process (the home of unsafe).
//!
//! Trust: either side bounds and checks every message; a malformed one ends the session. What neither can prevent is that
//! the other shortens a file whose memory it has shared, which raises SIGBUS: so the client wants a server of its own user
//! or root, and both our sides seal their files.

pub mod client;
mod mapping;
pub mod server;
mod socket;
mod wire;

pub use client::VfioUserTransport;
pub use server::{Server, ServerConfig};
