//! Shards move between reactors while clients write, read, and walk.

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use vellum_base::prng::Prng;
use vellum_base::{Bucket, Ino, ItemOp, Key, KeyRange, ReactorId, Rid, View, crc32c};
use vellum_format::{Extent, IndexKind, Inode, ItemKind};
use vellum_rt::native::block_on;
use vellum_rt::{Class, sleep, spawn};
use vellum_store::{CheckOptions, OpenOptions, Rebalance, Store};

/// Moves are asked for, and no other happens.
fn asked(reactors: usize) -> OpenOptions {
    OpenOptions { rebalance: Rebalance::Never, ..options(reactors) }
}

async fn owners(store: &Rc<Store>) -> BTreeMap<u8, u16> {
    let status = store.status().await.unwrap();
    let shards = status.reactors.iter().flat_map(|r| r.shards.iter().map(|shard| (shard.first_bucket.0, r.reactor.0)));
    shards.collect()
}

async fn sound(device: &std::sync::Arc<dyn vellum_nvme::Device>) {
    let q = queue(device);
    let report = vellum_store::check(device, &q, CheckOptions { data: true }).await.unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
}

/// A shard goes away with items, data that a batch names, and data that none does yet; and comes back.
#[test]
fn a_shard_takes_everything_along() {
    block_on(async {
        let device = memory(128 * MIB);
        make(&device).await;
        let (stores, _) = start(&device, asked(2)).await.unwrap();
        let (a, b) = (&stores[0], &stores[1]);
        let mut client = Client::open(a, RID).await;
        let before = owners(a).await;
        assert_eq!((before[&0], before[&224]), (0, 1));
        let file = ino(3, 7);
        let data = blocks(4, 0x5a).freeze();
        let named = a.write_data(RID, data.clone()).await.unwrap()[0];
        let unnamed = a.write_data(RID, data.clone()).await.unwrap()[0];
        let old = Inode { online_blocks: 4, ..inode(4 * 4096, 1) };
        client.commit(a, vec![extent_op(file, 0, named, &data), put_inode(file, &old)]).await.unwrap();
        for (to, at) in [(1, a), (0, b), (1, b)] {
            // Written before and after, so that the memtable of the old one and of the new one both hold something.
            let text = Bytes::from(format!("went to {to}"));
            let ops = vec![put(inline_key(ino(3, 8)), text.clone()), put_inode(ino(3, 8), &inode(0, 1))];
            client.commit(at, ops).await.unwrap();
            assert!(a.move_shard(Bucket(3), ReactorId(to)).await.unwrap());
            assert_eq!(owners(a).await[&0], to);
            for store in [a, b] {
                assert_eq!(store.reactor_of(Bucket(3)), ReactorId(to));
                assert_eq!(get(store, inline_key(ino(3, 8))).await.unwrap(), text);
                let found = Extent::decode(&get(store, Extent::key(file, 0, 4)).await.unwrap()).unwrap();
                let read = store.read_data(&[found.header.blocks().unwrap()]).await.unwrap();
                assert_eq!(read.chunks(4096).map(crc32c).collect::<Vec<_>>(), found.checksums);
            }
        }
        // What was pending is pending still, wherever its chunk is; what a batch frees there comes back.
        let more = Inode { online_blocks: 4, ..inode(4 * 4096, 2) };
        let ops = vec![extent_op(file, 0, unnamed, &data), put_inode(file, &more)];
        let epoch = client.commit(b, ops).await.unwrap();
        a.wait_durable(epoch).await.unwrap();
        while a.status().await.unwrap().reactors.iter().any(|r| r.waiting_blocks > 0) {
            sleep(Duration::from_millis(1)).await;
        }
        let status = a.status().await.unwrap();
        let sum = |f: fn(&vellum_store::ReactorStatus) -> u64| status.reactors.iter().map(f).sum::<u64>();
        assert_eq!((sum(|r| r.used_blocks), sum(|r| r.pending_blocks)), (4, 0));
        assert_eq!(sum(|r| r.moves.done), 3);
        let group = a.alloc_group(None, None).await.unwrap();
        assert_ne!(group, a.alloc_group(None, None).await.unwrap());
        assert!(!a.move_shard(Bucket(3), ReactorId(1)).await.unwrap(), "it is there");
        assert!(a.move_shard(Bucket(3), ReactorId(9)).await.is_err(), "there is no such reactor");
        a.shutdown().await.unwrap();
        drop(stores);
        sound(&device).await;
        let (stores, report) = start(&device, asked(2)).await.unwrap();
        assert!(report.clean);
        assert_eq!(get(&stores[0], inline_key(ino(3, 8))).await.unwrap(), "went to 1");
    });
}

