//! The shard against a plain map of all versions: random writes (also of epochs that are open beyond the one that
//! closes), range deletions, freezes, flushes, compactions that run while everything else goes on, edits that are
//! abandoned, long scans at a pinned epoch, reopening from the segments. A failure prints its seed.

use bytes::Bytes;
use vellum_base::prng::Prng;
use vellum_base::{Epoch, Ino, KeyRange};
use vellum_nvme::memory::MemoryDevice;
use vellum_rt::{Class, JoinHandle};

use super::{DEVICE_BYTES, KEYS, Lab, key, read_all};
use crate::lsm::{Cancel, CompactionJob, Edit, ItemWrite, LsmError, Outcome, execute};
use crate::space::RangeSet;

const STEPS: usize = 600;

struct Walker {
    lab: Lab,
    random: Prng,
    seed: u64,
    compactions: Vec<JoinHandle<Result<Edit, LsmError>>>,
    scan: Option<JoinHandle<()>>,
}

impl Walker {
    /// An epoch to write in: mostly the oldest open one, sometimes the one after it.
    fn epoch(&mut self) -> Epoch {
        if self.random.one_in(10) { self.lab.epoch.next() } else { self.lab.epoch }
    }

    fn write(&mut self) {
        let epoch = self.epoch();
        match self.random.below(32) {
            0..=25 => {
                for _ in 0..1 + self.random.below(20) {
                    let value = Bytes::from(vec![self.random.next_u64() as u8; self.random.below(300) as usize]);
                    let op = ItemWrite::Put { key: key(self.random.below(KEYS)), value };
                    self.lab.apply(epoch, op);
                }
            }
            26..=29 => {
                for _ in 0..1 + self.random.below(10) {
                    let op = ItemWrite::Delete { key: key(self.random.below(KEYS)) };
                    self.lab.apply(epoch, op);
                }
            }
            30 => {
                let range = KeyRange::of_inode(Ino(1 + self.random.below(KEYS / 8)));
                self.lab.apply(epoch, ItemWrite::DeleteRange { range });
            }
            _ => {
                let first = self.random.below(KEYS);
                let range = KeyRange { first: key(first), last: key((first + self.random.below(30)).min(KEYS)) };
                self.lab.apply(epoch, ItemWrite::DeleteRange { range });
            }
        }
    }

    async fn flush(&mut self) {
        while let Some(edit) = self.lab.shard.flush(self.lab.env.durable.get()).await.unwrap() {
            if self.random.one_in(4) {
                self.lab.shard.abandon(edit);
                break;
            }
            self.lab.install(edit);
        }
    }

    fn start_compaction(&mut self) {
        if let Some(job) = self.lab.shard.pick_compaction() {
            let shard = self.lab.shard.clone();
            // As by another process: what it knows of the shard are the bytes of the job.
            let elsewhere = self.random.one_in(2);
            let queue = self.lab.env.queue.clone();
            let task = async move {
                let pick = match job.into_move() {
                    Err(pick) if elsewhere => pick,
                    Err(pick) => return shard.compact(pick).await,
                    Ok(edit) => return Ok(edit),
                };
                let plan = shard.plan(pick).await?;
                let job = CompactionJob::decode(&plan.job().encode().unwrap()).unwrap();
                let outcome = execute(&queue, &job, &Cancel::default()).await?;
                let outcome = Outcome::decode(&outcome.encode().unwrap()).unwrap();
                let verified = plan.verify(outcome).await?;
                Ok(plan.into_edit(verified))
            };
            self.compactions.push(vellum_rt::spawn(Class::Compaction, "compaction", task));
        }
    }

    async fn end_compactions(&mut self, may_fail: bool) {
        for task in std::mem::take(&mut self.compactions) {
            if may_fail && self.random.one_in(8) {
                task.cancel(); // its outputs must not leak
                if let Ok(edit) = task.await {
                    self.lab.shard.abandon(edit.unwrap()); // it was faster
                }
                continue;
            }
            let edit = task.await.unwrap().unwrap();
            if may_fail && self.random.one_in(8) {
                self.lab.shard.abandon(edit);
            } else {
                self.lab.install(edit);
            }
        }
    }

