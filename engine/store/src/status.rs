//! What the store tells about itself: figures and their bounds.

use std::time::Duration;

use vellum_base::{Bucket, Epoch, ReactorId, ShardId, Term};

use crate::evacuate::EvacuationStatus;
use crate::lsm::CacheStats;
use crate::memory::MemoryStatus;
use crate::moves::MoveStatus;
use crate::scrub::ScrubStatus;

/// Figures of one reactor.
#[derive(Clone, Debug, Default)]
pub struct ReactorStatus {
    pub reactor: ReactorId,
    pub shards: Vec<ShardStatus>,
    pub memtable_bytes: usize,
    pub memtable_bound_bytes: usize,
    pub frozen_tables: usize,
    /// Greatest share of the memtables' bound that is in use; writers wait for a flush at 1.
    pub pressure: f32,
    /// How far merging is behind; writers are slowed from 0 on, and slowest from 1 on.
    pub compaction_debt: f32,
    /// Bytes per second that the node admits at this debt; none while it is 0.
    pub write_bound_bytes_per_s: Option<u64>,
    /// Batches that had to wait because of it, and how long altogether.
    pub slowed_batches: u64,
    pub slowed: Duration,
    pub compactions: CompactionStatus,
    pub log_used_bytes: usize,
    pub log_bound_bytes: usize,
    pub open_part_bytes: usize,
    pub data_chunks: usize,
    pub free_blocks: u64,
    pub used_blocks: u64,
    pub pending_blocks: u64,
    /// Freed and not yet reusable.
    pub waiting_blocks: u64,
    /// Chunks that are being emptied.
    pub draining_chunks: usize,
    /// Chunks that were, and are free.
    pub emptied_chunks: u64,
    pub reservations: usize,
    pub clients: usize,
    pub io_in_flight: usize,
    pub cache: CacheStats,
    pub cache_bound_bytes: usize,
    pub batches: u64,
    pub epochs_with_changes: u64,
    /// A shard whose segments are longer is split.
    pub shard_bound_bytes: u64,
    pub splits: u64,
    pub moves: MoveStatus,
}

/// One shard: a run of whole buckets.
#[derive(Clone, Debug, Default)]
pub struct ShardStatus {
    pub id: ShardId,
    pub first_bucket: Bucket,
    pub last_bucket: Bucket,
    pub segments: usize,
    /// Of one copy. Segments that a split left to two shards count whole in both.
    pub segment_bytes: u64,
    /// So many of them.
    pub clipped: usize,
    pub memtable_bytes: usize,
}

/// Compactions of one reactor's shards.
#[derive(Clone, Debug, Default)]
pub struct CompactionStatus {
    pub running: usize,
    pub running_bound: usize,
    /// Run by helpers at the moment.
    pub handed_over: usize,
    pub done: u64,
    pub done_elsewhere: u64,
    pub failed: u64,
    /// Handed over and never answered.
    pub lost: u64,
    /// Blocks that who was lost may still be writing.
    pub withheld_blocks: u64,
    /// After a failure.
    pub resting_shards: usize,
    pub last_error: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct StoreStatus {
    pub term: Term,
    pub open_epoch: Epoch,
    pub durable_epoch: Epoch,
    pub failed: Option<String>,
    pub manifest_generation: u64,
    pub segments: usize,
    pub runs: usize,
    pub seals_used: u64,
    pub seals_bound: u64,
    /// Blocks that may be outputs of an earlier leader's compactions: out of use until their writers are known to be gone.
    pub withheld_blocks: u64,
    pub scrub: ScrubStatus,
    pub evacuation: EvacuationStatus,
    /// Chunks that nobody has, and how many of them file data never gets.
    pub free_chunks: usize,
    pub reserve_chunks: usize,
    pub space: StatFs,
    pub memory: MemoryStatus,
    pub reactors: Vec<ReactorStatus>,
}

/// Space as statfs(2) wants it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    pub block_bytes: u32,
    pub total_blocks: u64,
    /// Free for data: the reserve is not counted.
    pub free_blocks: u64,
    pub used_data_blocks: u64,
    pub metadata_blocks: u64,
}

/// Figures that only the coordinator has.
#[derive(Clone, Debug, Default)]
pub struct CentralStatus {
    pub manifest_generation: u64,
    pub segments: usize,
    pub runs: usize,
    pub seals_used: u64,
    pub seals_bound: u64,
    pub withheld_blocks: u64,
    /// Without its findings.
    pub scrub: ScrubStatus,
    pub evacuation: EvacuationStatus,
    pub free_chunks: usize,
    pub reserve_chunks: usize,
    pub space: StatFs,
}
