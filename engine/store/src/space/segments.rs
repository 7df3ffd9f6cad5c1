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
    /// Neither free nor a segment's.
    withheld: RangeSet,
    /// Blocks in use (or withheld) per chunk.
    used: BTreeMap<ChunkIndex, u64>,
}

impl SegmentSpace {
    pub fn new(chunk_blocks: u32) -> SegmentSpace {
        let (free, withheld) = (RangeSet::default(), RangeSet::default());
        SegmentSpace { chunk_blocks: u64::from(chunk_blocks), free, withheld, used: BTreeMap::new() }
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

    /// `most` blocks in few runs, or what there is of them; `None` when that is less than `least`.
    pub fn take(&mut self, least: u64, most: u64) -> Option<Vec<BlockRange>> {
        if self.free.blocks() < least {
            return None;
        }
        let mut out = Vec::new();
        let mut taken = 0;
        while taken < most && out.len() < MAX_RUNS {
            let Some((start, len)) = self.free.take_largest((most - taken).min(u64::from(u32::MAX))) else { break };
            self.count(start, len, true);
            out.push(BlockRange::new(start, len as u32));
            taken += len;
        }
        if taken < least {
            out.iter().for_each(|r| self.release(r));
            return None;
        }
        Some(out)
    }

    /// Everything that is free now stays out of use until [`Self::release_withheld`]: what a leader before set aside for
    /// others' compactions is among it, and they may still be writing.
    pub fn withhold_free(&mut self) {
        let free = std::mem::take(&mut self.free);
        for (start, len) in free.iter() {
            self.count(start, len, true);
        }
        self.withheld = free;
    }

    /// True when there was any.
    pub fn release_withheld(&mut self) -> bool {
        let withheld = std::mem::take(&mut self.withheld);
        for (start, len) in withheld.iter() {
            self.free.insert(start, len);
            self.count(start, len, false);
        }
        !withheld.is_empty()
    }

    pub fn withheld_blocks(&self) -> u64 {
        self.withheld.blocks()
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
        let taken = s.take(20, 20).unwrap();
        assert!(taken.len() >= 2 && s.take(9, 9).is_none());
        assert_eq!(s.used_blocks(), 24);
        let rest = s.take(5, 100).unwrap();
        assert_eq!((rest.iter().map(|r| r.len_blocks).sum::<u32>(), s.free_blocks()), (8, 0), "what there is");
        taken.iter().chain(&rest).for_each(|r| s.release(r));
        assert_eq!(s.give_back(0), vec![ChunkIndex(5)]);
        assert_eq!((s.free_blocks(), s.used_blocks()), (12, 4));
    }

    #[test]
    fn what_is_withheld_is_nobodys_until_it_is_released() {
        let mut s = SegmentSpace::new(16);
        s.add_chunk(ChunkIndex(1));
        s.add_chunk(ChunkIndex(2));
        assert!(s.hold(&BlockRange::new(20, 4)));
        s.withhold_free();
        assert_eq!((s.free_blocks(), s.withheld_blocks()), (0, 28));
        assert!(s.take(1, 1).is_none() && s.give_back(0).is_empty(), "an empty chunk may be written to as well");
        s.add_chunk(ChunkIndex(7));
        let new = s.take(1, 100).unwrap();
        assert!(new.iter().all(|r| r.start.0 >= 7 * 16));
        s.release(&BlockRange::new(20, 4)); // a segment that dies meanwhile
        assert_eq!(s.free_blocks(), 4);
        assert!(s.release_withheld() && !s.release_withheld());
        new.iter().for_each(|r| s.release(r));
        assert_eq!((s.free_blocks(), s.used_blocks()), (48, 0));
    }
}
