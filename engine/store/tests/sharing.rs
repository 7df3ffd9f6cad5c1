//! Blocks with several owners: when they are free, and that a wrong count is found.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use common::sparse::{Files, extents, settle, until_enough};
use common::*;
use vellum_base::prng::Prng;
use vellum_base::{BlockRange, Ino, ItemOp, Key, Mutant, Rid, View, mutant};
use vellum_format::{BITMAP_BLOCKS, Bitmap, Extent, Inode, OWNERS_BLOCKS, Owners};
use vellum_rt::native::block_on;
use vellum_store::{OpenOptions, Store, StoreStatus};

const BLOCKS: u64 = 12;

/// Files of blocks that each are an extent, and what each block holds.
#[derive(Default)]
struct Model(BTreeMap<Ino, Vec<Option<u64>>>);

fn content(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(512)
}

fn cell(ino: Ino, block: u64) -> Key {
    Extent::key(ino, block, 1)
}

impl Model {
    fn put_inode(&self, ino: Ino) -> ItemOp {
        let online_blocks = self.0[&ino].iter().flatten().count() as u64;
        put_inode(ino, &Inode { online_blocks, ..inode(BLOCKS * 4096, 1) })
    }

    async fn write(&mut self, store: &Rc<Store>, client: &mut Client, ino: Ino, from: u64, len: u64, stamp: u64) {
        let file = self.0.entry(ino).or_insert_with(|| vec![None; BLOCKS as usize]);
        let mut data = blocks(len as usize, 0);
        data.chunks_mut(4096).for_each(|block| block.copy_from_slice(&content(stamp)));
        let data = data.freeze();
        let ranges = store.write_data(client.rid, data.clone()).await.unwrap();
        let places = ranges.iter().flat_map(|r| r.start.0..r.start.0 + u64::from(r.len_blocks));
        let mut ops: Vec<ItemOp> = places
            .zip(from..from + len)
            .map(|(place, at)| extent_op(ino, at, BlockRange::new(place, 1), &data[..4096]))
            .collect();
        file[from as usize..(from + len) as usize].fill(Some(stamp));
        ops.push(self.put_inode(ino));
        client.commit(store, ops).await.unwrap();
    }

    /// Blocks of a file get other places, within it or in another one, in whose place they come.
    async fn copy(&mut self, store: &Rc<Store>, client: &mut Client, from: (Ino, u64), to: (Ino, u64), len: u64) {
        self.0.entry(to.0).or_insert_with(|| vec![None; BLOCKS as usize]);
        let mut ops = BTreeMap::new();
        for i in 0..len {
            let (source, target) = (cell(from.0, from.1 + i), cell(to.0, to.1 + i));
            match get(store, source).await {
                Some(value) => {
                    ops.insert(source, put(source, value.clone()));
                    ops.insert(target, put(target, value));
                }
                None => drop(ops.insert(target, ItemOp::Delete { key: target })),
            }
        }
        let theirs = self.0[&from.0][from.1 as usize..(from.1 + len) as usize].to_vec();
        self.0.get_mut(&to.0).unwrap()[to.1 as usize..(to.1 + len) as usize].copy_from_slice(&theirs);
        let mut ops: Vec<ItemOp> = ops.into_values().collect();
        ops.push(self.put_inode(to.0));
        client.commit(store, ops).await.unwrap();
    }

    async fn punch(&mut self, store: &Rc<Store>, client: &mut Client, ino: Ino, from: u64, len: u64) {
        let Some(file) = self.0.get_mut(&ino) else { return };
        file[from as usize..(from + len) as usize].fill(None);
        let mut ops: Vec<ItemOp> = (from..from + len).map(|at| ItemOp::Delete { key: cell(ino, at) }).collect();
        ops.push(self.put_inode(ino));
        client.commit(store, ops).await.unwrap();
    }

    /// Any number of files die in one batch.
    async fn delete(&mut self, store: &Rc<Store>, client: &mut Client, inos: &[Ino]) {
        let inos: Vec<Ino> = inos.iter().copied().filter(|ino| self.0.remove(ino).is_some()).collect();
        let cells = inos.iter().flat_map(|ino| (0..BLOCKS).map(|at| ItemOp::Delete { key: cell(*ino, at) }));
        let deaths = inos.iter().map(|ino| ItemOp::DeleteInode { ino: *ino });
        client.commit(store, cells.chain(deaths).collect()).await.unwrap();
    }

