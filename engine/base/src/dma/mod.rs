//! Memory that devices and sockets read and write directly.
//!
//! - [`buf`]: [`DmaBuf`] (owned, writable) and [`DmaSlice`] (shared, read-only);
//! - [`slabs`]: where buffers come from;
//! - [`arena`]: where they come from instead once a device asked for memory that it can address: one span of address space,
//!   backed by memory files, so that it can be mapped for an IOMMU or given to another process;
//! - [`shared`]: pages that this process and a device use at the same time (queues, doorbell buffers).

pub mod arena;
mod buf;
mod shared;
pub mod slabs;

pub use arena::Arena;
pub use buf::{DmaBuf, DmaSlice, KEPT_BYTES};
pub use shared::SharedPages;
