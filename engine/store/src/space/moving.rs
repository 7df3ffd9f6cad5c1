//! The chunks of some buckets go to another reactor, with everything that is known of their blocks. Pure.

use std::collections::{BTreeMap, BTreeSet};

use vellum_base::{Bucket, ChunkIndex, Epoch, Rid};

use super::allocator::{Allocator, Chunk};

type Ranges = Vec<(u64, u64)>;

/// What is on its way from one allocator to another.
#[derive(Debug, Default)]
pub struct SpaceCargo {
    chunks: Vec<(ChunkIndex, Chunk)>,
    free: Ranges,
    /// Written, and named by no batch yet.
    ready: Vec<(Rid, Ranges)>,
    freed: BTreeMap<Epoch, Ranges>,
    cooling: Ranges,
}

impl Allocator {
    /// A write of data runs.
    pub fn is_being_written(&self) -> bool {
        self.pending.values().any(|pending| !pending.writing.is_empty())
    }

    /// No write of data runs, and no block is claimed by a batch whose epoch is open.
    pub fn is_still(&self) -> bool {
        self.claimed_blocks == 0 && !self.is_being_written()
    }

    /// Takes the chunks of these buckets out. The allocator is [still](Self::is_still), and no chunk is being emptied.
    pub fn take_buckets(&mut self, first: Bucket, last: Bucket) -> SpaceCargo {
        let inside = |chunk: &Chunk| (first..=last).contains(&chunk.bucket);
        let indexes: BTreeSet<ChunkIndex> =
            self.chunks.iter().filter(|(_, chunk)| inside(chunk)).map(|(index, _)| *index).collect();
        let mut cargo = SpaceCargo::default();
        for index in &indexes {
            let (base, len) = (u64::from(index.0) * self.chunk_blocks, self.chunk_blocks);
            cargo.free.extend(self.free.take_overlap(base, len));
            for (rid, pending) in &mut self.pending {
                let ready = pending.ready.take_overlap(base, len);
                if !ready.is_empty() {
                    self.pending_blocks -= blocks(&ready);
                    cargo.ready.push((*rid, ready));
                }
            }
            cargo.chunks.extend(self.chunks.remove_entry(index));
            self.forget_given_up(*index);
        }
        self.pending.retain(|_, pending| !pending.ready.is_empty() || !pending.writing.is_empty());
        let chunk_blocks = self.chunk_blocks;
        // No range passes a chunk's end.
        let goes = |(start, _): &(u64, u64)| indexes.contains(&ChunkIndex((start / chunk_blocks) as u32));
        for (epoch, ranges) in &mut self.freed {
            let (gone, kept): (Ranges, Ranges) = ranges.drain(..).partition(goes);
            *ranges = kept;
            self.waiting_blocks -= blocks(&gone);
            cargo.freed.insert(*epoch, gone);
        }
        let (gone, kept): (Ranges, Ranges) = self.cooling.drain(..).partition(goes);
        self.cooling = kept;
        self.waiting_blocks -= blocks(&gone);
        cargo.cooling = gone;
        cargo
    }

    /// Takes them in. They are this reactor's from now on.
    pub fn put_buckets(&mut self, cargo: SpaceCargo) {
        cargo.chunks.into_iter().for_each(|(index, chunk)| self.insert_chunk(index, chunk));
        for (start, len) in cargo.free {
            self.set_free(start, len);
        }
        for (rid, ranges) in cargo.ready {
            self.pending_blocks += blocks(&ranges);
            let pending = self.pending.entry(rid).or_default();
            for (start, len) in ranges {
                pending.ready.insert(start, len);
            }
        }
        for (epoch, ranges) in cargo.freed {
            self.waiting_blocks += blocks(&ranges);
            self.freed.entry(epoch).or_default().extend(ranges);
        }
        self.waiting_blocks += blocks(&cargo.cooling);
        self.cooling.extend(cargo.cooling);
    }
}

fn blocks(ranges: &Ranges) -> u64 {
    ranges.iter().map(|(_, len)| len).sum()
}

#[cfg(test)]
mod tests {
    use vellum_base::BlockRange;
    use vellum_base::prng::Prng;
    use vellum_format::Bitmap;

    use super::super::allocator::SpaceChange;
    use super::*;

    const CHUNK: u32 = 64;

    /// Chunks 0 to 3 are of bucket 10, chunks 4 to 7 of bucket 20.
    fn fill(a: &mut Allocator, chunks: std::ops::Range<u32>) {
        for chunk in chunks {
            let bucket = if chunk < 4 { 10 } else { 20 };
            a.add_chunk(ChunkIndex(chunk), Bucket(bucket), BTreeMap::<u32, Bitmap>::new(), BTreeMap::new());
        }
    }

