//! The shard against a plain map of all versions: random writes, range deletions, freezes, flushes, compactions,
//! reopening from its segments, and reads at old epochs. A failure prints its seed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::prng::Prng;
use vellum_base::{BLOCK_SIZE, BlockRange, Epoch, Ino, Key, KeyRange, SegmentId, ShardId};
use vellum_format::SegmentMeta;
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Queue};

use super::{BlockCache, Edit, ItemWrite, LocalFuture, LsmConfig, LsmError, Shard, ShardEnv};

const DEVICE_BYTES: u64 = 512 << 20;

struct TestEnv {
    queue: Rc<dyn Queue>,
    next_id: Cell<u64>,
    next_block: Cell<u64>,
    oldest: Cell<Epoch>,
    live: RefCell<HashSet<SegmentId>>,
    allocated: RefCell<HashSet<u64>>,
    random: RefCell<Prng>,
}

impl ShardEnv for TestEnv {
    fn queue(&self) -> Rc<dyn Queue> {
        self.queue.clone()
    }

    fn next_segment_id(&self) -> SegmentId {
        self.next_id.set(self.next_id.get() + 1);
        self.live.borrow_mut().insert(SegmentId(self.next_id.get()));
        SegmentId(self.next_id.get())
    }

    /// In one to three runs with holes between them.
    fn alloc_segment_space(&self, len_bytes: u64) -> LocalFuture<'_, Result<Vec<BlockRange>, LsmError>> {
        let mut left = (len_bytes / BLOCK_SIZE as u64) as u32;
        let mut out = Vec::new();
        while left > 0 {
            let take = if out.len() < 2 { 1 + self.random.borrow_mut().below(left.into()) as u32 } else { left };
            let start = self.next_block.get();
            self.next_block.set(start + u64::from(take) + 1);
            assert!(self.next_block.get() * (BLOCK_SIZE as u64) < DEVICE_BYTES, "the test device is too small");
            out.push(BlockRange::new(start, take));
            self.allocated.borrow_mut().insert(start);
            left -= take;
        }
        Box::pin(async move { Ok(out) })
    }

    fn release_segment_space(&self, segment: SegmentMeta) {
        assert!(self.live.borrow_mut().remove(&segment.id), "segment {} released twice", segment.id);
        for range in &segment.ranges {
            assert!(self.allocated.borrow_mut().remove(&range.start.0), "space released twice");
        }
    }

    fn oldest_reader(&self) -> Epoch {
        self.oldest.get()
    }
}

fn config() -> LsmConfig {
    LsmConfig {
        memtable_bytes: 8 << 10,
        segment_bytes: 16 << 10,
        block_bytes: 4 << 10,
        l0_runs: 3,
        base_level_bytes: 64 << 10,
        level_ratio: 4,
        ..LsmConfig::default()
    }
}

struct Lab {
    env: Rc<TestEnv>,
    shard: Rc<Shard>,
    /// What the manifest would hold.
    levels: Vec<Vec<SegmentMeta>>,
    model: Model,
    epoch: Epoch,
}

/// For each key every write, oldest first.
#[derive(Default)]
struct Model {
    versions: BTreeMap<Key, Vec<(Epoch, Option<Bytes>)>>,
}

impl Model {
    fn put(&mut self, epoch: Epoch, key: Key, value: Option<Bytes>) {
        self.versions.entry(key).or_default().push((epoch, value));
    }

    fn delete_range(&mut self, epoch: Epoch, range: KeyRange) {
        for (_, versions) in self.versions.range_mut(range.first..=range.last) {
            versions.push((epoch, None));
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
        let queue = device.open_queue(64).unwrap();
        let polled = queue.clone();
        std::mem::forget(vellum_rt::add_poller("test device", move || polled.process_completions()));
        let env = Rc::new(TestEnv {
            queue,
            next_id: Cell::new(0),
            next_block: Cell::new(1),
            oldest: Cell::new(Epoch(0)),
            live: RefCell::default(),
            allocated: RefCell::default(),
            random: RefCell::new(Prng::new(seed)),
        });
        let shard = open(&env, Vec::new(), Epoch::NONE);
        Lab { env, shard, levels: Vec::new(), model: Model::default(), epoch: Epoch(1) }
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
        while let Some(edit) = self.shard.flush(self.epoch).await.unwrap() {
            self.install(edit);
        }
    }

    async fn compact(&mut self, most: usize) {
        for _ in 0..most {
            let Some(job) = self.shard.pick_compaction() else { break };
            let edit = self.shard.run_compaction(job).await.unwrap();
            self.install(edit);
        }
    }

    fn close_epoch(&mut self) -> Epoch {
        let closed = self.epoch;
        self.epoch = closed.next();
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
            let (mut items, mut next) = (Vec::new(), Some(range.first));
            while let Some(first) = next {
                let range = KeyRange { first, ..range };
                let page = self.shard.scan(range, at, 1 + random.below(50) as usize, 4000).await.unwrap();
                items.extend(page.items);
                next = page.next;
            }
            assert_eq!(items, self.model.scan(range, at), "seed {seed}: scan {range:?} at {at}");
        }
    }
}

fn open(env: &Rc<TestEnv>, levels: Vec<Vec<SegmentMeta>>, through: Epoch) -> Rc<Shard> {
    Shard::new(ShardId(1), KeyRange::ALL, levels, through, env.clone(), BlockCache::new(64 << 10), config())
}

