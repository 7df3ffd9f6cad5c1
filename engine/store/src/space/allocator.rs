//! Data space of one reactor: the bitmaps of its chunks, what is free, what is pending for a client. Pure.
//!
//! Every block of a granted chunk is in exactly one state:
//! ```text
//!  free -> pending (written for a rid) -> claimed (a batch is admitted) -> used (bit set in the epoch's bitmap)
//!  used -> freed in epoch E -> cooling (E durable, older reads may run) -> free
//! ```
//! A used block may have several owners, which are extents that name it: [`Owners`] counts those beyond the first. Another
//! one is claimed like a new block and counts when the epoch's part closes; only the last one's end frees the block.
//! Free blocks of a chunk that is being emptied are parked: free, and given to nobody (`draining`).
//! Bitmaps change only when an epoch's part closes, in the order of epochs, so the content written in epoch E never
//! knows of E+1. Free, pending, claimed and cooling blocks are volatile: after a crash the bitmap alone counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use vellum_base::batch::MAX_BATCH_OPS;
use vellum_base::{BlockRange, Bucket, ChunkIndex, Epoch, Key, Mutant, Rid, mutant};
use vellum_format::owners::MAX_EXTRA;
use vellum_format::{BITMAP_BLOCKS, Bitmap, OWNERS_BLOCKS, Owners};

use super::draining::Draining;
use super::range_set::RangeSet;

/// Owners that one batch can give a block: each is one of its operations.
const MAX_OF_BATCH: u32 = MAX_BATCH_OPS as u32;

/// What one batch does to the blocks of one reactor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpaceChange {
    pub allocs: Vec<(u64, u64)>,
    /// Used blocks that get so many owners more.
    pub shares: Vec<(u64, u64, u32)>,
    /// Blocks that lose so many owners, and one in `frees`.
    pub drops: Vec<(u64, u64, u32)>,
    /// Blocks that lose an owner, perhaps the last one.
    pub frees: Vec<(u64, u64)>,
    /// Log room is reserved for the counts of owners that `frees` may change ([`Allocator::begin_sharing`]).
    pub counted: bool,
}

impl SpaceChange {
    pub fn is_empty(&self) -> bool {
        self.allocs.is_empty() && self.shares.is_empty() && self.frees.is_empty()
    }

    /// The most owners that one of its blocks gets.
    fn most_shares(&self) -> u32 {
        self.shares.iter().map(|(.., owners)| *owners).max().unwrap_or(0)
    }

    fn is_uncounted(&self) -> bool {
        !self.frees.is_empty() && !self.counted
    }
}

/// What the end of an epoch's part comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Items to write; those without a value are to be deleted.
    pub writes: Vec<(Key, Option<Bytes>)>,
    /// Blocks that have lost their last owner.
    pub freed: Vec<(u64, u64)>,
}

#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) bucket: Bucket,
    bitmaps: BTreeMap<u32, Bitmap>,
    /// Only where a block has several owners.
    pub(super) owners: BTreeMap<u32, Owners>,
    pub(super) used: u64,
}

#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Written and complete.
    pub(super) ready: RangeSet,
    /// The write is running.
    pub(super) writing: RangeSet,
}

#[derive(Debug)]
pub struct Allocator {
    pub(super) chunk_blocks: u64,
    pub(super) chunks: BTreeMap<ChunkIndex, Chunk>,
    pub(super) free: RangeSet,
    pub(super) draining: Draining,
    pub(super) pending: HashMap<Rid, Pending>,
    pub(super) pending_blocks: u64,
    pub(super) claimed_blocks: u64,
    /// Owners that a block may get by what is claimed and not counted yet, at most.
    claimed_shares: u32,
    /// Blocks here may have several owners: since somebody asked for it, or because some have.
    sharing: bool,
    /// Claimed changes from before that.
    uncounted: usize,
    /// Freed by an epoch that is not durable.
    pub(super) freed: BTreeMap<Epoch, Vec<(u64, u64)>>,
    /// Freed by a durable epoch; reads that began earlier may run.
    pub(super) cooling: Vec<(u64, u64)>,
    pub(super) waiting_blocks: u64,
}

impl Allocator {
    pub fn new(chunk_blocks: u32) -> Allocator {
        Allocator {
            chunk_blocks: u64::from(chunk_blocks),
            chunks: BTreeMap::new(),
            free: RangeSet::default(),
            draining: Draining::default(),
            pending: HashMap::new(),
            pending_blocks: 0,
            claimed_blocks: 0,
            claimed_shares: 0,
            sharing: false,
            uncounted: 0,
            freed: BTreeMap::new(),
            cooling: Vec::new(),
            waiting_blocks: 0,
        }
    }

