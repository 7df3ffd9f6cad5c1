//! Long life in short time (scenario 48): the same population is overwritten again and again, and the device is filled and
//! emptied many times. What a byte costs, in space and in writes, and what the engine holds in memory stay what they were.
//! Asserted on counters; time is only printed.
//!
//! `VELLUM_ROUNDS` makes it longer: a round of overwriting is what a busy day brings to 6,000 files. `VELLUM_COPIES=2` shows
//! what a second copy of the segments costs.

mod common;

use std::collections::BTreeMap;
use std::rc::Rc;

use common::count::CountingDevice;
use common::sparse::{Files, settle, until_enough};
use common::*;
use vellum_base::prng::Prng;
use vellum_base::{Ino, ItemOp, Key};
use vellum_format::Inode;
use vellum_rt::native::block_on;
use vellum_store::{CheckOptions, MkfsOptions, OpenOptions, Store, StoreError, StoreStatus, mkfs};

const FILES: u64 = 6_000;
/// Overwrites of one round, in batches of `BATCH`.
const WRITES: u64 = 12_000;
const BATCH: u64 = 60;
/// Files that have blocks, which are overwritten too.
const LARGE: u64 = 64;

fn rounds(default: usize) -> usize {
    std::env::var("VELLUM_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

async fn make_with_copies(device: &std::sync::Arc<dyn vellum_nvme::Device>) {
    let metadata_copies = std::env::var("VELLUM_COPIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let q = queue(device);
    mkfs(device, &q, MkfsOptions { metadata_copies, ..MkfsOptions::default() }).await.unwrap();
}

fn file(n: u64) -> Ino {
    ino((n * 89 % 256) as u8, 2 + n)
}

struct Life {
    client: Client,
    prng: Prng,
    /// Bytes of items and data given to the store since the round began.
    user_bytes: u64,
    extents: BTreeMap<Ino, Vec<Key>>,
    version: u64,
}

impl Life {
    /// A small file's content: an inode and an inline item.
    fn small(&mut self, n: u64, ops: &mut BTreeMap<Key, ItemOp>) {
        let mut text = vec![0; 100 + self.prng.below(800) as usize];
        self.prng.fill(&mut text);
        self.version += 1;
        for op in [put(inline_key(file(n)), text.into()), put_inode(file(n), &inode(1, self.version))] {
            let ItemOp::Put { key, value } = &op else { unreachable!() };
            self.user_bytes += (Key::LEN + value.len()) as u64;
            ops.insert(*key, op);
        }
    }

    async fn round(&mut self, stores: &[Rc<Store>]) {
        for n in 0..WRITES / BATCH {
            let store = &stores[(n % stores.len() as u64) as usize];
            let mut ops = BTreeMap::new();
            for _ in 0..BATCH {
                let n = self.prng.below(FILES);
                self.small(n, &mut ops);
            }
            self.client.commit(store, ops.into_values().collect()).await.unwrap();
            if n % 4 == 0 {
                let n = FILES + self.prng.below(LARGE);
                self.large(store, n, 32).await.unwrap();
            }
        }
    }

    /// New content for a file of blocks; its old ones are freed.
    async fn large(&mut self, store: &Rc<Store>, n: u64, len: usize) -> Result<(), StoreError> {
        self.version += 1;
        let (at, data) = (file(n), blocks(len, self.version as u8).freeze());
        let ranges = store.write_data(self.client.rid, data.clone()).await?;
        let old = self.extents.remove(&at).unwrap_or_default();
        let mut ops: BTreeMap<Key, ItemOp> = old.into_iter().map(|key| (key, ItemOp::Delete { key })).collect();
        let (mut block, mut keys) = (0, Vec::new());
        for range in &ranges {
            let end = block + range.len_blocks as usize;
            let op = extent_op(at, block as u64, *range, &data[block * 4096..end * 4096]);
            let ItemOp::Put { key, .. } = &op else { unreachable!() };
            keys.push(*key);
            ops.insert(*key, op);
            block = end;
        }
        self.extents.insert(at, keys);
        self.user_bytes += (len * 4096) as u64;
        let mut ops: Vec<ItemOp> = ops.into_values().collect();
        ops.push(put_inode(at, &Inode { online_blocks: len as u64, ..inode(len as u64 * 4096, self.version) }));
        self.client.commit(store, ops).await.unwrap();
        Ok(())
    }

    /// Deaths of all files of blocks.
    async fn delete_large(&mut self, store: &Rc<Store>) {
        for (at, keys) in std::mem::take(&mut self.extents) {
            let mut ops: Vec<ItemOp> = keys.into_iter().map(|key| ItemOp::Delete { key }).collect();
            ops.push(ItemOp::DeleteInode { ino: at });
            self.client.commit(store, ops).await.unwrap();
        }
    }
}

/// Everything that is held in memory or in a ring is within what `status` says is its bound.
fn assert_bounds(status: &StoreStatus) {
    assert!(status.seals_used <= status.seals_bound);
    for r in &status.reactors {
        assert!(r.memtable_bytes <= r.memtable_bound_bytes, "memtables: {r:?}");
        assert!(r.log_used_bytes <= r.log_bound_bytes, "log: {r:?}");
        assert!(r.cache.bytes <= r.cache_bound_bytes, "cache: {r:?}");
        assert!(r.compactions.running <= r.compactions.running_bound, "compactions: {r:?}");
        assert_eq!(r.compactions.failed, 0, "{:?}", r.compactions.last_error);
    }
}

async fn settled(stores: &[Rc<Store>]) -> StoreStatus {
    let open = stores[0].status().await.unwrap().open_epoch;
    stores[0].wait_durable(open).await.unwrap();
    // Merging that was begun ends; what it freed is told when nobody reads it any more.
    for _ in 0..400 {
        let status = stores[0].status().await.unwrap();
        let busy =
            |r: &vellum_store::ReactorStatus| r.compactions.running > 0 || r.frozen_tables > 0 || r.waiting_blocks > 0;
        if !status.reactors.iter().any(busy) {
            return status;
        }
        vellum_rt::sleep(std::time::Duration::from_millis(5)).await;
    }
    stores[0].status().await.unwrap()
}

fn options_small(reactors: usize) -> OpenOptions {
    OpenOptions { memtable_bytes: 4 << 20, cache_bytes: 2 << 20, ..options(reactors) }
}

#[derive(Debug)]
struct Cost {
    /// Bytes written to the device for each byte given, in hundredths.
    writes: u64,
    used_blocks: u64,
    segments: usize,
}

#[test]
fn overwriting_costs_the_same_on_the_last_day_as_on_the_first() {
    block_on(async {
        let device = CountingDevice::new(256 * MIB);
        make_with_copies(&device.as_device()).await;
        let (stores, _) = start(&device.as_device(), options_small(2)).await.unwrap();
        let client = Client::open(&stores[0], RID).await;
        let mut life = Life { client, prng: Prng::new(7), user_bytes: 0, extents: BTreeMap::new(), version: 0 };
        let began = std::time::Instant::now();
        let mut costs = Vec::new();
        for round in 0..rounds(12) {
            device.take_written();
            life.user_bytes = 0;
            life.round(&stores).await;
            let status = settled(&stores).await;
            assert_bounds(&status);
            let cost = Cost {
                writes: device.take_written() * 100 / life.user_bytes,
                used_blocks: status.space.total_blocks - status.space.free_blocks,
                segments: status.segments,
            };
            println!("round {round}: {cost:?}, {} bytes, {:?}", life.user_bytes, began.elapsed());
            costs.push(cost);
        }
        // The first rounds fill what is empty.
        let (early, late) = costs[3..].split_at((costs.len() - 3) / 2);
        let mean = |of: &[Cost], f: fn(&Cost) -> u64| of.iter().map(f).sum::<u64>() / of.len() as u64;
        for (what, f) in [
            ("bytes written per byte", (|c| c.writes) as fn(&Cost) -> u64),
            ("blocks in use", |c| c.used_blocks),
            ("segments", |c| c.segments as u64),
        ] {
            let (before, after) = (mean(early, f), mean(late, f));
            assert!(after * 10 <= before * 12, "{what}: {before} in the first half, {after} in the second: {costs:?}");
        }
        let status = stores[0].status().await.unwrap();
        let debt = status.reactors.iter().map(|r| r.compaction_debt).fold(0.0, f32::max);
        assert!(debt < 1.0, "merging is behind: {debt}");
        stores[0].shutdown().await.unwrap();
        drop(stores);
        let q = queue(&device.as_device());
        let report = vellum_store::check(&device.as_device(), &q, CheckOptions { data: true }).await.unwrap();
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
        assert!(report.inodes <= FILES + LARGE && report.inodes > FILES / 2);
    });
}

#[test]
fn a_device_is_filled_and_emptied_many_times() {
    block_on(async {
        let device = memory(96 * MIB);
        make(&device).await;
        let (mut stores, _) = start(&device, options_small(2)).await.unwrap();
        let client = Client::open(&stores[0], RID).await;
        let mut life = Life { client, prng: Prng::new(9), user_bytes: 0, extents: BTreeMap::new(), version: 0 };
        let (mut full, mut free) = (Vec::new(), Vec::new());
        for round in 0..rounds(8) {
            let mut n = FILES + 1_000 * round as u64;
            loop {
                // Of several lengths, so that what is freed is in pieces.
                let len = 1 + life.prng.below(64) as usize;
                match life.large(&stores[(n % 2) as usize], n, len).await {
                    Ok(()) => n += 1,
                    Err(StoreError::NoSpace) => break,
                    Err(e) => panic!("{e}"),
                }
            }
            full.push(life.extents.len());
            assert_bounds(&stores[0].status().await.unwrap());
            // On a full device small changes and deletion go on.
            let mut ops = BTreeMap::new();
            (0..50).for_each(|n| life.small(n, &mut ops));
            life.client.commit(&stores[1], ops.into_values().collect()).await.unwrap();
            if round % 3 == 2 {
                stores[0].shutdown().await.unwrap();
                stores = start(&device, options_small(2)).await.unwrap().0;
                life.client = Client::open(&stores[0], RID).await;
            }
            life.delete_large(&stores[0]).await;
            let status = settled(&stores).await;
            assert_bounds(&status);
            free.push(status.space.free_blocks);
            println!("round {round}: {} files, then {} blocks free", full[round], free[round]);
        }
        let (first, last) = (free[1], *free.last().unwrap());
        assert!(last * 20 >= first * 19, "blocks free when it was emptied: {free:?}");
        let most = *full.iter().max().unwrap();
        assert!(full.iter().all(|n| n * 4 >= most * 3), "files that it held: {full:?}");
        stores[0].shutdown().await.unwrap();
        drop(stores);
        let q = queue(&device);
        let report = vellum_store::check(&device, &q, CheckOptions { data: true }).await.unwrap();
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
    });
}

/// The device is filled with files, and one in eight is left, round after round: what is free is in pieces, and becomes whole
/// chunks again each time. In between metadata take them, and give them back.
#[test]
fn free_space_in_pieces_comes_together_in_every_round() {
    block_on(async {
        let device = memory(96 * MIB);
        make(&device).await;
        let options = OpenOptions { evacuation_bytes_per_s: Some(0), ..options_small(2) };
        let (mut stores, _) = start(&device, options.clone()).await.unwrap();
        let client = Client::open(&stores[0], RID).await;
        let mut life = Life { client, prng: Prng::new(11), user_bytes: 0, extents: BTreeMap::new(), version: 0 };
        // The small files are there from the first round on; what their metadata take is a steady state then.
        for first in (0..FILES).step_by(BATCH as usize) {
            let mut ops = BTreeMap::new();
            (first..first + BATCH).for_each(|n| life.small(n, &mut ops));
            life.client.commit(&stores[0], ops.into_values().collect()).await.unwrap();
        }
        stores[0].compact_all().await.unwrap();
        let (mut files, mut full) = (Files::default(), Vec::new());
        for round in 0..rounds(4) {
            full.push(files.scatter(&stores, &mut life.client, 8).await);
            let status = until_enough(&stores[0]).await;
            assert_eq!((status.evacuation.problems, &status.evacuation.last_error), (0, &None));
            assert_bounds(&status);
            files.verify(&stores[0]).await;
            for _ in 0..100 {
                let mut ops = BTreeMap::new();
                (0..BATCH).for_each(|_| {
                    let n = life.prng.below(FILES);
                    life.small(n, &mut ops);
                });
                life.client.commit(&stores[round % 2], ops.into_values().collect()).await.unwrap();
            }
            if round % 2 == 1 {
                stores[0].shutdown().await.unwrap();
                stores = start(&device, options.clone()).await.unwrap().0;
                life.client = Client::open(&stores[0], RID).await;
            }
            files.verify(&stores[0]).await;
            for at in files.0.keys().copied().collect::<Vec<_>>() {
                files.delete(&stores[0], &mut life.client, at).await;
            }
            let status = settle(&stores[0]).await;
            println!("round {round}: {} files, {} blocks free", full[round], status.space.free_blocks);
        }
        let most = *full.iter().max().unwrap();
        assert!(full.iter().all(|n| n * 4 >= most * 3), "files that it held: {full:?}");
        stores[0].shutdown().await.unwrap();
        drop(stores);
        let q = queue(&device);
        let report = vellum_store::check(&device, &q, CheckOptions { data: true }).await.unwrap();
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
    });
}
