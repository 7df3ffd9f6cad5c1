//! Shards that split at random against a plain map of all versions: writes (also of epochs that stay open), deletions of
//! whole inodes, flushes, compactions here and as if by another process, scans that began before a split, reopening. A
//! failure prints its seed.

use std::rc::Rc;

use bytes::Bytes;
use vellum_base::prng::Prng;
use vellum_base::{Bucket, Epoch, Ino, Key, KeyRange, ShardId};
use vellum_format::SegmentMeta;
use vellum_nvme::memory::MemoryDevice;
use vellum_rt::{Class, JoinHandle};

use super::{BlockCache, DEVICE_BYTES, Lab, Model, TestEnv, config, read_all};
use crate::holders::Holders;
use crate::lsm::{Cancel, CompactionJob, Edit, ItemWrite, Outcome, Shard, execute};
use crate::space::RangeSet;

const STEPS: usize = 500;
const BUCKETS: u64 = 8;
const INODES: u64 = 6;
const ITEMS: u64 = 8;

fn inode(n: u64) -> Ino {
    Ino(((n % BUCKETS) << 56) | (1 + n / BUCKETS % INODES))
}

fn key(n: u64) -> Key {
    Key::fs(inode(n), 3, n / BUCKETS / INODES % ITEMS, 0, 0)
}

/// A shard, and its segments by level as the manifest would have them.
struct One {
    shard: Rc<Shard>,
    levels: Vec<Vec<SegmentMeta>>,
}

impl One {
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

    async fn flush(&mut self, durable: Epoch) {
        while let Some(edit) = self.shard.flush(durable).await.unwrap() {
            self.install(edit);
        }
    }

    async fn compact(&mut self, elsewhere: bool) -> bool {
        let Some(pick) = self.shard.pick_compaction() else { return false };
        let edit = match pick.into_move() {
            Ok(edit) => edit,
            Err(pick) if elsewhere => {
                let plan = self.shard.plan(pick).await.unwrap();
                let job = CompactionJob::decode(&plan.job().encode().unwrap()).unwrap();
                let outcome = execute(&self.shard.env.queue(), &job, &Cancel::default()).await.unwrap();
                let verified = plan.verify(Outcome::decode(&outcome.encode().unwrap()).unwrap()).await.unwrap();
                plan.into_edit(verified)
            }
            Err(pick) => self.shard.compact(pick).await.unwrap(),
        };
        self.install(edit);
        true
    }
}

struct Walker {
    lab: Lab,
    shards: Vec<One>,
    model: Model,
    random: Prng,
    seed: u64,
    scans: Vec<JoinHandle<()>>,
    splits: u32,
}

fn open(env: &Rc<TestEnv>, id: ShardId, range: KeyRange, levels: Vec<Vec<SegmentMeta>>, through: Epoch) -> Rc<Shard> {
    Shard::new(id, range, levels, through, env.clone(), BlockCache::new(64 << 10), config(1))
}

impl Walker {
    fn new(seed: u64) -> Walker {
        let lab = Lab::new(seed, &MemoryDevice::new(DEVICE_BYTES));
        let range = KeyRange::of_buckets(Bucket(0), Bucket(255));
        let first = One { shard: open(&lab.env, ShardId(0), range, Vec::new(), Epoch::NONE), levels: Vec::new() };
        let (shards, model, random) = (vec![first], Model::default(), Prng::new(seed));
        Walker { lab, shards, model, random, seed, scans: Vec::new(), splits: 0 }
    }

    fn at(&self, key: &Key) -> &Rc<Shard> {
        &self.shards.iter().find(|one| one.shard.range().contains(key)).unwrap().shard
    }

    fn write(&mut self) {
        let epoch = if self.random.one_in(10) { self.lab.epoch.next() } else { self.lab.epoch };
        for _ in 0..1 + self.random.below(20) {
            let n = self.random.next_u64() >> 1;
            let key = key(n);
            match self.random.below(30) {
                0 => {
                    let range = KeyRange::of_inode(inode(n));
                    self.at(&range.first).apply(epoch, ItemWrite::DeleteRange { range });
                    for i in (0..ITEMS).map(|i| Key::fs(inode(n), 3, i, 0, 0)) {
                        self.model.put(epoch, i, None);
                    }
                }
                1..=4 => {
                    self.at(&key).apply(epoch, ItemWrite::Delete { key });
                    self.model.put(epoch, key, None);
                }
                _ => {
                    let value = Bytes::from(vec![n as u8; self.random.below(300) as usize]);
                    self.at(&key).apply(epoch, ItemWrite::Put { key, value: value.clone() });
                    self.model.put(epoch, key, Some(value));
                }
            }
        }
    }