    /// A chunk of a bucket, with the bitmaps and counts of owners it has; what no bitmap says is free.
    pub fn add_chunk(
        &mut self,
        chunk: ChunkIndex,
        bucket: Bucket,
        bitmaps: BTreeMap<u32, Bitmap>,
        owners: BTreeMap<u32, Owners>,
    ) {
        let base = u64::from(chunk.0) * self.chunk_blocks;
        let mut used = 0;
        let mut run = 0;
        for block in 0..self.chunk_blocks {
            let (index, bit) = ((block / u64::from(BITMAP_BLOCKS)) as u32, (block % u64::from(BITMAP_BLOCKS)) as u32);
            if bitmaps.get(&index).is_some_and(|b| b.get(bit)) {
                used += 1;
                self.free.insert(base + block - run, run);
                run = 0;
            } else {
                run += 1;
            }
        }
        self.free.insert(base + self.chunk_blocks - run, run);
        self.insert_chunk(chunk, Chunk { bucket, bitmaps, owners, used });
    }

    pub(super) fn insert_chunk(&mut self, index: ChunkIndex, chunk: Chunk) {
        self.sharing |= !chunk.owners.is_empty();
        self.chunks.insert(index, chunk);
    }

    pub fn owns(&self, block: u64) -> bool {
        self.chunks.contains_key(&self.chunk_of(block))
    }

    pub(super) fn chunk_of(&self, block: u64) -> ChunkIndex {
        ChunkIndex((block / self.chunk_blocks) as u32)
    }

    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Neither in use nor on its way to be; those of chunks that are being emptied are among them.
    pub fn free_blocks(&self) -> u64 {
        self.free.blocks() + self.parked_blocks()
    }

    /// Free blocks that [`Self::take`] may give.
    pub fn ready_blocks(&self) -> u64 {
        self.free.blocks()
    }

    pub fn pending_blocks(&self) -> u64 {
        self.pending_blocks + self.claimed_blocks
    }

    /// Freed, and not yet reusable.
    pub fn waiting_blocks(&self) -> u64 {
        self.waiting_blocks
    }

    /// Blocks in use in one chunk.
    pub fn used_in(&self, chunk: u32) -> u64 {
        self.chunks.get(&ChunkIndex(chunk)).map_or(0, |c| c.used)
    }

    pub fn used_blocks(&self) -> u64 {
        self.chunks.values().map(|c| c.used).sum()
    }

    /// Takes `len` blocks for `rid`, in one run when there is one, in pieces of at least one block otherwise. All or
    /// nothing.
    pub fn take(&mut self, rid: Rid, len: u64) -> Option<Vec<BlockRange>> {
        if self.free.blocks() < len {
            return None;
        }
        let mut taken = Vec::new();
        let mut rest = len;
        while rest > 0 {
            let (start, got) = self.free.take_largest(rest)?;
            // A range never passes a chunk's end: chunks may belong to different owners later.
            let end_of_chunk = (start / self.chunk_blocks + 1) * self.chunk_blocks;
            let keep = got.min(end_of_chunk - start);
            self.free.insert(start + keep, got - keep);
            taken.push(BlockRange::new(start, keep as u32));
            rest -= keep;
        }
        let pending = self.pending.entry(rid).or_default();
        for r in &taken {
            pending.writing.insert(r.start.0, r.len_blocks.into());
        }
        self.pending_blocks += len;
        Some(taken)
    }

    /// The write of these ranges is complete: a batch may refer to them.
    pub fn written(&mut self, rid: Rid, ranges: &[BlockRange]) {
        let Some(pending) = self.pending.get_mut(&rid) else { return };
        for r in ranges {
            let (start, len) = (r.start.0, u64::from(r.len_blocks));
            if pending.writing.remove(start, len) {
                pending.ready.insert(start, len);
            }
        }
    }

    /// Gives back what is pending for `rid` and complete; ranges whose write runs stay until [`Self::write_ended`].
    pub fn forget_rid(&mut self, rid: Rid) {
        let Some(pending) = self.pending.get_mut(&rid) else { return };
        let ready = std::mem::take(&mut pending.ready);
        if pending.writing.is_empty() {
            self.pending.remove(&rid);
        }
        for (start, len) in ready.iter() {
            self.pending_blocks -= len;
            self.set_free(start, len);
        }
    }