    /// A scan of everything in small pages, at the oldest epoch, while writes and compactions go on.
    fn start_scan(&mut self) {
        let at = self.lab.env.oldest.get();
        if self.scan.is_some() || at == Epoch::NONE {
            return;
        }
        self.lab.env.pinned.set(Some(at));
        let expected = self.lab.model.scan(KeyRange::ALL, at);
        let (shard, seed) = (self.lab.shard.clone(), self.seed);
        let page = 1 + self.random.below(40) as usize;
        self.scan = Some(vellum_rt::spawn(Class::Request, "scan", async move {
            let items = read_all(&shard, KeyRange::ALL, at, || page).await;
            assert!(items == expected, "seed {seed}: a scan at {at} in pages of {page}");
        }));
    }

    async fn end_scan(&mut self) {
        if let Some(task) = self.scan.take() {
            task.await.unwrap();
            self.lab.env.pinned.set(None);
        }
    }

    async fn step(&mut self) {
        match self.random.below(44) {
            0..=29 => self.write(),
            30 | 31 => {
                let closed = self.lab.close_epoch();
                if self.random.one_in(2) {
                    let oldest = Epoch(closed.0.saturating_sub(self.random.below(3)));
                    self.lab.env.oldest.set(oldest.max(self.lab.env.oldest.get()));
                }
            }
            32 | 33 => {
                let closed = self.lab.close_epoch();
                self.lab.shard.freeze(closed);
            }
            34 => self.flush().await,
            35 | 36 => self.start_compaction(),
            37 => self.end_compactions(true).await,
            38 => self.start_scan(),
            39 => self.end_scan().await,
            40 if self.random.one_in(3) => self.reopen().await,
            _ => self.lab.compare(&mut self.random, self.seed).await,
        }
    }

    /// As after a clean stop. What is in memtables of open epochs would come from the log: it is written again.
    async fn reopen(&mut self) {
        self.end_compactions(true).await;
        self.end_scan().await;
        let last = self.lab.epoch.next();
        self.lab.close_epoch();
        self.lab.close_epoch();
        self.lab.shard.freeze(last);
        self.lab.flush().await;
        self.lab.reopen();
    }
}

async fn run(seed: u64) {
    let device = MemoryDevice::new(DEVICE_BYTES);
    let lab = Lab::with_copies(seed, &device, 1 + u8::from(seed.is_multiple_of(4)));
    let mut walker = Walker { lab, random: Prng::new(seed), seed, compactions: Vec::new(), scan: None };
    for _ in 0..STEPS {
        walker.step().await;
    }
    walker.end_compactions(false).await;
    walker.end_scan().await;
    let mut lab = walker.lab;
    lab.close_epoch();
    let closed = lab.close_epoch();
    lab.env.oldest.set(closed);
    lab.shard.freeze(closed);
    lab.flush().await;
    lab.compact(1000).await;
    lab.compare(&mut walker.random, seed).await;
    vellum_rt::yield_now().await;
    let mut live = RangeSet::default();
    for range in lab.levels.iter().flatten().flat_map(|m| m.ranges.iter().chain(&m.mirror)) {
        assert!(live.insert(range.start.0, range.len_blocks.into()), "seed {seed}: {range:?} is two segments'");
    }
    assert!(*lab.env.allocated.borrow() == live, "seed {seed}: space leaked");
}

/// `LSM_SEED` runs one seed, `LSM_SEEDS` that many.
#[test]
fn a_shard_agrees_with_a_map_of_versions() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("LSM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LSM_SEEDS").unwrap_or(25),
    };
    for seed in seeds {
        vellum_rt::native::block_on(run(seed));
    }
}