async fn run(seed: u64) {
    let device = MemoryDevice::new(DEVICE_BYTES);
    let mut lab = Lab::new(seed, &device);
    let mut random = Prng::new(seed);
    for _ in 0..600 {
        match random.below(40) {
            0..=25 => {
                for _ in 0..1 + random.below(20) {
                    let k = key(random.below(400));
                    let len = random.below(300) as usize;
                    let value = Bytes::from(vec![random.next_u64() as u8; len]);
                    lab.shard.apply(lab.epoch, &ItemWrite::Put { key: k, value: value.clone() });
                    lab.model.put(lab.epoch, k, Some(value));
                }
            }
            26..=29 => {
                for _ in 0..1 + random.below(10) {
                    let k = key(random.below(400));
                    lab.shard.apply(lab.epoch, &ItemWrite::Delete { key: k });
                    lab.model.put(lab.epoch, k, None);
                }
            }
            30 | 31 => {
                let range = KeyRange::of_inode(Ino(1 + random.below(50)));
                lab.shard.apply(lab.epoch, &ItemWrite::DeleteRange { range });
                lab.model.delete_range(lab.epoch, range);
            }
            32 | 33 => {
                let closed = lab.close_epoch();
                // Readers see the durable epoch or something older.
                if random.one_in(2) {
                    lab.env.oldest.set(Epoch(closed.0 - random.below(3).min(closed.0 - 1)).max(lab.env.oldest.get()));
                }
            }
            34 => {
                let closed = lab.close_epoch();
                lab.shard.freeze(closed);
            }
            35 => lab.flush().await,
            36 => lab.compact(1 + random.below(4) as usize).await,
            37 if random.one_in(3) => {
                let closed = lab.close_epoch();
                lab.shard.freeze(closed);
                lab.flush().await;
                let through = lab.shard.flushed_through();
                lab.shard = open(&lab.env, lab.levels.clone(), through);
            }
            _ => lab.compare(&mut random, seed).await,
        }
    }
    let closed = lab.close_epoch();
    lab.env.oldest.set(closed);
    lab.shard.freeze(closed);
    lab.flush().await;
    lab.compact(1000).await;
    lab.compare(&mut random, seed).await;
    let live: HashSet<SegmentId> = lab.levels.iter().flatten().map(|meta| meta.id).collect();
    assert_eq!(*lab.env.live.borrow(), live, "seed {seed}: segments leaked or lost");
}

#[test]
fn a_shard_agrees_with_a_map_of_versions() {
    vellum_rt::native::block_on(async {
        for seed in 0..25 {
            run(seed).await;
        }
    });
}

#[test]
fn deletions_do_vanish() {
    vellum_rt::native::block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = Lab::new(1, &device);
        for round in 0..20u64 {
            for i in 0..400 {
                let k = key(i);
                let value = Bytes::from(vec![round as u8; 100]);
                lab.shard.apply(lab.epoch, &ItemWrite::Put { key: k, value });
            }
            let closed = lab.close_epoch();
            lab.shard.freeze(closed);
            for ino in 1..=50 {
                lab.shard.apply(lab.epoch, &ItemWrite::DeleteRange { range: KeyRange::of_inode(Ino(ino)) });
            }
            let closed = lab.close_epoch();
            lab.env.oldest.set(closed);
            lab.shard.freeze(closed);
            lab.flush().await;
            lab.compact(100).await;
        }
        // A few more runs, so that the last of them leave level 0 too.
        for _ in 0..4 {
            lab.shard.apply(lab.epoch, &ItemWrite::Put { key: key(10_000), value: Bytes::from_static(b"x") });
            let closed = lab.close_epoch();
            lab.env.oldest.set(closed);
            lab.shard.freeze(closed);
            lab.flush().await;
            lab.compact(100).await;
        }
        let left: u64 = lab.levels.iter().skip(1).flatten().map(|m| m.entries + m.range_tombstones).sum();
        assert!(left <= 60, "{left} entries are left of a shard with one item: {:?}", lab.levels);
    });
}

#[test]
fn a_flipped_bit_anywhere_is_an_error_and_never_another_answer() {
    vellum_rt::native::block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = Lab::new(2, &device);
        for i in 0..300 {
            lab.shard.apply(lab.epoch, &ItemWrite::Put { key: key(i), value: Bytes::from(vec![i as u8; 60]) });
        }
        lab.shard.apply(lab.epoch.next(), &ItemWrite::DeleteRange { range: KeyRange::of_inode(Ino(9)) });
        lab.close_epoch();
        let closed = lab.close_epoch();
        lab.shard.freeze(closed);
        lab.flush().await;
        let clean = lab.shard.scan(KeyRange::ALL, closed, usize::MAX, usize::MAX).await.unwrap();
        assert_eq!(clean.items.len(), 292);
        let meta = lab.levels[0][0].clone();
        let mut random = Prng::new(3);
        let mut refused = 0;
        for block in 0..meta.len_bytes / BLOCK_SIZE as u64 {
            let (at, _) = meta.locate(0, block * BLOCK_SIZE as u64).unwrap();
            let before = device.snapshot();
            let mut spoiled = device.snapshot();
            let byte = at + random.below(BLOCK_SIZE as u64);
            let mut value = [0u8];
            spoiled.read(byte, &mut value);
            spoiled.write(byte, &[value[0] ^ (1 << random.below(8))]);
            device.restore(spoiled);
            let shard = open(&lab.env, lab.levels.clone(), closed);
            match shard.scan(KeyRange::ALL, closed, usize::MAX, usize::MAX).await {
                Ok(page) => assert_eq!(page, clean, "block {block} was changed and believed"),
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains("segment"), "{error}");
                }
            }
            device.restore(before);
        }
        assert!(refused >= 3, "only {refused} blocks were read at all");
    });
}
