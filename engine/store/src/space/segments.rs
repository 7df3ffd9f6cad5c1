//! Space for segments: blocks of chunks that the table gives to segments. Volatile: after a crash, whatever no segment
//! in the manifest holds is free. Lives on the coordinator. Pure.

use std::collections::BTreeMap;

use vellum_base::{BlockRange, ChunkIndex};

use super::range_set::RangeSet;

/// Runs that one allocation may consist of.
const MAX_RUNS: usize = 1024;

#[derive(Debug)]
pub struct SegmentSpace {
    chunk_blocks: u64,
    free: RangeSet,
    /// Blocks in use per chunk.
    used: BTreeMap<ChunkIndex, u64>,
}

impl SegmentSpace {
    pub fn new(chunk_blocks: u32) -> SegmentSpace {
        SegmentSpace { chunk_blocks: u64::from(chunk_blocks), free: RangeSet::default(), used: BTreeMap::new() }
    }

    pub fn add_chunk(&mut self, chunk: ChunkIndex) {
        if self.used.insert(chunk, 0).is_none() {
            self.free.insert(u64::from(chunk.0) * self.chunk_blocks, self.chunk_blocks);
        }
    }

    /// A segment from the manifest holds this range; false when it overlaps another or lies in no segment chunk.
    pub fn hold(&mut self, range: &BlockRange) -> bool {
        let (start, len) = (range.start.0, u64::from(range.len_blocks));
        let ok = self.free.remove(start, len);
        if ok {
            self.count(start, len, true);
        }
        ok
    }

    fn count(&mut self, start: u64, len: u64, up: bool) {
        let (mut at, end) = (start, start + len);
        while at < end {
            let chunk = at / self.chunk_blocks;
            let run = ((chunk + 1) * self.chunk_blocks).min(end) - at;
            if let Some(n) = self.used.get_mut(&ChunkIndex(chunk as u32)) {
                if up { *n += run } else { *n -= run }
            }
            at += run;
        }
    }

    pub fn free_blocks(&self) -> u64 {
        self.free.blocks()
    }

    #[cfg(test)]
    pub fn used_blocks(&self) -> u64 {
        self.used.values().sum()
    }

    /// `blocks` blocks in few runs; `None` when there are not enough.
    pub fn take(&mut self, blocks: u64) -> Option<Vec<BlockRange>> {
        if self.free.blocks() < blocks {
            return None;
        }
        let mut out = Vec::new();
        let mut rest = blocks;
        while rest > 0 && out.len() < MAX_RUNS {
            let (start, len) = self.free.take_largest(rest.min(u64::from(u32::MAX)))?;
            self.count(start, len, true);
            out.push(BlockRange::new(start, len as u32));
            rest -= len;
        }
        if rest > 0 {
            out.iter().for_each(|r| self.release(r));
            return None;
        }
        Some(out)
    }

    pub fn release(&mut self, range: &BlockRange) {
        let (start, len) = (range.start.0, u64::from(range.len_blocks));
        if self.free.insert(start, len) {
            self.count(start, len, false);
        }
    }

    /// Chunks without a segment, all but `keep` of them; they are no longer given out.
    pub fn give_back(&mut self, keep: usize) -> Vec<ChunkIndex> {
        let empty: Vec<ChunkIndex> = self.used.iter().filter(|(_, n)| **n == 0).map(|(c, _)| *c).collect();
        let out: Vec<ChunkIndex> = empty.into_iter().skip(keep).collect();
        for chunk in &out {
            self.used.remove(chunk);
            self.free.remove(u64::from(chunk.0) * self.chunk_blocks, self.chunk_blocks);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_taken_held_released_and_given_back() {
        let mut s = SegmentSpace::new(16);
        s.add_chunk(ChunkIndex(1));
        s.add_chunk(ChunkIndex(5));
        assert!(s.hold(&BlockRange::new(20, 4)) && !s.hold(&BlockRange::new(22, 4)));
        assert!(!s.hold(&BlockRange::new(40, 4)), "no segment chunk");
        let taken = s.take(20).unwrap();
        assert!(taken.len() >= 2 && s.take(9).is_none());
        assert_eq!(s.used_blocks(), 24);
        taken.iter().for_each(|r| s.release(r));
        assert_eq!(s.give_back(0), vec![ChunkIndex(5)]);
        assert_eq!((s.free_blocks(), s.used_blocks()), (12, 4));
    }
}