    /// Every block has its content, and what extents name is what is in use.
    async fn verify(&self, store: &Rc<Store>) {
        let mut used = BTreeSet::new();
        for (ino, file) in &self.0 {
            for (at, stamp) in (0..).zip(file) {
                let value = get(store, cell(*ino, at)).await;
                assert_eq!(value.is_some(), stamp.is_some(), "inode {ino} block {at}");
                let (Some(value), Some(stamp)) = (value, stamp) else { continue };
                let place = Extent::decode_header(&value).unwrap().blocks().unwrap();
                used.insert(place.start);
                let data = store.read_data(&[place]).await.unwrap();
                assert!(data[..] == content(*stamp)[..], "inode {ino} block {at}");
            }
        }
        let status = settle(store).await;
        assert_eq!(status.reactors.iter().map(|r| r.used_blocks).sum::<u64>(), used.len() as u64);
    }
}

#[test]
fn owners_are_counted_whatever_is_copied_overwritten_and_deleted() {
    for seed in 0..6 {
        block_on(async {
            let device = memory(96 * MIB);
            make(&device).await;
            let (mut prng, mut model) = (Prng::new(seed), Model::default());
            let any = |prng: &mut Prng| ino((prng.below(5) * 50) as u8, 2 + prng.below(3));
            for round in 0..4 {
                let reactors = 1 + ((seed + round) % 3) as usize;
                let options = OpenOptions { memtable_bytes: 256 << 10, ..options(reactors) };
                let (stores, _) = start(&device, options).await.unwrap();
                let mut client = Client::open(&stores[0], Rid(100 + round)).await;
                for step in 0..80 {
                    let store = &stores[prng.below(reactors as u64) as usize].clone();
                    let (at, len) = (prng.below(BLOCKS / 2), 1 + prng.below(BLOCKS / 2));
                    let (a, b) = (any(&mut prng), any(&mut prng));
                    match prng.below(8) {
                        0 | 1 => {
                            model.write(store, &mut client, a, at, len, seed << 32 | round << 16 | step << 1 | 1).await
                        }
                        2..=5 if model.0.contains_key(&a) => {
                            let to = prng.below(BLOCKS - len + 1);
                            if a != b || to.abs_diff(at) >= len {
                                model.copy(store, &mut client, (a, at), (b, to), len).await;
                            }
                        }
                        6 => model.punch(store, &mut client, a, at, len).await,
                        7 if prng.one_in(2) => model.delete(store, &mut client, &[a, b]).await,
                        _ => {}
                    }
                    if prng.one_in(4) {
                        store.wait_durable(store.status().await.unwrap().open_epoch).await.unwrap();
                    }
                }
                model.verify(&stores[0]).await;
                stores[0].shutdown().await.unwrap();
                drop(stores);
                assert_eq!(problems(&device).await, Vec::<String>::new(), "seed {seed}");
            }
        });
    }
}

#[test]
fn shared_blocks_are_free_when_the_last_owner_has_gone_and_unshared_ones_have_no_counts() {
    block_on(async {
        let device = memory(96 * MIB);
        make(&device).await;
        let (stores, _) = start(&device, options(2)).await.unwrap();
        let store = &stores[0];
        let mut client = Client::open(store, RID).await;
        let (a, b) = (ino(3, 2), ino(240, 2));
        let (_, extent) = one_file(store, &mut client, a, 7).await;
        let block = extent.header.start.0;
        let counts = |store: Rc<Store>| async move {
            let chunk_blocks = u64::from(store.superblock().chunk_blocks);
            let (chunk, at) = (vellum_base::ChunkIndex((block / chunk_blocks) as u32), (block % chunk_blocks) as u32);
            let open = store.status().await.unwrap().open_epoch;
            store.wait_durable(open).await.unwrap();
            for bucket in 0..=255 {
                let bucket = vellum_base::Bucket(bucket);
                let (bits, owners) =
                    (Bitmap::key(bucket, chunk, at / BITMAP_BLOCKS), Owners::key(bucket, chunk, at / OWNERS_BLOCKS));
                let found = store.get(&[bits, owners], View::Applied).await.unwrap();
                if found[0].is_some() {
                    return found[1].as_ref().map(|v| Owners::decode(v).unwrap().extra(at % OWNERS_BLOCKS));
                }
            }
            panic!("no bitmap has the block");
        };
        assert_eq!(counts(store.clone()).await, None);
        share(store, &mut client, a, b).await;
        assert_eq!(counts(store.clone()).await, Some(1));
        let used = |status: StoreStatus| status.reactors.iter().map(|r| r.used_blocks).sum::<u64>();
        for (ino, left) in [(a, 3), (b, 0)] {
            let ops = vec![ItemOp::Delete { key: three_blocks(ino) }, ItemOp::DeleteInode { ino }];
            client.commit(store, ops).await.unwrap();
            if left > 0 {
                assert_eq!(counts(store.clone()).await, None);
            }
            assert_eq!(used(settle(store).await), left);
        }
        store.shutdown().await.unwrap();
        drop(stores);
        assert_eq!(problems(&device).await, Vec::<String>::new());
    });
}

