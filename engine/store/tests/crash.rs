//! P1, P2: power is cut at every few writes and flushes of a run, unflushed writes are lost, torn or reordered, and what
//! recovery finds is a prefix of the client's batches that holds everything that was acknowledged as durable. Then the
//! run goes on from there and is cut again (E2, E5).

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use common::crash::CrashDevice;
use common::*;
use vellum_base::prng::Prng;
use vellum_base::{Bucket, Ino, ItemOp, Key, KeyRange, View, Zone, crc32c};
use vellum_format::{Extent, IndexKind, Inode};
use vellum_nvme::Image;
use vellum_nvme::memory::MemoryDevice;
use vellum_rt::native::block_on;
use vellum_store::{CheckOptions, MkfsOptions, OpenOptions, Store};

/// What the client's items should be after each batch: keys to values, sequences zeroed.
type Model = BTreeMap<Key, Bytes>;

#[derive(Clone)]
struct Run {
    /// `states[k]` is after batch k.
    states: Vec<Model>,
    prng: Prng,
    /// Shards are split on the way.
    splits: bool,
    /// And move to other reactors, which so many did.
    moves: bool,
    moved: usize,
    /// Files get blocks of others, and so many extents did.
    shares: bool,
    shared: usize,
}

fn plain(key: &Key, value: &Bytes) -> Bytes {
    if *key == Inode::key(Ino(key.first())) {
        let mut v = value.to_vec();
        Inode::stamp(&mut v, 0, 0);
        return v.into();
    }
    value.clone()
}

impl Run {
    fn options(&self, reactors: usize) -> OpenOptions {
        // With splits the segments are what matters: several flushes before each.
        let memtable_bytes = if self.splits { 48 << 10 } else { 256 << 10 };
        OpenOptions { memtable_bytes, ..options(reactors) }
    }

    async fn step(&mut self, store: &Rc<Store>, client: &mut Client) -> vellum_base::Epoch {
        let mut model = self.states.last().unwrap().clone();
        let mut ops = BTreeMap::new();
        for _ in 0..=self.prng.below(6) {
            let ino = ino((self.prng.below(8) * 32) as u8, 2 + self.prng.below(6));
            let extents: Vec<Key> = model
                .keys()
                .filter(|k| k.first() == ino.0 && k.kind() == vellum_format::ItemKind::Extent as u8)
                .copied()
                .collect();
            if ops.keys().any(|k: &Key| k.first() == ino.0) {
                continue;
            }
            match self.prng.below(6) {
                0 if model.contains_key(&Inode::key(ino)) => {
                    for key in extents {
                        ops.insert(key, ItemOp::Delete { key });
                    }
                    model.retain(|k, _| k.first() != ino.0);
                    ops.insert(Inode::key(ino), ItemOp::DeleteInode { ino });
                }
                1 | 2 => {
                    let n = 1 + self.prng.below(3) as usize;
                    let data = blocks(n, self.prng.next_u64() as u8).freeze();
                    let ranges = store.write_data(client.rid, data.clone()).await.unwrap();
                    for key in extents {
                        ops.insert(key, ItemOp::Delete { key });
                        model.remove(&key);
                    }
                    let mut at = 0;
                    for r in ranges {
                        let end = at + r.len_blocks as usize;
                        let op = extent_op(ino, at as u64, r, &data[at * 4096..end * 4096]);
                        let ItemOp::Put { key, value } = &op else { unreachable!() };
                        model.insert(*key, value.clone());
                        ops.insert(*key, op);
                        at = end;
                    }
                    let version = self.prng.next_u64();
                    let i = put_inode(ino, &Inode { online_blocks: n as u64, ..inode(n as u64 * 4096, version) });
                    let ItemOp::Put { key, value } = &i else { unreachable!() };
                    model.insert(*key, value.clone());
                    ops.insert(*key, i);
                }
                3 if self.shares => {
                    // The blocks of another file in place of its own.
                    let at = self.prng.below(8 * 6);
                    let source = common::ino((at / 6 * 32) as u8, 2 + at % 6);
                    let theirs: Vec<(Key, Bytes)> = model
                        .iter()
                        .filter(|(k, _)| k.first() == source.0 && k.kind() == vellum_format::ItemKind::Extent as u8)
                        .map(|(k, v)| (*k, v.clone()))
                        .collect();
                    if source == ino || theirs.is_empty() || ops.keys().any(|k: &Key| k.first() == source.0) {
                        continue;
                    }
                    for key in extents {
                        ops.insert(key, ItemOp::Delete { key });
                        model.remove(&key);
                    }
                    let mut n = 0;
                    for (key, value) in theirs {
                        let len = Extent::decode_header(&value).unwrap().len_blocks;
                        let copy = Extent::key(ino, Extent::first_block(&key, len).unwrap(), len);
                        n += u64::from(len);
                        ops.insert(key, put(key, value.clone()));
                        ops.insert(copy, put(copy, value.clone()));
                        model.insert(copy, value);
                        self.shared += 1;
                    }
                    let i = put_inode(ino, &Inode { online_blocks: n, ..inode(n * 4096, self.prng.next_u64()) });
                    let ItemOp::Put { key, value } = &i else { unreachable!() };
                    model.insert(*key, value.clone());
                    ops.insert(*key, i);
                }
                _ => {
                    let mut text = vec![0; 1 + self.prng.below(900) as usize];
                    self.prng.fill(&mut text);
                    let online_blocks =
                        model.get(&Inode::key(ino)).map_or(0, |v| Inode::decode(v).unwrap().online_blocks);
                    let new = Inode { online_blocks, ..inode(self.prng.next_u64(), 1) };
                    for op in [put(inline_key(ino), text.into()), put_inode(ino, &new)] {
                        let ItemOp::Put { key, value } = &op else { unreachable!() };
                        model.insert(*key, value.clone());
                        ops.insert(*key, op);
                    }
                }
            }
        }
        // The death of an inode comes after the deletion of its extents.
        let (deaths, others): (Vec<_>, Vec<_>) =
            ops.into_values().partition(|op| matches!(op, ItemOp::DeleteInode { .. }));
        let epoch = client.commit(store, others.into_iter().chain(deaths).collect()).await.unwrap();
        self.states.push(model);
        epoch
    }
}