    /// Gives back ranges of `rid` that it does not want any more; what is not pending is left alone.
    pub fn discard(&mut self, rid: Rid, ranges: &[BlockRange]) {
        let Some(pending) = self.pending.get_mut(&rid) else { return };
        let given: Vec<(u64, u64)> =
            ranges.iter().flat_map(|r| pending.ready.take_overlap(r.start.0, r.len_blocks.into())).collect();
        for (start, len) in given {
            self.pending_blocks -= len;
            self.set_free(start, len);
        }
    }

    /// Blocks here may have several owners: whoever frees some reserves log room for counts besides.
    pub fn is_sharing(&self) -> bool {
        self.sharing
    }

    /// To be asked before blocks are claimed to be shared. False while there are claims that have reserved no room for
    /// counts: their epochs must close first, and the counts that they may change must be none.
    pub fn begin_sharing(&mut self) -> bool {
        self.sharing = true;
        self.uncounted == 0
    }

    /// Claims `change` for a batch of `rid`. `Err` gives the first range that is not what the batch says; then nothing
    /// has changed.
    pub fn claim(&mut self, rid: Rid, change: &SpaceChange) -> Result<(), (u64, u64)> {
        if let Some(bad) = change.frees.iter().find(|(s, l)| !self.all_used(*s, *l)) {
            return Err(*bad);
        }
        if let Some((start, len, _)) = change.shares.iter().find(|(s, l, _)| !self.all_used(*s, *l)) {
            return Err((*start, *len));
        }
        let mut done = Vec::new();
        for (start, len) in &change.allocs {
            let ok = self.pending.get_mut(&rid).is_some_and(|p| p.ready.remove(*start, *len));
            if !ok {
                for (start, len) in done {
                    self.unclaim_one(rid, start, len);
                }
                return Err((*start, *len));
            }
            self.pending_blocks -= len;
            self.claimed_blocks += len;
            done.push((*start, *len));
        }
        self.claimed_shares += change.most_shares();
        self.uncounted += usize::from(change.is_uncounted());
        Ok(())
    }

    /// No count of owners overflows when a batch shares these blocks: as if all that is claimed, and this, were of one
    /// block.
    pub fn may_count(&self, start: u64, len: u64) -> bool {
        let Some(chunk) = self.chunks.get(&self.chunk_of(start)) else { return false };
        let most = MAX_EXTRA - self.claimed_shares - MAX_OF_BATCH;
        self.owners_parts(start, len).all(|(index, ..)| chunk.owners.get(&index).is_none_or(|o| o.most() < most))
    }

    /// A range of one chunk by the items that count its owners: index, first block in it, and how many.
    fn owners_parts(&self, start: u64, len: u64) -> impl Iterator<Item = (u32, u32, u32)> + use<> {
        let (mut at, end, per) = (start % self.chunk_blocks, start % self.chunk_blocks + len, u64::from(OWNERS_BLOCKS));
        std::iter::from_fn(move || {
            let part = (at / per, at % per, (per - at % per).min(end.checked_sub(at).filter(|left| *left > 0)?));
            at += part.2;
            Some((part.0 as u32, part.1 as u32, part.2 as u32))
        })
    }

    fn unclaim_one(&mut self, rid: Rid, start: u64, len: u64) {
        self.pending.entry(rid).or_default().ready.insert(start, len);
        self.pending_blocks += len;
        self.claimed_blocks -= len;
    }

    /// The batch was refused elsewhere.
    pub fn unclaim(&mut self, rid: Rid, change: &SpaceChange) {
        for (start, len) in &change.allocs {
            self.unclaim_one(rid, *start, *len);
        }
        self.no_claim(change);
    }

    fn no_claim(&mut self, change: &SpaceChange) {
        self.claimed_shares -= change.most_shares();
        self.uncounted -= usize::from(change.is_uncounted());
    }

    /// Every block's bit is set as of the last closed epoch. Blocks used by an open epoch are not counted: their owner's
    /// earlier batch may be in it, so the check of bits happens only for blocks whose chunk is ours.
    fn all_used(&self, start: u64, len: u64) -> bool {
        len > 0
            && self.chunk_of(start) == self.chunk_of(start + len - 1)
            && self.owns(start)
            && !self.free.overlaps(start, len)
            && !self.is_parked(start, len)
    }

