//! Chunks that are being emptied, so that the table gets them back whole.
//!
//! A draining chunk gives no blocks: what is free in it, or becomes free, is parked. When all of it is parked the chunk
//! leaves the grant. Draining is volatile and can be called off at any time, which makes the parked blocks ordinary free
//! ones again: a writer that finds no other block goes before the evacuation.

use std::collections::{BTreeMap, BTreeSet};

use vellum_base::ChunkIndex;

use super::allocator::Allocator;
use super::range_set::RangeSet;

#[derive(Debug, Default)]
pub(super) struct Draining {
    chunks: BTreeSet<ChunkIndex>,
    parked: RangeSet,
    /// Blocks in use when an evacuation gave a chunk up: it is not tried again before that has changed.
    given_up: BTreeMap<ChunkIndex, u64>,
}

impl Allocator {
    pub(super) fn parked_blocks(&self) -> u64 {
        self.draining.parked.blocks()
    }

    pub(super) fn is_parked(&self, start: u64, len: u64) -> bool {
        self.draining.parked.overlaps(start, len)
    }

    /// Blocks in use in chunks that are being emptied, and how many such chunks there are.
    pub fn draining(&self) -> (usize, u64) {
        let used = self.draining.chunks.iter().filter_map(|chunk| self.chunks.get(chunk)).map(|c| c.used).sum();
        (self.draining.chunks.len(), used)
    }

    pub fn is_draining(&self, block: u64) -> bool {
        self.draining.chunks.contains(&self.chunk_of(block))
    }

    /// The blocks, of any number of chunks, are free.
    pub(super) fn set_free(&mut self, start: u64, len: u64) {
        let (mut at, end) = (start, start + len);
        while at < end {
            let run = (at / self.chunk_blocks + 1) * self.chunk_blocks;
            let run = run.min(end) - at;
            let set = if self.is_draining(at) { &mut self.draining.parked } else { &mut self.free };
            set.insert(at, run);
            at += run;
        }
    }

    fn base(&self, chunk: ChunkIndex) -> u64 {
        u64::from(chunk.0) * self.chunk_blocks
    }

    /// Begins to empty up to `most` chunks: those with the fewest blocks in use, at most one in `sparse` of their blocks. As
    /// many as leave room elsewhere in this grant for what they hold, and `keep` blocks besides. A chunk with blocks on
    /// their way into or out of use is left alone, and so is one with shared blocks: moving them takes one extent after the
    /// other, each with a copy of its own, so that more space would be in use than before.
    pub fn drain_sparse(&mut self, most: usize, sparse: u64, keep: u64) -> Vec<ChunkIndex> {
        let mut free: BTreeMap<ChunkIndex, u64> = BTreeMap::new();
        for (mut start, mut len) in self.free.iter() {
            while len > 0 {
                let run = (self.chunk_blocks - start % self.chunk_blocks).min(len);
                *free.entry(self.chunk_of(start)).or_default() += run;
                (start, len) = (start + run, len - run);
            }
        }
        let mut sparse: Vec<(u64, ChunkIndex)> = self
            .chunks
            .iter()
            .filter(|(_, c)| c.used > 0 && c.used * sparse <= self.chunk_blocks && c.owners.is_empty())
            .filter(|(i, c)| free.get(i).is_some_and(|free| free + c.used == self.chunk_blocks))
            .filter(|(i, c)| self.draining.given_up.get(i) != Some(&c.used))
            .map(|(i, c)| (c.used, *i))
            .collect();
        sparse.sort_unstable();
        let (mut room, mut live, mut chosen) = (self.free.blocks(), keep, Vec::new());
        for (used, chunk) in sparse.into_iter().take(most) {
            room -= self.chunk_blocks - used;
            live += used;
            if room < live {
                break;
            }
            chosen.push(chunk);
        }
        for chunk in &chosen {
            self.drain(*chunk);
        }
        chosen
    }

    fn drain(&mut self, chunk: ChunkIndex) {
        self.draining.chunks.insert(chunk);
        for (start, len) in self.free.take_overlap(self.base(chunk), self.chunk_blocks) {
            self.draining.parked.insert(start, len);
        }
    }

    /// Takes chunks that have become empty out of the grant.
    pub fn take_drained(&mut self) -> Vec<ChunkIndex> {
        let empty = |chunk: &ChunkIndex| self.draining.parked.contains(self.base(*chunk), self.chunk_blocks);
        let out: Vec<ChunkIndex> = self.draining.chunks.iter().copied().filter(empty).collect();
        for chunk in &out {
            self.draining.parked.remove(self.base(*chunk), self.chunk_blocks);
            self.draining.chunks.remove(chunk);
            self.draining.given_up.remove(chunk);
            self.chunks.remove(chunk);
        }
        out
    }

    /// No block of some chunk is in use, and not all are parked: they cool down.
    pub fn is_nearly_drained(&self) -> bool {
        self.draining.chunks.iter().any(|chunk| {
            self.chunks.get(chunk).is_some_and(|c| c.used == 0)
                && !self.draining.parked.contains(self.base(*chunk), self.chunk_blocks)
        })
    }

