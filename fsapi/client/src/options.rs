//! The client's bounds, each with its default.

use std::time::Duration;

use vellum_base::Rid;

#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Identity; random when `None`.
    pub rid: Option<Rid>,
    /// Items in memory, in bytes, those that must stay (undurable changes) included.
    pub cache_bytes: usize,
    /// Items of one inode group (a large directory is one) from which on it is remembered which of them were evicted, in a quarter
    /// of `cache_bytes` at most: of a name that never was there the engine is not asked.
    pub large_group_items: usize,
    /// Idle locks kept; the oldest beyond it are given back.
    pub max_idle_locks: usize,
    /// A batch is closed at this many operations or bytes.
    pub batch_ops: usize,
    pub batch_bytes: usize,
    /// Age at which an open batch leaves when no other is on its way, and at the latest.
    pub batch_delay: Duration,
    pub batch_delay_max: Duration,
    /// Batches sent and not yet applied.
    pub max_batches_in_flight: usize,
    /// Batches kept until durable; `reserve` waits beyond it.
    pub max_retained_batches: usize,
    pub max_retained_bytes: usize,
    /// File data kept until durable; `write_blocks` waits beyond it.
    pub max_retained_data_bytes: usize,
    /// Inodes of a directory that are placed in its own inode's group before it gets groups of its own.
    pub small_dir_inodes: u32,
    /// Inode groups fetched and locked ahead of use.
    pub spare_groups: usize,
    /// Directories for which the place of the next inode is remembered.
    pub max_placed_dirs: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            rid: None,
            cache_bytes: 128 << 20,
            large_group_items: 16 << 10,
            max_idle_locks: 10_000,
            batch_ops: 4096,
            batch_bytes: 256 << 10,
            batch_delay: Duration::from_millis(5),
            batch_delay_max: Duration::from_secs(1),
            max_batches_in_flight: 8,
            max_retained_batches: 64,
            max_retained_bytes: 16 << 20,
            max_retained_data_bytes: 64 << 20,
            small_dir_inodes: 64,
            spare_groups: 4,
            max_placed_dirs: 4096,
        }
    }
}

/// Most operations in one transaction: it must fit into one batch with room to spare for split extents.
pub const MAX_TXN_OPS: usize = 8192;
const _: () = assert!(MAX_TXN_OPS * 2 <= vellum_base::batch::MAX_BATCH_OPS);
