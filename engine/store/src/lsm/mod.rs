//! The LSM of one shard: memtables, sorted segments, compaction, and reads over all of them.
//!
//! One reactor owns a [`Shard`]; nothing here is shared between threads. The rest of the store decides *when* (epochs,
//! durability, manifest edits); this module decides *what*: which versions live, where they are, which segments merge.
//!
//! Invariants
//! - Sources are strictly ordered by age: active memtable, frozen memtables (newest first), runs of level 0 (newest
//!   first), level 1, 2, ... Every version of a key in one source is newer than every version of it in the next. A
//!   compaction therefore takes, for its key range, all inputs of contiguous sources, and writes into the lowest.
//! - Within a source a range tombstone covers an entry only when its epoch is greater; it covers all older sources.
//! - A version is dropped only when its successor is visible to every reader (`epoch <= oldest_reader()`, and to reads in
//!   progress here).
//! - No segment is input of two jobs; its device space is released once, when the last reader has let go of it.
//! - Of a segment that crosses the shard's bounds (a split left it) only keys within them are read and merged.
//!
//! ```text
//!  apply -> active -> (freeze) frozen.. -> (flush) level 0 runs -> (compaction) level 1 -> ... -> bottom
//! ```

mod arena;
mod blocks;
mod bottom;
mod builder;
mod cache;
mod compaction;
mod config;
mod cursor;
mod edit;
mod env;
mod error;
mod execute;
mod flush;
mod image;
mod job;
mod job_codec;
mod key_map;
mod lookup;
mod memtable;
mod merge;
mod output;
mod plan;
mod ranges;
mod scan;
mod scrub;
mod segment;
mod shard;
mod split;
mod stand_in;
mod state;
mod stream;
#[cfg(test)]
mod tests;
mod touches;

pub use cache::{BlockCache, CacheStats};
pub use config::LsmConfig;
pub use edit::{Edit, ItemWrite, ScanPage};
pub use env::{LocalFuture, ShardEnv};
pub use error::LsmError;
pub use execute::{Cancel, execute};
pub use job::{CompactionJob, Outcome};
pub use job_codec::{JobError, MAX_JOB_BYTES};
pub use plan::{Pick, Plan, Withheld};
pub use scrub::{BadBlock, SegmentScrub};
pub use shard::Shard;
pub use split::Extent;
pub use touches::Load;
