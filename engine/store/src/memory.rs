//! How much memory the stores of a node may take: the sum of what has bounds of its own.
//!
//! Not in it: file data on its way and locks, which the server bounds by client; bitmaps and descriptions of segments, which
//! the device's length bounds (32 KiB for a gigabyte of data in use, less than 1 KiB for a segment).

use vellum_base::dma::{KEPT_BYTES, arena, slabs};

use crate::lsm::LsmConfig;
use crate::options::OpenOptions;
use crate::store::{Store, lsm_config};
use crate::{compactions, neighbours};

/// What the process has of buffers (see [`vellum_base::dma`]): blocks in the cache, what is being read, built and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStatus {
    pub buffer_bytes: usize,
    /// In use, or kept by a thread for its next buffer.
    pub buffer_used_bytes: usize,
    /// Of buffers and heap together, what clients have on their way aside.
    pub bound_bytes: usize,
}

/// One reactor writes one memtable at a time.
const FLUSHES: usize = 1;
/// Parts of epochs that are open or being written, and their records.
const PARTS_BYTES: usize = 24 << 20;
/// What a merge reads ahead of one run, points and range tombstones.
const READ_AHEAD_BYTES: usize = 1 << 20;
/// Tables, tasks, rings: what `tests/memory.rs` leaves room for.
const REST_BYTES: usize = 8 << 20;

impl Store {
    pub(crate) fn memory_status(&self) -> MemoryStatus {
        let (slabs, arena) = (slabs::stats(), arena::active().map_or(0, |arena| arena.committed_bytes()));
        let lsm = lsm_config(&self.options, &self.superblock, self.shards().len());
        MemoryStatus {
            buffer_bytes: slabs.mapped_bytes + arena,
            buffer_used_bytes: slabs.used_bytes + arena,
            bound_bytes: bound_bytes(&self.options, &lsm),
        }
    }
}

fn bound_bytes(options: &OpenOptions, lsm: &LsmConfig) -> usize {
    // A segment is built while the one before is being written; an eighth for its index, filter, and last block.
    let segments = (compactions::HERE + FLUSHES) * 2 * (lsm.segment_bytes + lsm.segment_bytes / 8);
    let reading = compactions::HERE * lsm.l0_far * READ_AHEAD_BYTES;
    let reactor = segments + reading + PARTS_BYTES + neighbours::BYTES + KEPT_BYTES + REST_BYTES;
    options.cache_bytes + options.memtable_bytes + options.reactors * reactor + slabs::SPARE_BYTES
}