    /// Some writes are frozen, some of those flushed, or all are in the active memtable: a split may come in their midst.
    async fn split(&mut self) {
        let at = Bucket(1 + self.random.below(BUCKETS - 1) as u8);
        let mut whole = self.take(at);
        let closed = self.lab.env.durable.get();
        if self.random.one_in(2) {
            whole.shard.freeze(closed);
        }
        if self.random.one_in(4) {
            whole.flush(closed).await;
        }
        let (first, id) = (whole.shard.range().first.bucket(), whole.shard.id());
        if !whole.shard.is_idle() || at <= first {
            self.shards.push(whole);
            return;
        }
        self.splits += 1;
        let new = ShardId(self.splits);
        let upper = KeyRange::of_buckets(at, Bucket(255));
        let crosses = |m: &&SegmentMeta| m.first < upper.first && m.last >= upper.first;
        let crossing: Vec<_> = whole.levels.iter().flatten().filter(crosses).map(|m| m.id).collect();
        crossing.into_iter().for_each(|id| self.lab.env.holders.borrow_mut().split(id));
        let halves = whole.shard.split(at, new, &config(1), closed);
        assert_eq!(halves[0].id(), id);
        for shard in halves {
            let range = shard.range();
            let mine = |m: &&SegmentMeta| range.overlaps(&KeyRange { first: m.first, last: m.last });
            let levels = whole.levels.iter().map(|list| list.iter().filter(mine).cloned().collect()).collect();
            self.shards.push(One { shard, levels });
        }
    }

    fn take(&mut self, bucket: Bucket) -> One {
        let key = KeyRange::of_buckets(bucket, bucket).first;
        let at = self.shards.iter().position(|one| one.shard.range().contains(&key)).unwrap();
        self.shards.swap_remove(at)
    }

    /// Reads a shard as it is now, at the oldest epoch, while it is split, merged and written.
    fn start_scan(&mut self) {
        let at = self.lab.env.oldest.get();
        if at == Epoch::NONE || !self.scans.is_empty() {
            return;
        }
        self.lab.env.pinned.set(Some(at));
        let i = self.random.below(self.shards.len() as u64) as usize;
        let (shard, seed) = (self.shards[i].shard.clone(), self.seed);
        let expected = self.model.scan(shard.range(), at);
        let page = 1 + self.random.below(40) as usize;
        self.scans.push(vellum_rt::spawn(Class::Request, "scan", async move {
            let items = read_all(&shard, shard.range(), at, || page).await;
            assert!(items == expected, "seed {seed}: a scan at {at} in pages of {page}");
        }));
    }

    async fn end_scans(&mut self) {
        for scan in std::mem::take(&mut self.scans) {
            scan.await.unwrap();
        }
        self.lab.env.pinned.set(None);
    }

    async fn compare(&mut self) {
        for at in [Epoch(u64::MAX), self.lab.env.oldest.get()] {
            if at == Epoch::NONE {
                continue;
            }
            for one in &self.shards {
                let range = one.shard.range();
                let found = read_all(&one.shard, range, at, || 50).await;
                assert_eq!(found, self.model.scan(range, at), "seed {}: {range:?} at {at}", self.seed);
            }
            for _ in 0..20 {
                let k = key(self.random.next_u64() >> 1);
                let found = self.at(&k).get(&k, at).await.unwrap();
                assert_eq!(found, self.model.get(&k, at), "seed {}: {k:?} at {at}", self.seed);
            }
        }
    }

    async fn step(&mut self) {
        match self.random.below(40) {
            0..=25 => self.write(),
            26..=28 => {
                let closed = self.lab.close_epoch();
                self.lab.env.oldest.set(closed);
            }
            29 | 30 => {
                let i = self.random.below(self.shards.len() as u64) as usize;
                let closed = self.lab.env.durable.get();
                self.shards[i].shard.freeze(closed);
                self.shards[i].flush(closed).await;
            }
            31..=33 => {
                let i = self.random.below(self.shards.len() as u64) as usize;
                let elsewhere = self.random.one_in(2);
                self.shards[i].compact(elsewhere).await;
            }
            34 => self.split().await,
            35 => self.start_scan(),
            36 => self.end_scans().await,
            37 if self.random.one_in(4) => self.reopen().await,
            _ => self.compare().await,
        }
    }

