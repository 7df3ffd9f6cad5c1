//! Verified blocks of segments, bounded in bytes: one cache per reactor, shared by its shards.
//!
//! Eviction follows S3-FIFO (Yang et al. 2023): a block enters a small queue and moves to the main one only when it was
//! asked for again; a block that was evicted not long ago enters the main queue at once. A scan that reads everything
//! once passes through the small queue and leaves the rest alone.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use vellum_base::{DmaBuf, SegmentId};
use vellum_format::segment::BlockKind;
use vellum_format::segment::block::HEADER_LEN;

use super::builder::BuiltBlock;
use crate::fold_hash::FoldState;

/// Which block: its segment and its offset there, in units of 4 KiB.
pub type BlockId = (SegmentId, u32);

/// A block that was verified when it was read.
pub struct Block {
    data: DmaBuf,
    payload_len: usize,
    pub kind: BlockKind,
}

impl Block {
    pub fn new(data: DmaBuf, payload_len: usize, kind: BlockKind) -> Rc<Block> {
        Rc::new(Block { data, payload_len, kind })
    }

    pub fn payload(&self) -> &[u8] {
        &self.data[HEADER_LEN..HEADER_LEN + self.payload_len]
    }

    /// Header and padding included.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    fn charge(&self) -> usize {
        self.data.capacity() + SLOT_CHARGE
    }
}

const SLOT_CHARGE: usize = 128;
const MAX_FREQUENCY: u8 = 3;
/// The small queue's share of the bytes: one in this many.
const SMALL_SHARE: usize = 10;

struct Slot {
    id: BlockId,
    block: Option<Rc<Block>>,
    frequency: Cell<u8>,
    in_main: bool,
}

#[derive(Default)]
struct Inner {
    index: HashMap<BlockId, u32, FoldState>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghosts: VecDeque<BlockId>,
    ghost_set: HashSet<BlockId, FoldState>,
    bytes: usize,
    small_bytes: usize,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub hits: u64,
    pub misses: u64,
    pub bytes: usize,
    pub blocks: usize,
}

pub struct BlockCache {
    capacity_bytes: usize,
    inner: RefCell<Inner>,
    hits: Cell<u64>,
    misses: Cell<u64>,
}

impl BlockCache {
    pub fn new(capacity_bytes: usize) -> Rc<BlockCache> {
        Rc::new(BlockCache { capacity_bytes, inner: RefCell::default(), hits: Cell::new(0), misses: Cell::new(0) })
    }

    pub fn stats(&self) -> CacheStats {
        let inner = self.inner.borrow();
        CacheStats { hits: self.hits.get(), misses: self.misses.get(), bytes: inner.bytes, blocks: inner.index.len() }
    }

    pub(super) fn get(&self, id: BlockId) -> Option<Rc<Block>> {
        let inner = self.inner.borrow();
        let found = inner.index.get(&id).and_then(|slot| {
            let slot = &inner.slots[*slot as usize];
            slot.frequency.set((slot.frequency.get() + 1).min(MAX_FREQUENCY));
            slot.block.clone()
        });
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.set(counter.get() + 1);
        found
    }

    pub(super) fn contains(&self, id: BlockId) -> bool {
        self.inner.borrow().index.contains_key(&id)
    }