/// Two writes of one key, one into the log of each reactor, and a crash: the later one wins, whichever log it is in (E8).
#[test]
fn e8_a_key_that_was_written_before_and_after_a_move_replays_in_order() {
    for (from, to) in [(0, 1), (1, 0)] {
        block_on(async {
            let device = memory(128 * MIB);
            make(&device).await;
            let (stores, _) = start(&device, asked(2)).await.unwrap();
            let mut client = Client::open(&stores[0], RID).await;
            if from == 1 {
                assert!(stores[0].move_shard(Bucket(3), ReactorId(1)).await.unwrap());
            }
            let key = inline_key(ino(3, 8));
            for round in 0..3u32 {
                client.commit(&stores[0], vec![put(key, Bytes::from(format!("before {round}")))]).await.unwrap();
                let there = if round % 2 == 0 { to } else { from };
                assert!(stores[1].move_shard(Bucket(3), ReactorId(there)).await.unwrap());
                let epoch =
                    client.commit(&stores[1], vec![put(key, Bytes::from(format!("after {round}")))]).await.unwrap();
                stores[0].wait_durable(epoch).await.unwrap();
            }
            drop(stores); // a crash: nothing is flushed
            for reactors in [1, 2, 3] {
                let (stores, _) = start(&device, asked(reactors)).await.unwrap();
                assert_eq!(get(&stores[0], key).await.unwrap(), "after 2");
                let client = Client::open(&stores[0], RID).await;
                assert_eq!(client.next, 7);
            }
        });
    }
}

/// Clients on three reactors write, overwrite and delete, read what they have written, and a walker sees every inode all the
/// time, while shards go from reactor to reactor.
#[test]
fn moves_under_load_lose_nothing() {
    block_on(async {
        let device = memory(256 * MIB);
        make(&device).await;
        let random = OpenOptions { rebalance: Rebalance::AtRandom(Duration::from_millis(4)), ..options(3) };
        let (stores, _) = start(&device, random).await.unwrap();
        let done = Rc::new(Cell::new(0));
        let mut tasks = Vec::new();
        for n in 0..4u64 {
            let (store, done) = (stores[n as usize % 3].clone(), done.clone());
            tasks.push(spawn(Class::Request, "client", async move {
                let model = work(&store, Rid(RID.0.wrapping_mul(2 * n + 1)), n).await;
                done.set(done.get() + 1);
                model
            }));
        }
        let mut walks = 0;
        while done.get() < 4 {
            walk_sees_all(&stores[walks % 3]).await;
            walks += 1;
            sleep(Duration::from_millis(3)).await;
        }
        let mut model = BTreeMap::new();
        for task in tasks {
            model.extend(task.await.unwrap());
        }
        let found = items(&stores[1]).await;
        assert!(found == model, "{} items, expected {}", found.len(), model.len());
        let status = stores[0].status().await.unwrap();
        let moves: u64 = status.reactors.iter().map(|r| r.moves.done).sum();
        let longest = status.reactors.iter().map(|r| r.moves.longest).max().unwrap();
        println!("{moves} moves, {walks} walks, the longest stall {longest:?}");
        assert!(moves >= 10, "{moves}");
        stores[2].shutdown().await.unwrap();
        drop(stores);
        sound(&device).await;
    });
}

/// Inodes 1 to 8 of each client are there from the beginning: no walk may miss one, or see one twice.
const KEPT: u64 = 8;

