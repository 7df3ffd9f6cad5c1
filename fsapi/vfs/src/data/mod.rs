//! File content: the write-back buffer, the map to the device, reading, truncation.

pub(crate) mod buffer;
pub(crate) mod commit;
pub(crate) mod extents;
pub(crate) mod frame;
mod fsync;
pub(crate) mod read;
pub(crate) mod read_ahead;
pub(crate) mod runs;
pub(crate) mod truncate;
pub(crate) mod write;
pub(crate) mod writeback;