    /// Puts in copies of blocks of a segment that was built here; `bytes` begin `at_bytes` into it.
    pub(super) fn warm<'a>(
        &self,
        segment: SegmentId,
        at_bytes: u64,
        bytes: &[u8],
        blocks: impl Iterator<Item = &'a BuiltBlock>,
    ) {
        for block in blocks.filter(|block| block.kind != BlockKind::Footer) {
            let at = (block.place.at_bytes() - at_bytes) as usize;
            if let Some(found) = bytes.get(at..at + block.place.len_bytes()) {
                let data = DmaBuf::copy_from(found, true);
                self.insert((segment, block.place.at_blocks), &Block::new(data, block.payload_len, block.kind));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn contents(&self) -> Vec<(BlockId, Rc<Block>)> {
        let inner = self.inner.borrow();
        inner.slots.iter().filter_map(|slot| Some((slot.id, slot.block.clone()?))).collect()
    }

    /// Replaces nothing: the first of two readers of one block wins, both contents are the same.
    pub(super) fn insert(&self, id: BlockId, block: &Rc<Block>) {
        if block.charge() > self.capacity_bytes {
            return;
        }
        let mut evicted = Vec::new(); // freed outside of the borrow
        let mut inner = self.inner.borrow_mut();
        if inner.index.contains_key(&id) {
            return;
        }
        let in_main = inner.ghost_set.remove(&id);
        let slot = Slot { id, block: Some(block.clone()), frequency: Cell::new(0), in_main };
        let at = match inner.free.pop() {
            Some(at) => {
                inner.slots[at as usize] = slot;
                at
            }
            None => {
                inner.slots.push(slot);
                (inner.slots.len() - 1) as u32
            }
        };
        inner.index.insert(id, at);
        inner.bytes += block.charge();
        if in_main {
            inner.main.push_back(at);
        } else {
            inner.small_bytes += block.charge();
            inner.small.push_back(at);
        }
        while inner.bytes > self.capacity_bytes {
            let small_is_full = inner.small_bytes > self.capacity_bytes / SMALL_SHARE;
            evicted.extend(if small_is_full || inner.main.is_empty() {
                inner.evict_small()
            } else {
                inner.evict_main()
            });
        }
    }
}

impl Inner {
    fn evict_small(&mut self) -> Option<Rc<Block>> {
        let at = self.small.pop_front()?;
        let slot = &mut self.slots[at as usize];
        let charge = slot.block.as_ref().map_or(0, |block| block.charge());
        self.small_bytes -= charge;
        if slot.frequency.replace(0) > 0 {
            slot.in_main = true;
            self.main.push_back(at);
            return None;
        }
        let id = slot.id;
        let block = self.remove(at);
        self.ghosts.push_back(id);
        self.ghost_set.insert(id);
        while self.ghosts.len() > self.index.len() + 16 {
            if let Some(old) = self.ghosts.pop_front() {
                self.ghost_set.remove(&old);
            }
        }
        block
    }

    fn evict_main(&mut self) -> Option<Rc<Block>> {
        let at = self.main.pop_front()?;
        let frequency = &self.slots[at as usize].frequency;
        if frequency.get() > 0 {
            frequency.set(frequency.get() - 1);
            self.main.push_back(at);
            return None;
        }
        self.remove(at)
    }

    fn remove(&mut self, at: u32) -> Option<Rc<Block>> {
        let slot = &mut self.slots[at as usize];
        let block = slot.block.take();
        self.bytes -= block.as_ref().map_or(0, |block| block.charge());
        let id = slot.id;
        self.index.remove(&id);
        self.free.push(at);
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Rc<Block> {
        Block::new(DmaBuf::new(4096), 10, BlockKind::Data)
    }

    fn id(i: u32) -> BlockId {
        (SegmentId(1), i)
    }

    #[test]
    fn the_bound_holds_and_what_is_used_survives_a_scan() {
        let cache = BlockCache::new(100 * (4096 + SLOT_CHARGE));
        for round in 0..3 {
            for i in 0..50 {
                if cache.get(id(i)).is_none() {
                    cache.insert(id(i), &block());
                }
            }
            assert!(round == 0 || cache.stats().hits > 0);
        }
        for i in 1000..5000 {
            assert!(cache.get(id(i)).is_none());
            cache.insert(id(i), &block());
            assert!(cache.stats().bytes <= 100 * (4096 + SLOT_CHARGE));
        }
        let survivors = (0..50).filter(|i| cache.get(id(*i)).is_some()).count();
        assert!(survivors >= 45, "{survivors}");
        assert!(cache.inner.borrow().ghost_set.len() <= 120);
    }

    #[test]
    fn a_block_larger_than_the_cache_is_not_kept() {
        let cache = BlockCache::new(100);
        cache.insert(id(1), &block());
        assert_eq!(cache.stats().blocks, 0);
    }
}
