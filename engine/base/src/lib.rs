//! The words that every crate of Vellum shares: ids, units, the item key, checksums, the seeded PRNG, aligned memory.
//!
//! Nothing here does IO, knows a clock, or depends on another crate of the workspace.

pub mod batch;
pub mod checksum;
pub mod dma;
pub mod id;
pub mod key;
pub mod prng;
pub mod units;

pub use batch::{Batch, ItemOp, View};
pub use checksum::{crc32c, crc32c_seeded};
pub use dma::{DmaBuf, DmaSlice};
pub use id::{BatchNo, Epoch, Fsid, Ino, LogId, ReactorId, Rid, SegmentId, ShardId, Slot, Term};
pub use key::{Bucket, Key, KeyRange, Zone};
pub use units::{BLOCK_SIZE, BlockAddr, BlockRange, ChunkIndex};