    /// As after a clean stop: everything comes from the segments, and who holds them from the manifest.
    async fn reopen(&mut self) {
        self.end_scans().await;
        self.lab.close_epoch();
        let last = self.lab.close_epoch();
        let mut named = std::collections::BTreeMap::new();
        for one in &mut self.shards {
            one.shard.freeze(last);
            one.flush(last).await;
            let (id, range, through) = (one.shard.id(), one.shard.range(), one.shard.flushed_through());
            one.levels.iter().flatten().for_each(|m| *named.entry(m.id).or_insert(0) += 1);
            one.shard = open(&self.lab.env, id, range, one.levels.clone(), through);
        }
        *self.lab.env.holders.borrow_mut() = Holders::of(named);
    }
}

async fn run(seed: u64) -> u32 {
    let mut walker = Walker::new(seed);
    for _ in 0..STEPS {
        walker.step().await;
    }
    walker.reopen().await;
    for one in &mut walker.shards {
        while one.compact(false).await {}
        let range = one.shard.range();
        for meta in one.levels.iter().flatten() {
            let inside = range.contains(&meta.first) && range.contains(&meta.last);
            assert!(inside, "seed {seed}: {meta:?} is still in two shards");
        }
    }
    walker.compare().await;
    vellum_rt::yield_now().await;
    let mut live = RangeSet::default();
    for range in walker.shards.iter().flat_map(|one| one.levels.iter().flatten()).flat_map(|m| &m.ranges) {
        assert!(live.insert(range.start.0, range.len_blocks.into()), "seed {seed}: {range:?} is two segments'");
    }
    assert!(*walker.lab.env.allocated.borrow() == live, "seed {seed}: space leaked");
    walker.splits
}

/// What is closed is not copied, so the time of a split does not depend on it.
#[test]
fn halves_share_what_is_frozen_and_flush_their_own_keys() {
    vellum_rt::native::block_on(async {
        let lab = Lab::new(1, &MemoryDevice::new(DEVICE_BYTES));
        let range = KeyRange::of_buckets(Bucket(0), Bucket(255));
        let whole = open(&lab.env, ShardId(0), range, Vec::new(), Epoch::NONE);
        let all = BUCKETS * INODES * ITEMS;
        let put = |epoch, n, text| {
            let op = ItemWrite::Put { key: key(n), value: Bytes::from_static(text) };
            whole.apply(Epoch(epoch), op);
        };
        (0..all).for_each(|n| put(1, n, b"closed"));
        whole.apply(Epoch(1), ItemWrite::DeleteRange { range: KeyRange::of_inode(inode(5)) });
        (0..BUCKETS).for_each(|n| put(2, n, b"open"));
        let halves = whole.split(Bucket(4), ShardId(1), &config(1), Epoch(1));
        for half in halves {
            assert_eq!(half.frozen_tables(), 1);
            assert!(half.active_bytes() > 0 && half.active_bytes() < whole.memtable_bytes() / 20);
            let before = read_all(&half, half.range(), Epoch(u64::MAX), || 50).await;
            let edit = half.flush(Epoch(1)).await.unwrap().unwrap();
            for (_, meta) in &edit.added {
                assert!(half.range().contains(&meta.first) && half.range().contains(&meta.last), "{meta:?}");
            }
            half.install(&edit);
            assert_eq!(half.frozen_tables(), 0);
            let after = read_all(&half, half.range(), Epoch(u64::MAX), || 50).await;
            assert_eq!(before, after);
            let gone = if half.id() == ShardId(1) { ITEMS - 1 } else { 0 };
            assert_eq!(after.len() as u64, all / 2 - gone, "of the inode that was deleted one item came back");
        }
    });
}

/// `LSM_SEED` runs one seed, `LSM_SEEDS` that many.
#[test]
fn shards_that_split_agree_with_a_map_of_versions() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("LSM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LSM_SEEDS").unwrap_or(25),
    };
    let (runs, mut splits) = (seeds.end - seeds.start, 0);
    for seed in seeds {
        splits += u64::from(vellum_rt::native::block_on(run(seed)));
    }
    assert!(splits > runs, "{splits} splits in {runs} runs");
}
