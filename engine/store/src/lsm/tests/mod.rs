//! A shard on a device in memory, beside a model that knows every version.

mod flushes;
mod jobs;
mod late;
mod media;
mod memtable;
mod model;
mod split;
mod vanish;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::prng::Prng;
use vellum_base::{BLOCK_SIZE, BlockRange, Epoch, Ino, Key, KeyRange, SegmentId, ShardId};
use vellum_format::SegmentMeta;
use vellum_nvme::Queue;
use vellum_nvme::memory::MemoryDevice;

use crate::holders::Holders;
use crate::polled::PolledQueue;
use crate::space::RangeSet;

use super::{BlockCache, Edit, ItemWrite, LocalFuture, LsmConfig, LsmError, Shard, ShardEnv};

const DEVICE_BYTES: u64 = 2 << 30;
/// Keys of the model test.
const KEYS: u64 = 400;

struct TestEnv {
    queue: Rc<dyn Queue>,
    next_id: Cell<u64>,
    next_block: Cell<u64>,
    oldest: Cell<Epoch>,
    durable: Cell<Epoch>,
    /// A reader's epoch, older than `oldest` perhaps.
    pinned: Cell<Option<Epoch>>,
    allocated: RefCell<RangeSet>,
    holders: RefCell<Holders>,
    random: RefCell<Prng>,
}

impl ShardEnv for TestEnv {
    fn queue(&self) -> Rc<dyn Queue> {
        self.queue.clone()
    }

    fn next_segment_ids(&self, count: u64) -> SegmentId {
        let first = self.next_id.get() + 1;
        self.next_id.set(self.next_id.get() + count);
        SegmentId(first)
    }

    /// In one to three runs with holes between them.
    fn alloc_segment_space(&self, _: u64, most_bytes: u64) -> LocalFuture<'_, Result<Vec<BlockRange>, LsmError>> {
        let mut left = (most_bytes / BLOCK_SIZE as u64) as u32;
        let mut out = Vec::new();
        while left > 0 {
            let take = if out.len() < 2 { 1 + self.random.borrow_mut().below(left.into()) as u32 } else { left };
            let start = self.next_block.get();
            self.next_block.set(start + u64::from(take) + 1);
            assert!(self.next_block.get() * (BLOCK_SIZE as u64) < DEVICE_BYTES, "the test device is too small");
            out.push(BlockRange::new(start, take));
            assert!(self.allocated.borrow_mut().insert(start, take.into()));
            left -= take;
        }
        Box::pin(async move { Ok(out) })
    }

    fn release_space(&self, space: Vec<BlockRange>) {
        for range in space {
            let known = self.allocated.borrow_mut().remove(range.start.0, range.len_blocks.into());
            assert!(known, "space released twice: {range:?}");
        }
    }

    fn release_segment(&self, id: SegmentId, space: Vec<BlockRange>) {
        if self.holders.borrow_mut().release(id) {
            self.release_space(space);
        }
    }

    fn oldest_reader(&self) -> Epoch {
        self.pinned.get().map_or(self.oldest.get(), |pinned| pinned.min(self.oldest.get()))
    }

    fn closed_epoch(&self) -> Epoch {
        self.durable.get()
    }
}

fn config(copies: u8) -> LsmConfig {
    LsmConfig {
        memtable_bytes: 8 << 10,
        segment_bytes: 32 << 10,
        block_bytes: 4 << 10,
        l0_runs: 3,
        base_level_bytes: 64 << 10,
        level_ratio: 4,
        copies,
        ..LsmConfig::default()
    }
}

struct Lab {
    env: Rc<TestEnv>,
    shard: Rc<Shard>,
    /// What the manifest would hold.
    levels: Vec<Vec<SegmentMeta>>,
    model: Model,
    /// The oldest epoch that is open.
    epoch: Epoch,
    copies: u8,
    _queue: PolledQueue,
}

/// For each key every write, oldest first.
#[derive(Default)]
struct Model {
    versions: BTreeMap<Key, Vec<(Epoch, Option<Bytes>)>>,
}

impl Model {
    fn put(&mut self, epoch: Epoch, key: Key, value: Option<Bytes>) {
        Model::add(self.versions.entry(key).or_default(), epoch, value);
    }

    fn add(versions: &mut Vec<(Epoch, Option<Bytes>)>, epoch: Epoch, value: Option<Bytes>) {
        let at = versions.partition_point(|(other, _)| *other <= epoch);
        versions.insert(at, (epoch, value));
    }

    fn delete_range(&mut self, epoch: Epoch, range: KeyRange) {
        for i in 0..KEYS {
            self.versions.entry(key(i)).or_default();
        }
        for (_, versions) in self.versions.range_mut(range.first..=range.last) {
            Model::add(versions, epoch, None);
        }
    }