    /// The chunk, which is not being emptied, is another reactor's.
    pub(super) fn forget_given_up(&mut self, chunk: ChunkIndex) {
        self.draining.given_up.remove(&chunk);
    }

    /// What is left of the chunks that were to be emptied stays, and their free blocks are given out again. The chunks. With
    /// `tried`, an evacuation has looked at all of them, and would find the same again.
    pub fn call_off_draining(&mut self, tried: bool) -> Vec<ChunkIndex> {
        let draining = std::mem::take(&mut self.draining.chunks);
        for (start, len) in std::mem::take(&mut self.draining.parked).iter() {
            self.free.insert(start, len);
        }
        if tried {
            self.draining.given_up.retain(|chunk, _| self.chunks.contains_key(chunk));
            for chunk in &draining {
                let used = self.chunks.get(chunk).map_or(0, |c| c.used);
                self.draining.given_up.insert(*chunk, used);
            }
        }
        draining.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use vellum_base::{BlockRange, Bucket, Epoch, Rid};
    use vellum_format::Bitmap;

    use super::super::allocator::SpaceChange;
    use super::*;

    const RID: Rid = Rid(1);

    /// Chunks of 256 blocks, with so many in use each.
    fn with(used: &[u32]) -> Allocator {
        let mut a = Allocator::new(256);
        for (i, used) in used.iter().enumerate() {
            let mut bitmap = Bitmap::default();
            (0..*used).for_each(|bit| bitmap.set(bit * 3 % 256, true));
            a.add_chunk(ChunkIndex(i as u32 + 1), Bucket(0), BTreeMap::from([(0, bitmap)]), BTreeMap::new());
        }
        a
    }

    fn sum(a: &Allocator) -> u64 {
        a.free_blocks() + a.used_blocks() + a.pending_blocks() + a.waiting_blocks()
    }

    #[test]
    fn the_emptiest_chunks_drain_and_nobody_gets_their_blocks() {
        let mut a = with(&[200, 10, 64, 65, 30]);
        assert_eq!(a.drain_sparse(9, 4, 160), vec![ChunkIndex(2), ChunkIndex(5)], "the third would leave no room");
        assert_eq!((a.draining(), a.free_blocks(), a.ready_blocks()), ((2, 40), 911, 56 + 192 + 191));
        assert_eq!(sum(&a), 5 * 256);
        let got = a.take(RID, 439).unwrap();
        assert!(got.iter().all(|r| !a.is_draining(r.start.0)) && a.take(RID, 1).is_none());
        assert_eq!(a.call_off_draining(false).len(), 2, "who writes goes first");
        assert!(a.call_off_draining(false).is_empty());
        assert_eq!(a.take(RID, 472).map(|got| got.iter().map(|r| r.len_blocks).sum::<u32>()), Some(472));
        assert_eq!(sum(&a), 5 * 256);
    }

    #[test]
    fn what_is_freed_while_a_chunk_drains_is_parked_until_all_of_it_is() {
        let mut a = with(&[100, 1]);
        assert_eq!(a.drain_sparse(1, 4, 16), vec![ChunkIndex(2)]);
        assert!(a.take_drained().is_empty());
        let freed = SpaceChange { frees: vec![(2 * 256, 1)], ..SpaceChange::default() };
        let parked = SpaceChange { frees: vec![(2 * 256 + 1, 1)], ..SpaceChange::default() };
        assert!(a.claim(RID, &parked).is_err(), "it is parked");
        a.claim(RID, &freed).unwrap();
        a.close(Epoch(1), std::slice::from_ref(&freed));
        assert!(a.take_drained().is_empty(), "its epoch is not durable");
        a.durable(Epoch(1));
        let cooling = a.take_cooling();
        a.cooled(&cooling);
        assert_eq!(a.take_drained(), vec![ChunkIndex(2)]);
        assert_eq!((a.chunks(), a.draining(), sum(&a)), (1, (0, 0), 256));
    }

    #[test]
    fn a_chunk_that_could_not_be_emptied_is_left_alone_until_it_changes() {
        let mut a = with(&[100, 8]);
        assert_eq!(a.drain_sparse(9, 4, 0), vec![ChunkIndex(2)]);
        assert_eq!(a.call_off_draining(true), vec![ChunkIndex(2)]);
        assert!(a.drain_sparse(9, 4, 0).is_empty());
        let freed = SpaceChange { frees: vec![(2 * 256 + 3, 1)], ..SpaceChange::default() };
        a.claim(RID, &freed).unwrap();
        a.close(Epoch(1), std::slice::from_ref(&freed));
        assert!(a.drain_sparse(9, 4, 0).is_empty(), "a block of it is on its way");
        a.durable(Epoch(1));
        let cooling = a.take_cooling();
        a.cooled(&cooling);
        assert_eq!(a.drain_sparse(9, 4, 0), vec![ChunkIndex(2)]);
    }

    #[test]
    fn a_chunk_that_is_written_to_does_not_drain() {
        let mut a = with(&[8, 100]);
        let got: Vec<BlockRange> = a.take(RID, 1).unwrap();
        let at = a.chunk_of(got[0].start.0);
        assert!(!a.drain_sparse(9, 2, 0).contains(&at));
    }
}
