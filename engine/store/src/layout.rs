//! Where the fixed structures lie, from the device's size alone.
//!
//! ```text
//!  block 0      1..17        chunk 1 ..                          the last chunks
//!  | superblock | slots | .. | manifest A0 | manifest B0 | ... free ... | manifest A1 | manifest B1 | copy of superblock |
//! ```
//! The two copies of each area are as far apart as the device allows.

use vellum_base::{BLOCK_SIZE, BlockAddr, BlockRange, ChunkIndex};
use vellum_format::Superblock;

use crate::error::StoreError;

/// The smallest filesystem.
pub const MIN_BYTES: u64 = 64 << 20;
pub const MIN_CHUNK: u64 = 1 << 20;
/// Most chunks of a device: the table stays small enough to be kept whole in memory and in a checkpoint.
const MAX_CHUNKS: u64 = 65_536;
/// Most chunks of a device that has grown: the size of a chunk stays what it was.
const MAX_GROWN_CHUNKS: u64 = 1 << 20;
const MANIFEST_MAX: u64 = 64 << 20;
const SLOT_BLOCKS: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub chunk_blocks: u32,
    pub chunks: u32,
    pub copy: BlockAddr,
    pub slots_area: BlockRange,
    pub manifest: [[BlockRange; 2]; 2],
}

impl Layout {
    pub fn of(size_bytes: u64) -> Result<Layout, StoreError> {
        if size_bytes < MIN_BYTES {
            return Err(StoreError::TooSmall { found: size_bytes, least: MIN_BYTES });
        }
        let chunk = MIN_CHUNK.max(size_bytes.div_ceil(MAX_CHUNKS).next_power_of_two());
        let chunks = (size_bytes / chunk).min(MAX_CHUNKS) as u32;
        let chunk_blocks = (chunk / BLOCK_SIZE as u64) as u32;
        let area_chunks = manifest_chunks(size_bytes, chunk);
        let area = |first_chunk: u32| {
            BlockRange::new(u64::from(first_chunk) * u64::from(chunk_blocks), area_chunks * chunk_blocks)
        };
        let copy = BlockAddr(u64::from(chunks) * u64::from(chunk_blocks) - 1);
        let tail = chunks - 1 - 2 * area_chunks;
        Ok(Layout {
            chunk_blocks,
            chunks,
            copy,
            slots_area: BlockRange::new(1, SLOT_BLOCKS),
            manifest: [[area(1), area(tail)], [area(1 + area_chunks), area(tail + area_chunks)]],
        })
    }

    /// Chunks that hold a fixed structure.
    pub fn fixed_chunks(&self) -> impl Iterator<Item = ChunkIndex> + '_ {
        let area = self.manifest[0][0].len_blocks / self.chunk_blocks;
        let front = 0..1 + 2 * area;
        let tail = self.chunks - 1 - 2 * area..self.chunks;
        front.chain(tail).map(ChunkIndex)
    }
}

/// Chunks of one manifest area.
fn manifest_chunks(size_bytes: u64, chunk: u64) -> u32 {
    // A 1024th of the device, in whole chunks: room for the checkpoint and some thousand edits.
    (size_bytes / 1024).clamp(chunk, MANIFEST_MAX.max(chunk)).div_ceil(chunk) as u32
}

/// What a filesystem becomes when it takes in the rest of a device that is larger than it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    pub blocks: u64,
    pub copy: BlockAddr,
    /// New places, all in the new space, when the areas would be less than half as long as they should be.
    pub manifest: Option<[[BlockRange; 2]; 2]>,
}

impl Grown {
    /// `None` when not a whole chunk is gained.
    pub fn of(sb: &Superblock, size_bytes: u64) -> Option<Grown> {
        let (chunk, chunk_blocks) = (sb.chunk_bytes(), u64::from(sb.chunk_blocks));
        let chunks = (size_bytes / chunk).min(MAX_GROWN_CHUNKS) as u32;
        if chunks <= sb.chunks() {
            return None;
        }
        let blocks = u64::from(chunks) * chunk_blocks;
        // Where it is looked for when block 0 is damaged, if that is in the new space.
        let by_rule = Layout::of(size_bytes).ok().map(|l| l.copy).filter(|at| (sb.blocks..blocks).contains(&at.0));
        let copy = by_rule.unwrap_or(BlockAddr(blocks - 1));
        let (first, end) = (sb.chunks(), (copy.0 / chunk_blocks) as u32);
        let wanted = manifest_chunks(blocks * BLOCK_SIZE as u64, chunk);
        let now = sb.manifest[0][0].len_blocks / sb.chunk_blocks;
        let area = |first: u32| BlockRange::new(u64::from(first) * chunk_blocks, wanted * sb.chunk_blocks);
        let manifest = (wanted >= 2 * now && end - first >= 4 * wanted)
            .then(|| [[area(first), area(end - 2 * wanted)], [area(first + wanted), area(end - wanted)]]);
        Some(Grown { blocks, copy, manifest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_structures_never_overlap_at_any_size() {
        for size in [MIN_BYTES, MIN_BYTES + 12345 * 4096, 1 << 30, 100 << 30, 1 << 40, 64 << 40, (1 << 50) + 4096] {
            let l = Layout::of(size).unwrap();
            assert!(l.chunks as u64 <= MAX_CHUNKS && u64::from(l.chunks) * u64::from(l.chunk_blocks) * 4096 <= size);
            let fixed: Vec<_> = l.fixed_chunks().collect();
            let of = |b: u64| ChunkIndex((b / u64::from(l.chunk_blocks)) as u32);
            let mut areas: Vec<BlockRange> = l.manifest.iter().flatten().copied().collect();
            areas.push(BlockRange::new(0, 1));
            areas.push(l.slots_area);
            areas.push(BlockRange { start: l.copy, len_blocks: 1 });
            areas.sort();
            for pair in areas.windows(2) {
                assert!(pair[0].end().unwrap() <= pair[1].start, "{size}: {pair:?}");
            }
            for a in areas {
                assert!(fixed.contains(&of(a.start.0)) && fixed.contains(&of(a.end().unwrap().0 - 1)));
            }
        }
        assert!(matches!(Layout::of(MIN_BYTES - 1), Err(StoreError::TooSmall { .. })));
    }
}