async fn items(store: &Rc<Store>) -> Model {
    let (mut range, mut out) = (KeyRange::ALL, Model::new());
    loop {
        let page = store.scan(range, 100, 1 << 20, View::Applied).await.unwrap();
        out.extend(page.items.into_iter().filter(|(k, _)| k.zone() == Some(Zone::Fs)).map(|(k, v)| (k, plain(&k, &v))));
        match page.next {
            Some(next) => range.first = next,
            None => return out,
        }
    }
}

/// Recovers an image and holds it against the run. Gives the number of batches that survived.
async fn check(stores: &[Rc<Store>], run: &Run, acknowledged: u64, what: &str) -> usize {
    let client = Client::open(&stores[0], RID).await;
    let survived = client.next - 1;
    assert!(survived >= acknowledged, "{what}: batch {acknowledged} was durable, and only {survived} are left");
    let model = &run.states[survived as usize];
    let found = items(&stores[0]).await;
    assert!(found == *model, "{what}: {survived} batches: {} items, expected {}", found.len(), model.len());
    let mut inodes = 0;
    for (key, value) in &found {
        inodes += usize::from(*key == Inode::key(Ino(key.first())));
        if key.kind() == vellum_format::ItemKind::Extent as u8 {
            let extent = Extent::decode(value).unwrap();
            let data = stores[0].read_data(&[extent.header.blocks().unwrap()]).await.unwrap();
            let crcs: Vec<u32> = data.chunks(4096).map(crc32c).collect();
            assert_eq!(crcs, extent.checksums, "{what}: data of {key:?}");
        }
    }
    let page = stores[0].walk(IndexKind::MetaSeq, (0, Ino::NONE), u64::MAX, 10_000).await.unwrap();
    assert_eq!(page.entries.len(), inodes, "{what}: index entries");
    let used: BTreeSet<u64> = found
        .iter()
        .filter(|(k, _)| k.kind() == vellum_format::ItemKind::Extent as u8)
        .filter_map(|(_, v)| Extent::decode_header(v).unwrap().blocks())
        .flat_map(|blocks| blocks.start.0..blocks.start.0 + u64::from(blocks.len_blocks))
        .collect();
    let status = stores[0].status().await.unwrap();
    assert_eq!(status.reactors.iter().map(|r| r.used_blocks).sum::<u64>(), used.len() as u64, "{what}: blocks in use");
    survived as usize
}

/// Steps with durable waits now and then; the device notes what is known to be durable.
async fn go_on(device: &CrashDevice, stores: &[Rc<Store>], run: &mut Run, steps: usize) {
    let mut client = Client::open(&stores[0], RID).await;
    for _ in 0..steps {
        let store = stores[run.prng.below(stores.len() as u64) as usize].clone();
        let epoch = run.step(&store, &mut client).await;
        match run.prng.below(4) {
            0 => {
                store.wait_durable(epoch).await.unwrap();
                device.note(client.next - 1);
            }
            1 => vellum_rt::sleep(std::time::Duration::from_micros(run.prng.below(7000))).await,
            _ => {}
        }
        if run.moves && run.prng.one_in(3) {
            let to = vellum_base::ReactorId(run.prng.below(stores.len() as u64) as u16);
            let bucket = Bucket((run.prng.below(8) * 32) as u8);
            run.moved += usize::from(store.move_shard(bucket, to).await.unwrap());
        }
        if run.splits && run.prng.one_in(10) {
            store.split_shard(Bucket((run.prng.below(8) * 32) as u8)).await.unwrap();
        }
    }
}

fn crash_run(seed: u64, reactors: usize, steps: usize, every: u64) {
    crash_run_with(seed, reactors, steps, every, &[]);
}

#[derive(PartialEq)]
enum With {
    Splits,
    Moves,
    /// And so without shared blocks.
    Format1,
}