async fn walk_sees_all(store: &Rc<Store>) {
    let page = store.walk(IndexKind::MetaSeq, (0, Ino::NONE), u64::MAX, 10_000).await.unwrap();
    let mut seen: Vec<Ino> = page.entries.iter().map(|(_, ino)| *ino).collect();
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all, "an inode is there twice");
    let counts = store.get(&[marker(0), marker(1), marker(2), marker(3)], View::Durable).await.unwrap();
    for (n, made) in counts.iter().enumerate().filter(|(_, made)| made.is_some()) {
        // The marker may be more durable than the page; whoever made it, made its inodes before.
        let page = store.walk(IndexKind::MetaSeq, (0, Ino::NONE), u64::MAX, 10_000).await.unwrap();
        let kept = page.entries.iter().filter(|(_, ino)| is_kept(*ino, n as u64)).count();
        assert_eq!(kept as u64, 8 * KEPT, "client {n}: {made:?}");
    }
}

fn marker(n: u64) -> Key {
    inline_key(ino(200, 2 + n))
}

fn number(n: u64, i: u64) -> u64 {
    1024 * (n + 1) + i
}

fn is_kept(ino: Ino, n: u64) -> bool {
    let low = ino.0 & 0xff_ffff;
    (number(n, 0)..number(n, KEPT)).contains(&low)
}

async fn work(store: &Rc<Store>, rid: Rid, n: u64) -> BTreeMap<Key, Bytes> {
    let mut client = Client::open(store, rid).await;
    let (mut prng, mut model) = (Prng::new(n), BTreeMap::new());
    let kept = (0..8).flat_map(|b| (0..KEPT).map(move |i| ino(b * 32 + 1, number(n, i))));
    let ops = kept.map(|ino| put_inode(ino, &inode(0, 1))).collect();
    let epoch = client.commit(store, ops).await.unwrap();
    store.wait_durable(epoch).await.unwrap();
    let made = Bytes::from_static(b"made");
    let ops = vec![put(marker(n), made.clone()), put_inode(ino(200, 2 + n), &inode(0, 1))];
    client.commit(store, ops).await.unwrap();
    model.insert(marker(n), made);
    for round in 0..400 {
        let (mut ops, mut inodes) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..=prng.below(4) {
            let ino = ino((prng.below(8) * 32 + 1) as u8, number(n, KEPT + prng.below(20)));
            let key = inline_key(ino);
            let op = match prng.below(4) {
                0 => ItemOp::Delete { key },
                _ => put(key, Bytes::from(format!("{round} of {n}: {}", prng.next_u64()))),
            };
            ops.insert(key, op);
            inodes.insert(Inode::key(ino), put_inode(ino, &inode(round, 1)));
        }
        for (key, op) in &ops {
            match op {
                ItemOp::Put { value, .. } => drop(model.insert(*key, value.clone())),
                _ => drop(model.remove(key)),
            }
        }
        let touched: Vec<Key> = ops.keys().copied().collect();
        let epoch = client.commit(store, ops.into_values().chain(inodes.into_values()).collect()).await.unwrap();
        let found = store.get(&touched, View::Applied).await.unwrap();
        let expected: Vec<Option<Bytes>> = touched.iter().map(|key| model.get(key).cloned()).collect();
        assert_eq!(found, expected, "client {n}, round {round}");
        if prng.one_in(8) {
            store.wait_durable(epoch).await.unwrap();
        }
        if prng.one_in(4) {
            sleep(Duration::from_micros(prng.below(2000))).await;
        }
    }
    model
}

/// Inline items.
async fn items(store: &Rc<Store>) -> BTreeMap<Key, Bytes> {
    let (mut range, mut out) = (KeyRange::ALL, BTreeMap::new());
    loop {
        let page = store.scan(range, 50, 1 << 20, View::Applied).await.unwrap();
        out.extend(page.items.into_iter().filter(|(key, _)| key.kind() == ItemKind::Inline as u8));
        match page.next {
            Some(next) => range.first = next,
            None => return out,
        }
    }
}