/// An engine that forgets to count, and then frees what another file has.
#[test]
fn wrong_counts_are_found() {
    block_on(async {
        let device = memory(96 * MIB);
        make(&device).await;
        let before = mutant::replace(Some(Mutant::ForgetOwner));
        let (stores, _) = start(&device, options(1)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        let (a, b) = (ino(3, 2), ino(240, 2));
        one_file(&stores[0], &mut client, a, 7).await;
        share(&stores[0], &mut client, a, b).await;
        stores[0].shutdown().await.unwrap();
        drop(stores);
        let found = problems(&device).await;
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(found.iter().all(|what| what.contains("it has 1 owners, and 2 extents name it")), "{found:#?}");
        let (stores, _) = start(&device, options(1)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        client
            .commit(&stores[0], vec![ItemOp::Delete { key: three_blocks(a) }, ItemOp::DeleteInode { ino: a }])
            .await
            .unwrap();
        stores[0].shutdown().await.unwrap();
        drop(stores);
        let found = problems(&device).await;
        assert!(found.iter().any(|what| what.contains("it is used, and its bit is clear")), "{found:#?}");
        mutant::replace(before);
    });
}

/// Scattered files, some of which share their blocks: chunks with those stay, the others are emptied, and no pass begins for
/// what stays.
#[test]
fn chunks_with_shared_blocks_are_left_alone_by_the_evacuation() {
    block_on(async {
        let device = memory(96 * MIB);
        make(&device).await;
        let small = |evacuation_bytes_per_s| OpenOptions {
            memtable_bytes: 2 << 20,
            cache_bytes: 1 << 20,
            evacuation_bytes_per_s,
            ..options(1)
        };
        let (stores, _) = start(&device, small(None)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        let mut files = Files::default();
        files.scatter(&stores, &mut client, 8).await;
        let chunk_blocks = u64::from(stores[0].superblock().chunk_blocks);
        let mut shared = BTreeMap::new();
        for from in files.0.keys().copied().step_by(9) {
            share(&stores[0], &mut client, from, Ino(from.0 | 1 << 45)).await;
            shared.insert(from, extents(&stores[0], from).await);
        }
        assert!(shared.len() > 3);
        stores[0].shutdown().await.unwrap();
        let (stores, _) = start(&device, small(Some(0))).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        client.commit(&stores[0], vec![put_inode(ino(1, 1 << 40), &inode(0, 1))]).await.unwrap();
        let status = until_enough(&stores[0]).await;
        assert!(status.evacuation.moved_extents > 0 && status.evacuation.problems == 0, "{status:?}");
        for (from, places) in &shared {
            assert_eq!(extents(&stores[0], *from).await, *places);
            assert_eq!(extents(&stores[0], Ino(from.0 | 1 << 45)).await.len(), places.len());
        }
        let kept: BTreeSet<u64> = shared.values().flatten().map(|(_, e)| e.header.start.0 / chunk_blocks).collect();
        println!("{} extents moved, {} chunks stay", status.evacuation.moved_extents, kept.len());
        files.verify(&stores[0]).await;
        stores[0].shutdown().await.unwrap();
        drop(stores);
        assert_eq!(problems(&device).await, Vec::<String>::new());
    });
}