fn crash_run_with(seed: u64, reactors: usize, steps: usize, every: u64, with: &[With]) {
    let [splits, moves, format_1] = [With::Splits, With::Moves, With::Format1].map(|one| with.contains(&one));
    let mut first = block_on(async {
        let memory = MemoryDevice::new(128 * MIB);
        let device: std::sync::Arc<dyn vellum_nvme::Device> = std::sync::Arc::new(memory.clone());
        let queue = queue(&device);
        let shards = if splits { 2 } else { 8 };
        vellum_store::mkfs(&device, &queue, MkfsOptions { shards, ..MkfsOptions::default() }).await.unwrap();
        memory.snapshot()
    });
    if format_1 {
        of_format_1(&mut first);
    }
    let (states, prng, shares) = (vec![Model::new()], Prng::new(seed), !format_1);
    let mut run = Run { states, prng, splits, moves, moved: 0, shares, shared: 0 };
    let cuts = cut_run(first, reactors, steps, every, &mut run);
    assert!(cuts.len() > 10);
    let mut second = 0;
    for (i, cut) in cuts.iter().enumerate() {
        let what = format!("seed {seed}, cut at {}", cut.op);
        let image = cut.image(seed ^ i as u64);
        let mut run_here = run.clone();
        let cut_again = i % 8 == 3;
        let n = 1 + i % 3;
        let inner = block_on(async {
            let device = CrashDevice::new(image);
            if i % 4 == 0 {
                let (shared, q) = (device.as_device(), queue(&device.as_device()));
                let report = vellum_store::check(&shared, &q, CheckOptions { data: true }).await.unwrap();
                assert!(report.problems.is_empty(), "{what}: {:#?}", report.problems);
            }
            device.note(cut.note);
            if cut_again {
                device.cut_every(5);
            }
            let (stores, _) = match start(&device.as_device(), run.options(n)).await {
                Ok(s) => s,
                // Before the client's record was durable there is nothing, but a filesystem.
                Err(e) => panic!("{what}: {e}"),
            };
            assert_eq!(stores[0].superblock().format_version == 1, format_1, "{what}");
            let survived = check(&stores, &run_here, cut.note, &what).await;
            run_here.states.truncate(survived + 1);
            if cut_again {
                go_on(&device, &stores, &mut run_here, 10).await;
            }
            device.take_cuts()
        });
        for (j, cut) in inner.iter().enumerate() {
            second += 1;
            let what = format!("{what}, then at {}", cut.op);
            let image = cut.image(seed ^ (i * 1000 + j) as u64);
            block_on(async {
                let device = CrashDevice::new(image).as_device();
                let (stores, _) =
                    start(&device, run.options(1 + j % 2)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                check(&stores, &run_here, cut.note, &what).await;
            });
        }
    }
    let (batches, moved, shared) = (run.states.len() - 1, run.moved, run.shared);
    println!(
        "seed {seed}: {} cuts, {second} second cuts, {batches} batches, {moved} moves, {shared} shared",
        cuts.len()
    );
    assert!(format_1 || shared > 5, "{shared} extents share blocks");
    assert!(!moves || moved > 2, "{moved} moves");
}

fn cut_run(image: Image, reactors: usize, steps: usize, every: u64, run: &mut Run) -> Vec<common::crash::Cut> {
    block_on(async {
        let device = CrashDevice::new(image);
        device.cut_every(every);
        let (stores, _) = start(&device.as_device(), run.options(reactors)).await.unwrap();
        go_on(&device, &stores, run, steps).await;
        device.take_cuts()
    })
}

#[test]
fn one_reactor_cut_anywhere() {
    crash_run(seed(1), 1, 90, 3);
}

#[test]
fn two_reactors_cut_anywhere() {
    crash_run(seed(2), 2, 90, 4);
}

#[test]
fn three_reactors_cut_anywhere() {
    crash_run(seed(3), 3, 90, 5);
}

/// Every write and every flush of the splits and all that follows them: segments that two shards name, their rewriting.
#[test]
fn splits_cut_anywhere() {
    crash_run_with(seed(4), 1, 60, 1, &[With::Splits]);
}

#[test]
fn splits_on_two_reactors_cut_anywhere() {
    crash_run_with(seed(5), 2, 120, 3, &[With::Splits]);
}

/// Every write and every flush of the moves, and of what follows them: records of one shard in two logs.
#[test]
fn moves_cut_anywhere() {
    crash_run_with(seed(6), 2, 60, 1, &[With::Moves]);
}

#[test]
fn moves_and_splits_on_three_reactors_cut_anywhere() {
    crash_run_with(seed(7), 3, 100, 3, &[With::Splits, With::Moves]);
}

/// A filesystem that an older vellum made.
#[test]
fn format_version_1_cut_anywhere() {
    crash_run_with(seed(8), 2, 90, 4, &[With::Format1]);
}

/// `VELLUM_SEED` repeats a run.
fn seed(default: u64) -> u64 {
    std::env::var("VELLUM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}
