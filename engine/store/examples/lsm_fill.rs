//! Fills one shard with random keys on a device in memory, and prints rates (per second of CPU time of its one thread),
//! write amplification, and for how long a split of the shard with a full memtable holds its reactor.
//!
//! `cargo run --release -p vellum-store --example lsm_fill -- [keys] [memtable MiB] [cache MiB]`

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::prng::Prng;
use vellum_base::{BLOCK_SIZE, BlockRange, Bucket, Epoch, Ino, Key, KeyRange, SegmentId, ShardId};
use vellum_nvme::Queue;
use vellum_nvme::memory::MemoryDevice;
use vellum_store::lsm::{BlockCache, Edit, ItemWrite, LocalFuture, LsmConfig, LsmError, Shard, ShardEnv};

const VALUE_BYTES: usize = 100;
/// What a put takes in a log, about.
const LOG_BYTES: usize = Key::LEN + VALUE_BYTES + 8;
const PUTS_PER_EPOCH: u64 = 1000;
const GETS: u64 = 500_000;
/// Of a split.
const OPEN_EPOCHS: u64 = 2;

struct Env {
    queue: Rc<dyn Queue>,
    next_id: Cell<u64>,
    next_block: Cell<u64>,
    free: RefCell<Vec<BlockRange>>,
    written_bytes: Cell<u64>,
    live_bytes: Cell<u64>,
    durable: Cell<Epoch>,
}

impl ShardEnv for Env {
    fn queue(&self) -> Rc<dyn Queue> {
        self.queue.clone()
    }

    fn next_segment_ids(&self, count: u64) -> SegmentId {
        let first = self.next_id.get() + 1;
        self.next_id.set(self.next_id.get() + count);
        SegmentId(first)
    }

    fn alloc_segment_space(&self, _: u64, most_bytes: u64) -> LocalFuture<'_, Result<Vec<BlockRange>, LsmError>> {
        self.live_bytes.set(self.live_bytes.get() + most_bytes);
        let blocks = (most_bytes / BLOCK_SIZE as u64) as u32;
        let mut free = self.free.borrow_mut();
        let range = match free.iter().position(|range| range.len_blocks >= blocks) {
            Some(at) => {
                let found = free.swap_remove(at);
                if found.len_blocks > blocks {
                    free.push(BlockRange::new(found.start.0 + u64::from(blocks), found.len_blocks - blocks));
                }
                BlockRange::new(found.start.0, blocks)
            }
            None => {
                let start = self.next_block.get();
                self.next_block.set(start + u64::from(blocks));
                BlockRange::new(start, blocks)
            }
        };
        Box::pin(async move { Ok(vec![range]) })
    }

    fn release_space(&self, space: Vec<BlockRange>) {
        let bytes: u64 = space.iter().map(|range| range.len_bytes() as u64).sum();
        self.live_bytes.set(self.live_bytes.get() - bytes);
        self.free.borrow_mut().extend(space);
    }

    fn oldest_reader(&self) -> Epoch {
        self.durable.get()
    }
}

fn key(i: u64) -> Key {
    let mixed = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Key::fs(Ino(mixed), 1, 0, 0, 0)
}

/// CPU time of this thread: the machine may be busy with other things.
#[derive(Clone, Copy)]
struct Instant(f64);

impl Instant {
    fn now() -> Instant {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Instant(t.tv_sec as f64 + t.tv_nsec as f64 / 1e9)
    }

    fn seconds(self) -> f64 {
        Instant::now().0 - self.0
    }
}

fn rate(count: u64, since: Instant) -> f64 {
    count as f64 / since.seconds() / 1000.0
}

/// What is in another level only was not written.
fn install(shard: &Shard, env: &Env, edit: &Edit) {
    let new = edit.added.iter().filter(|(_, meta)| !edit.removed.contains(&meta.id));
    env.written_bytes.set(env.written_bytes.get() + new.map(|(_, meta)| meta.len_bytes).sum::<u64>());
    shard.install(edit);
}

async fn work(shard: &Rc<Shard>, env: &Env) -> Result<(), LsmError> {
    while let Some(edit) = shard.flush(env.durable.get()).await? {
        install(shard, env, &edit);
    }
    while let Some(job) = shard.pick_compaction() {
        install(shard, env, &shard.compact(job).await?);
    }
    Ok(())
}

