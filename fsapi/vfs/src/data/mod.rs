//! File content: the write-back buffer, the map to the device, reading, truncation, holes, copying.

pub(crate) mod buffer;
pub(crate) mod commit;
mod copy;
pub(crate) mod extents;
pub(crate) mod frame;
mod fsync;
mod holes;
pub(crate) mod read;
pub(crate) mod read_ahead;
pub(crate) mod room;
pub(crate) mod runs;
pub(crate) mod seek;
mod share;
pub(crate) mod truncate;
pub(crate) mod write;
pub(crate) mod writeback;