    /// Free, in use, pending and waiting blocks.
    fn sums(all: &[&Allocator]) -> [u64; 4] {
        all.iter().fold([0; 4], |[f, u, p, w], a| {
            [f + a.free_blocks(), u + a.used_blocks(), p + a.pending_blocks(), w + a.waiting_blocks()]
        })
    }

    /// Random work on two allocators between which bucket 20 goes to and fro, and on one that keeps it: whatever is asked of
    /// the one that has the blocks gets the same answer as from the one that never moved, and in the end the same is free.
    #[test]
    fn buckets_that_move_are_as_if_they_had_stayed() {
        for seed in 0..40 {
            let mut prng = Prng::new(seed);
            let (mut still, mut here, mut there) =
                (Allocator::new(CHUNK), Allocator::new(CHUNK), Allocator::new(CHUNK));
            fill(&mut still, 0..8);
            fill(&mut here, 0..8);
            let (mut moved, mut epoch, mut live) = (false, 1, Vec::<(Rid, BlockRange, bool)>::new());
            for _ in 0..400 {
                let rid = Rid(1 + prng.below(3));
                match prng.below(6) {
                    0 | 1 => {
                        // Where the blocks come from decides the reactor that is asked; the other world takes the same ones.
                        let (from, len) =
                            (if moved && prng.one_in(2) { &mut there } else { &mut here }, prng.below(9) + 1);
                        for range in from.take(rid, len).into_iter().flatten() {
                            from.written(rid, &[range]);
                            still.take_exactly(rid, range);
                            live.push((rid, range, false));
                        }
                    }
                    2 | 3 if !live.is_empty() => {
                        let at = prng.below(live.len() as u64) as usize;
                        let (rid, range, used) = live[at];
                        let pair = (range.start.0, u64::from(range.len_blocks));
                        let change = match used {
                            false => SpaceChange { allocs: vec![pair], ..SpaceChange::default() },
                            true => SpaceChange { frees: vec![pair], ..SpaceChange::default() },
                        };
                        let owner = if here.owns(pair.0) { &mut here } else { &mut there };
                        assert_eq!(owner.claim(rid, &change), still.claim(rid, &change), "seed {seed}");
                        let written = owner.close(Epoch(epoch), std::slice::from_ref(&change));
                        assert_eq!(written, still.close(Epoch(epoch), std::slice::from_ref(&change)), "seed {seed}");
                        if used {
                            live.swap_remove(at);
                        } else {
                            live[at].2 = true;
                        }
                        epoch += 1;
                    }
                    4 => {
                        let durable = Epoch(epoch - prng.below(2));
                        for a in [&mut still, &mut here, &mut there] {
                            a.durable(durable);
                        }
                        if prng.one_in(2) {
                            for a in [&mut still, &mut here, &mut there] {
                                let cooling = a.take_cooling();
                                a.cooled(&cooling);
                            }
                        }
                    }
                    5 => {
                        let (from, to) = if moved { (&mut there, &mut here) } else { (&mut here, &mut there) };
                        assert!(from.is_still());
                        to.put_buckets(from.take_buckets(Bucket(20), Bucket(20)));
                        moved = !moved;
                        assert_eq!(there.owns(4 * u64::from(CHUNK)), moved);
                        assert!(here.owns(0) && !there.owns(0));
                    }
                    _ => {}
                }
                if prng.one_in(50) {
                    [&mut still, &mut here, &mut there].into_iter().for_each(|a| a.forget_rid(rid));
                    live.retain(|(of, _, used)| *of != rid || *used);
                }
            }
            for a in [&mut still, &mut here, &mut there] {
                a.durable(Epoch(epoch));
                let cooling = a.take_cooling();
                a.cooled(&cooling);
            }
            assert_eq!(sums(&[&here, &there]), sums(&[&still]), "seed {seed}");
            assert_eq!(sums(&[&still]).iter().sum::<u64>(), 8 * u64::from(CHUNK));
            for block in 0..8 * u64::from(CHUNK) {
                let owner = if here.owns(block) { &here } else { &there };
                assert_eq!(owner.is_free(block), still.is_free(block), "seed {seed}, block {block}");
            }
        }
    }

    impl Allocator {
        fn is_free(&self, block: u64) -> bool {
            self.free.contains(block, 1)
        }

        /// These blocks, written, for `rid`.
        fn take_exactly(&mut self, rid: Rid, range: BlockRange) {
            let (start, len) = (range.start.0, u64::from(range.len_blocks));
            assert!(self.free.remove(start, len), "they are free in the other world");
            self.pending.entry(rid).or_default().ready.insert(start, len);
            self.pending_blocks += len;
        }
    }
}
