//! What the store tells about itself: figures and their bounds.

use vellum_base::{Epoch, ReactorId, Term};

use crate::lsm::CacheStats;

/// Figures of one reactor.
#[derive(Clone, Debug, Default)]
pub struct ReactorStatus {
    pub reactor: ReactorId,
    pub shards: usize,
    pub memtable_bytes: usize,
    pub memtable_bound_bytes: usize,
    pub frozen_tables: usize,
    /// Greatest back-pressure of its shards; writers wait at 1.
    pub pressure: f32,
    pub log_used_bytes: usize,
    pub log_bound_bytes: usize,
    pub open_part_bytes: usize,
    pub data_chunks: usize,
    pub free_blocks: u64,
    pub used_blocks: u64,
    pub pending_blocks: u64,
    /// Freed and not yet reusable.
    pub waiting_blocks: u64,
    pub reservations: usize,
    pub clients: usize,
    pub io_in_flight: usize,
    pub cache: CacheStats,
    pub cache_bound_bytes: usize,
    pub batches: u64,
    pub epochs_with_changes: u64,
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
    pub space: StatFs,
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
    pub space: StatFs,
}