    /// A part of `epoch` closes with these changes: sets bits, counts owners, and gives the items to write. Epochs come in
    /// order. Within one, blocks get their new owners before any lose old ones: an owner that was there when the other
    /// one was claimed may go in the same epoch.
    pub fn close(&mut self, epoch: Epoch, changes: &[SpaceChange]) -> Closed {
        let (mut touched, mut counted, mut closed) = (BTreeSet::new(), BTreeSet::new(), Closed::default());
        for change in changes {
            for (start, len) in &change.allocs {
                self.claimed_blocks -= len;
                self.mark(*start, *len, true, &mut touched);
            }
            self.no_claim(change);
        }
        if !mutant::active(Mutant::ForgetOwner) {
            for (start, len, owners) in changes.iter().flat_map(|change| &change.shares) {
                self.count(*start, *len, &mut counted, |all, first, len| all.add(first, len, *owners));
            }
        }
        for (start, len, owners) in changes.iter().flat_map(|change| &change.drops) {
            self.count(*start, *len, &mut counted, |all, first, len| all.drop_some(first, len, *owners));
        }
        for (start, len) in changes.iter().flat_map(|change| &change.frees) {
            for (start, len) in self.take_owner(*start, *len, &mut counted) {
                self.mark(start, len, false, &mut touched);
                closed.freed.push((start, len));
                if mutant::active(Mutant::FreeBeforeDurable) {
                    self.set_free(start, len);
                    continue;
                }
                self.waiting_blocks += len;
                self.freed.entry(epoch).or_default().push((start, len));
            }
        }
        for (chunk, index) in touched {
            let Some(c) = self.chunks.get_mut(&chunk) else { continue };
            let key = Bitmap::key(c.bucket, chunk, index);
            let empty = c.bitmaps.get(&index).is_none_or(Bitmap::is_empty);
            if empty {
                c.bitmaps.remove(&index);
            }
            closed.writes.push((key, c.bitmaps.get(&index).map(Bitmap::encode)));
        }
        for (chunk, index) in counted {
            let Some(c) = self.chunks.get_mut(&chunk) else { continue };
            if c.owners.get(&index).is_none_or(Owners::is_empty) {
                c.owners.remove(&index);
            }
            let value = c.owners.get(&index).map(Owners::encode);
            closed.writes.push((Owners::key(c.bucket, chunk, index), value));
        }
        closed
    }

    fn count(
        &mut self,
        start: u64,
        len: u64,
        counted: &mut BTreeSet<(ChunkIndex, u32)>,
        change: impl Fn(&mut Owners, u32, u32),
    ) {
        let (index, parts) = (self.chunk_of(start), self.owners_parts(start, len));
        let Some(chunk) = self.chunks.get_mut(&index) else { return };
        for (at, first, len) in parts {
            change(chunk.owners.entry(at).or_default(), first, len);
            counted.insert((index, at));
        }
    }

    /// The blocks that have no owner any more.
    fn take_owner(&mut self, start: u64, len: u64, counted: &mut BTreeSet<(ChunkIndex, u32)>) -> Vec<(u64, u64)> {
        let (index, parts) = (self.chunk_of(start), self.owners_parts(start, len));
        let base = u64::from(index.0) * self.chunk_blocks;
        let Some(chunk) = self.chunks.get_mut(&index).filter(|chunk| !chunk.owners.is_empty()) else {
            return vec![(start, len)];
        };
        let mut last = Vec::new();
        for (at, first, len) in parts {
            let from = base + u64::from(at) * u64::from(OWNERS_BLOCKS);
            let Some(owners) = chunk.owners.get_mut(&at) else {
                last.push((from + u64::from(first), u64::from(len)));
                continue;
            };
            last.extend(
                owners.take(first, len).into_iter().map(|(first, len)| (from + u64::from(first), u64::from(len))),
            );
            counted.insert((index, at));
        }
        last
    }

    fn mark(&mut self, start: u64, len: u64, used: bool, touched: &mut BTreeSet<(ChunkIndex, u32)>) {
        for block in start..start + len {
            let chunk = self.chunk_of(block);
            let Some(c) = self.chunks.get_mut(&chunk) else { continue };
            let at = block % self.chunk_blocks;
            let (index, bit) = ((at / u64::from(BITMAP_BLOCKS)) as u32, (at % u64::from(BITMAP_BLOCKS)) as u32);
            let bitmap = c.bitmaps.entry(index).or_default();
            if bitmap.get(bit) != used {
                bitmap.set(bit, used);
                if used { c.used += 1 } else { c.used -= 1 }
            }
            touched.insert((chunk, index));
        }
    }