    fn get(&self, key: &Key, at: Epoch) -> Option<Bytes> {
        self.versions.get(key)?.iter().rev().find(|(epoch, _)| *epoch <= at)?.1.clone()
    }

    fn scan(&self, range: KeyRange, at: Epoch) -> Vec<(Key, Bytes)> {
        let keys = self.versions.range(range.first..=range.last).map(|(key, _)| *key);
        keys.filter_map(|key| Some((key, self.get(&key, at)?))).collect()
    }
}

fn key(i: u64) -> Key {
    Key::fs(Ino(1 + i / 8), 3, i % 8, 0, 0)
}

impl Lab {
    fn new(seed: u64, device: &MemoryDevice) -> Lab {
        Lab::with_copies(seed, device, 1)
    }

    fn with_copies(seed: u64, device: &MemoryDevice, copies: u8) -> Lab {
        let queue = PolledQueue::open(device, 64, "test device").unwrap();
        let env = Rc::new(TestEnv {
            queue: queue.clone(),
            next_id: Cell::new(0),
            next_block: Cell::new(1),
            oldest: Cell::new(Epoch(0)),
            durable: Cell::new(Epoch(0)),
            pinned: Cell::new(None),
            allocated: RefCell::default(),
            holders: RefCell::default(),
            random: RefCell::new(Prng::new(seed)),
        });
        let shard = open(&env, Vec::new(), Epoch::NONE, copies);
        Lab { env, shard, levels: Vec::new(), model: Model::default(), epoch: Epoch(1), copies, _queue: queue }
    }

    fn apply(&mut self, epoch: Epoch, op: ItemWrite) {
        self.shard.apply(epoch, op.clone());
        // Nobody may see the difference.
        self.shard.catch_up(self.env.random.borrow_mut().below(3) as usize);
        match op {
            ItemWrite::Put { key, value } => self.model.put(epoch, key, Some(value)),
            ItemWrite::Delete { key } => self.model.put(epoch, key, None),
            ItemWrite::DeleteRange { range } => self.model.delete_range(epoch, range),
        }
    }

    fn put(&mut self, key: Key, value: Bytes) {
        self.apply(self.epoch, ItemWrite::Put { key, value });
    }

    fn reopen(&mut self) {
        let through = self.shard.flushed_through();
        self.shard = open(&self.env, self.levels.clone(), through, self.copies);
    }

    fn install(&mut self, edit: Edit) {
        for level in &mut self.levels {
            level.retain(|meta| !edit.removed.contains(&meta.id));
        }
        for (level, meta) in &edit.added {
            if self.levels.len() <= *level {
                self.levels.resize(*level + 1, Vec::new());
            }
            self.levels[*level].push(meta.clone());
        }
        self.shard.install(&edit);
    }

    async fn flush(&mut self) {
        while let Some(edit) = self.shard.flush(self.env.durable.get()).await.unwrap() {
            self.install(edit);
        }
    }

    async fn compact(&mut self, most: usize) {
        for _ in 0..most {
            let Some(job) = self.shard.pick_compaction() else { break };
            let edit = self.shard.compact(job).await.unwrap();
            self.install(edit);
        }
    }

    fn close_epoch(&mut self) -> Epoch {
        let closed = self.epoch;
        self.epoch = closed.next();
        self.env.durable.set(closed);
        closed
    }

    async fn compare(&self, random: &mut Prng, seed: u64) {
        for at in [Epoch(u64::MAX), self.env.oldest.get()] {
            if at == Epoch::NONE {
                continue;
            }
            for _ in 0..20 {
                let k = key(random.below(400));
                let found = self.shard.get(&k, at).await.unwrap();
                assert_eq!(found, self.model.get(&k, at), "seed {seed}: get {k:?} at {at}");
            }
            let (a, b) = (random.below(400), random.below(400));
            let range = KeyRange { first: key(a.min(b)), last: key(a.max(b)) };
            let items = read_all(&self.shard, range, at, || 1 + random.below(50) as usize).await;
            assert_eq!(items, self.model.scan(range, at), "seed {seed}: scan {range:?} at {at}");
        }
    }
}

async fn read_all(
    shard: &Shard,
    range: KeyRange,
    at: Epoch,
    mut page_items: impl FnMut() -> usize,
) -> Vec<(Key, Bytes)> {
    let (mut items, mut next) = (Vec::new(), Some(range.first));
    while let Some(first) = next {
        let page = shard.scan(KeyRange { first, ..range }, at, page_items(), 4000).await.unwrap();
        items.extend(page.items);
        next = page.next;
        vellum_rt::yield_now().await;
    }
    items
}

fn open(env: &Rc<TestEnv>, levels: Vec<Vec<SegmentMeta>>, through: Epoch, copies: u8) -> Rc<Shard> {
    Shard::new(ShardId(1), KeyRange::ALL, levels, through, env.clone(), BlockCache::new(64 << 10), config(copies))
}
