//! The words that every crate of Vellum shares: ids, units, the item key, checksums, the seeded PRNG, aligned memory; and
//! the two seams of the simulation: [`probe`] (what happens, told to checkers) and [`mutant`] (deliberate bugs).
//!
//! Nothing here does IO, knows a clock, or depends on another crate of the workspace.

pub mod batch;
pub mod checksum;
pub mod dma;
pub mod id;
pub mod key;
pub mod mutant;
pub mod prng;
pub mod probe;
pub mod units;

pub use batch::{Batch, ItemOp, View};
pub use checksum::{crc32c, crc32c_seeded};
pub use dma::{DmaBuf, DmaSlice};
pub use id::{BatchNo, Epoch, Fsid, Ino, LogId, ReactorId, Rid, SegmentId, ShardId, Slot, Term};
pub use key::{Bucket, Key, KeyRange, Zone};
pub use mutant::Mutant;
pub use units::{BLOCK_SIZE, BlockAddr, BlockRange, ChunkIndex};