    /// `epoch` is durable: what it freed cools down. True when something does.
    pub fn durable(&mut self, epoch: Epoch) -> bool {
        while let Some(entry) = self.freed.first_entry().filter(|e| *e.key() <= epoch) {
            self.cooling.extend(entry.remove());
        }
        !self.cooling.is_empty()
    }

    /// Ranges whose reuse waits for the reads that run now.
    pub fn take_cooling(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.cooling)
    }

    /// No read that began before is running: the blocks are free.
    pub fn cooled(&mut self, ranges: &[(u64, u64)]) {
        for (start, len) in ranges {
            self.waiting_blocks -= len;
            self.set_free(*start, *len);
        }
    }

    /// Something freed waits for an epoch or for reads.
    pub fn has_waiting(&self) -> bool {
        self.waiting_blocks > 0
    }

    /// Takes chunks without a single block in use out of the grant while more than `high` blocks are free.
    pub fn give_back(&mut self, high: u64) -> Vec<ChunkIndex> {
        let mut out = Vec::new();
        let empty: Vec<ChunkIndex> = self.chunks.iter().filter(|(_, c)| c.used == 0).map(|(i, _)| *i).collect();
        for chunk in empty {
            if self.free.blocks() < high + self.chunk_blocks {
                break;
            }
            let base = u64::from(chunk.0) * self.chunk_blocks;
            if self.free.remove(base, self.chunk_blocks) {
                self.chunks.remove(&chunk);
                out.push(chunk);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RID: Rid = Rid(1);

    fn one_chunk() -> Allocator {
        let mut a = Allocator::new(256);
        a.add_chunk(ChunkIndex(4), Bucket(0), BTreeMap::new(), BTreeMap::new());
        a
    }

    fn pairs(r: &[BlockRange]) -> Vec<(u64, u64)> {
        r.iter().map(|r| (r.start.0, r.len_blocks.into())).collect()
    }

    #[test]
    fn a_block_goes_round_its_states() {
        let mut a = one_chunk();
        let got = a.take(RID, 10).unwrap();
        let change = SpaceChange { allocs: pairs(&got), ..SpaceChange::default() };
        assert!(a.claim(RID, &change).is_err(), "the write still runs");
        a.written(RID, &got);
        assert!(a.claim(Rid(2), &change).is_err(), "it is another client's");
        a.claim(RID, &change).unwrap();
        assert!(a.claim(RID, &change).is_err(), "once");
        let writes = a.close(Epoch(1), std::slice::from_ref(&change)).writes;
        assert_eq!(writes.len(), 1);
        assert_eq!(Bitmap::decode(writes[0].1.as_ref().unwrap()).unwrap().used(), 10);
        let free = SpaceChange { frees: change.allocs, ..SpaceChange::default() };
        a.claim(RID, &free).unwrap();
        assert_eq!(a.close(Epoch(2), std::slice::from_ref(&free)).writes[0].1, None, "an empty bitmap is deleted");
        assert!(a.take(RID, 256).is_none() && a.has_waiting());
        assert!(!a.durable(Epoch(1)) && a.durable(Epoch(2)));
        let cooling = a.take_cooling();
        a.cooled(&cooling);
        assert_eq!(a.take(RID, 256).unwrap().len(), 1);
    }

    #[test]
    fn what_is_free_cannot_be_freed_and_nothing_changes_on_a_refusal() {
        let mut a = one_chunk();
        let got = a.take(RID, 4).unwrap();
        a.written(RID, &got);
        let bad = SpaceChange { allocs: vec![(got[0].start.0, 4), (got[0].start.0 + 4, 1)], ..SpaceChange::default() };
        assert_eq!(a.claim(RID, &bad), Err((got[0].start.0 + 4, 1)));
        assert_eq!(a.claim(RID, &SpaceChange { frees: vec![(1030, 2)], ..SpaceChange::default() }), Err((1030, 2)));
        assert!(a.claim(RID, &SpaceChange { allocs: pairs(&got), ..SpaceChange::default() }).is_ok());
    }

    #[test]
    fn bitmaps_that_were_there_are_used_space_and_empty_chunks_go_back() {
        let mut a = one_chunk();
        let mut b = Bitmap::default();
        b.set(0, true);
        b.set(255, true);
        a.add_chunk(ChunkIndex(5), Bucket(1), BTreeMap::from([(0, b)]), BTreeMap::new());
        assert_eq!((a.free_blocks(), a.used_blocks()), (510, 2));
        assert!(a.give_back(300).is_empty());
        assert_eq!(a.give_back(100), vec![ChunkIndex(4)]);
        assert_eq!(a.free_blocks(), 254);
    }
}
