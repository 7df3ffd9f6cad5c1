//! Sizes and thresholds of one shard's LSM.

#[derive(Clone, Debug)]
pub struct LsmConfig {
    /// The active memtable wants to be frozen at this size.
    pub memtable_bytes: usize,
    /// Writers wait when all memtables together reach this many times `memtable_bytes`.
    pub memtable_backlog: usize,
    /// Segments are cut at about this size.
    pub segment_bytes: usize,
    /// Data blocks are about this long (a multiple of 4 KiB).
    pub block_bytes: usize,
    /// Level 0 is merged into level 1 when it has this many runs.
    pub l0_runs: usize,
    /// Writers are slowest at this many runs.
    pub l0_far: usize,
    /// Wanted size of level 1; 0 means `l0_runs * memtable_bytes`.
    pub base_level_bytes: u64,
    /// Each level is this many times as large as the one above it.
    pub level_ratio: u64,
    /// A segment with this share of tombstones is merged downwards whatever its level's size.
    pub tombstone_percent: u32,
    /// Copies of every segment: 1 or 2.
    pub copies: u8,
}

impl Default for LsmConfig {
    fn default() -> Self {
        LsmConfig {
            memtable_bytes: 32 << 20,
            memtable_backlog: 3,
            segment_bytes: 8 << 20,
            block_bytes: 8 << 10,
            l0_runs: 8,
            l0_far: 24,
            base_level_bytes: 0,
            level_ratio: 10,
            tombstone_percent: 30,
            copies: 1,
        }
    }
}

impl LsmConfig {
    /// Wanted size of level `level` (1 or more).
    pub(super) fn level_bytes(&self, level: usize) -> u64 {
        let base = match self.base_level_bytes {
            0 => (self.memtable_bytes as u64).saturating_mul(self.l0_runs as u64),
            given => given,
        };
        base.saturating_mul(self.level_ratio.saturating_pow(level.saturating_sub(1) as u32))
    }
}