async fn run(keys: u64, memtable_bytes: usize, cache_bytes: usize) -> Result<(), Box<dyn std::error::Error>> {
    let device = MemoryDevice::new(keys * 128 * 8 + (1 << 30));
    let queue = vellum_store::PolledQueue::open(&device, 128, "device")?;
    let env = Rc::new(Env {
        queue: queue.clone(),
        next_id: Cell::new(0),
        next_block: Cell::new(1),
        free: RefCell::default(),
        written_bytes: Cell::new(0),
        live_bytes: Cell::new(0),
        durable: Cell::new(Epoch::NONE),
    });
    let cfg = LsmConfig { memtable_bytes, ..LsmConfig::default() };
    let cache = BlockCache::new(cache_bytes);
    let shard = Shard::new(ShardId(0), KeyRange::ALL, Vec::new(), Epoch::NONE, env.clone(), cache.clone(), cfg.clone());

    let value = Bytes::from(vec![7u8; VALUE_BYTES]);
    let (start, mut background) = (Instant::now(), 0.0);
    for i in 0..keys {
        let epoch = Epoch(1 + i / PUTS_PER_EPOCH);
        shard.apply(epoch, ItemWrite::Put { key: key(i), value: value.clone() });
        if (i + 1) % PUTS_PER_EPOCH == 0 {
            env.durable.set(epoch);
            if shard.wants_freeze() {
                shard.freeze(epoch);
                let since = Instant::now();
                work(&shard, &env).await?;
                background += since.seconds();
            }
        }
    }
    let total = start.seconds();
    let raw = keys * (Key::LEN + VALUE_BYTES) as u64;
    let log = keys * LOG_BYTES as u64;
    println!(
        "puts: {:.0} k/s into memtables, {:.0} k/s with flushes and compactions on the same core",
        keys as f64 / (total - background) / 1e3,
        keys as f64 / total / 1e3
    );
    println!(
        "write amplification, log included: {:.2}; segments hold {:.1} bytes for each item of {} bytes",
        (log + env.written_bytes.get()) as f64 / raw as f64,
        env.live_bytes.get() as f64 / (keys as f64 - shard.active_bytes() as f64 / 208.0),
        Key::LEN + VALUE_BYTES
    );

    let mut random = Prng::new(1);
    for pass in ["gets, cache cold", "gets, warm"] {
        let since = Instant::now();
        for _ in 0..GETS {
            let found = shard.get(&key(random.below(keys)), Epoch(u64::MAX)).await?;
            assert!(found.is_some());
        }
        println!("{pass}: {:.0} k/s  {:?}", rate(GETS, since), cache.stats());
    }
    let since = Instant::now();
    for _ in 0..GETS {
        assert!(shard.get(&key(keys + random.below(keys)), Epoch(u64::MAX)).await?.is_none());
    }
    println!("gets of what is not there: {:.0} k/s", rate(GETS, since));
    let since = Instant::now();
    for _ in 0..GETS / 10 {
        let ino = Ino(key(random.below(keys)).first());
        let page = shard.scan(KeyRange::of_inode(ino), Epoch(u64::MAX), 10, 4096).await?;
        assert_eq!(page.items.len(), 1);
    }
    println!("scans of one inode: {:.0} k/s", rate(GETS / 10, since));
    let (since, mut count, mut next) = (Instant::now(), 0, Some(Key::MIN));
    while let Some(first) = next {
        let page = shard.scan(KeyRange { first, last: Key::MAX }, Epoch(u64::MAX), 1000, 1 << 20).await?;
        count += page.items.len() as u64;
        next = page.next;
    }
    assert_eq!(count, keys);
    println!("scan of all: {:.0} k items/s", rate(count, since));
    split(&shard, &cfg, Epoch(1 + keys / PUTS_PER_EPOCH));
    Ok(())
}

/// Fills the memtable once more, with some epochs that are open, and splits the shard.
fn split(shard: &Shard, cfg: &LsmConfig, after: Epoch) {
    let value = Bytes::from(vec![7u8; VALUE_BYTES]);
    let put = |epoch, i| shard.apply(epoch, ItemWrite::Put { key: key(i), value: value.clone() });
    let closed = after.next();
    shard.freeze(after);
    let mut full = 0;
    while !shard.wants_freeze() {
        put(closed, full);
        full += 1;
    }
    let open = OPEN_EPOCHS * PUTS_PER_EPOCH;
    (0..open).for_each(|i| put(Epoch(closed.0 + 1 + i / PUTS_PER_EPOCH), !i));
    let since = Instant::now();
    let halves = shard.split(Bucket(128), ShardId(1), cfg, closed);
    let took_us = since.seconds() * 1e6;
    let bytes: Vec<usize> = halves.iter().map(|half| half.active_bytes()).collect();
    println!("split: {took_us:.0} us with {full} closed items and {open} of open epochs, divided into {bytes:?} bytes");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let keys = args.next().transpose()?.unwrap_or(1_000_000);
    let memtable = args.next().transpose()?.unwrap_or(32) << 20;
    let cache = args.next().transpose()?.unwrap_or(256) << 20;
    vellum_rt::native::block_on(run(keys, memtable as usize, cache as usize))
}
