//! Free space: what an epoch freed, who may have it, and that every block has one state (A1 to A3; scenarios 36, 42, 43).

mod common;

use std::collections::BTreeMap;
use std::rc::Rc;

use common::crash::CrashDevice;
use common::*;
use vellum_base::prng::Prng;
use vellum_base::{BlockRange, Ino, ItemOp, Key, KeyRange, View};
use vellum_format::{Extent, Inode, ItemKind};
use vellum_nvme::Image;
use vellum_nvme::memory::MemoryDevice;
use vellum_rt::native::block_on;
use vellum_store::{CheckOptions, CommitError, OpenOptions, Store, StoreError};

const FILE_BLOCKS: usize = 16;

fn small(reactors: usize) -> OpenOptions {
    OpenOptions { memtable_bytes: 1 << 20, ..options(reactors) }
}

/// Files of one size, and where their blocks are.
#[derive(Clone, Default)]
struct Files(BTreeMap<Ino, Vec<(Key, BlockRange)>>);

impl Files {
    async fn create(
        &mut self,
        store: &Rc<Store>,
        client: &mut Client,
        ino: Ino,
        byte: u8,
    ) -> Result<vellum_base::Epoch, StoreError> {
        let data = blocks(FILE_BLOCKS, byte).freeze();
        let ranges = store.write_data(client.rid, data.clone()).await?;
        let (mut at, mut ops, mut held) = (0usize, Vec::new(), Vec::new());
        for range in ranges {
            let end = at + range.len_blocks as usize;
            let op = extent_op(ino, at as u64, range, &data[at * 4096..end * 4096]);
            let ItemOp::Put { key, .. } = &op else { unreachable!() };
            held.push((*key, range));
            ops.push(op);
            at = end;
        }
        let inode = Inode { online_blocks: FILE_BLOCKS as u64, ..inode(FILE_BLOCKS as u64 * 4096, 1) };
        ops.push(put_inode(ino, &inode));
        let epoch = client.commit(store, ops).await.unwrap();
        self.0.insert(ino, held);
        Ok(epoch)
    }

    fn death(&self, ino: Ino) -> Vec<ItemOp> {
        let mut ops: Vec<ItemOp> = self.0[&ino].iter().map(|(key, _)| ItemOp::Delete { key: *key }).collect();
        ops.push(ItemOp::DeleteInode { ino });
        ops
    }

    async fn delete(&mut self, store: &Rc<Store>, client: &mut Client, ino: Ino) -> vellum_base::Epoch {
        let epoch = client.commit(store, self.death(ino)).await.unwrap();
        self.0.remove(&ino);
        epoch
    }

    fn blocks(&self) -> u64 {
        self.0.len() as u64 * FILE_BLOCKS as u64
    }
}

/// Scenario 43. The device's power is cut at every few writes while files are deleted and others are created at once:
/// whatever file survives has its own bytes, because nobody got its blocks before its death was durable.
#[test]
fn a1_scenario_43_what_an_epoch_freed_is_reusable_only_after_it_is_durable() {
    let made: Image = block_on(async {
        let memory = MemoryDevice::new(64 * MIB);
        let device: std::sync::Arc<dyn vellum_nvme::Device> = std::sync::Arc::new(memory.clone());
        make(&device).await;
        memory.snapshot()
    });
    let cuts = block_on(async {
        let device = CrashDevice::new(made);
        let (stores, _) = start(&device.as_device(), small(1)).await.unwrap();
        let store = &stores[0];
        let mut client = Client::open(store, RID).await;
        let mut files = Files::default();
        let mut n = 0u64;
        // Fill it, so that new files can only live in what was freed.
        let byte = |ino: Ino| (ino.0 % 251) as u8 + 1;
        loop {
            let ino = ino((n * 16) as u8, 2 + n);
            match files.create(store, &mut client, ino, byte(ino)).await {
                Ok(_) => n += 1,
                Err(StoreError::NoSpace) => break,
                Err(e) => panic!("{e}"),
            }
        }
        device.cut_every(2);
        for round in 0..20 {
            let victim = *files.0.keys().nth(round * 7 % files.0.len()).unwrap();
            let old: Vec<BlockRange> = files.0[&victim].iter().map(|(_, range)| *range).collect();
            let epoch = files.delete(store, &mut client, victim).await;
            let fresh = ino((n * 16) as u8, 2 + n);
            // Nobody waits for the deletion's epoch but who wants its space.
            while files.create(store, &mut client, fresh, byte(fresh)).await.is_err() {
                vellum_rt::yield_now().await;
            }
            n += 1;
            let reused = files.0[&fresh].iter().any(|(_, range)| old.iter().any(|o| o.start == range.start));
            assert!(!reused || store.durable_epoch() >= epoch, "reused before epoch {epoch} was durable");
        }
        device.take_cuts()
    });
    assert!(cuts.len() > 20, "{} cuts", cuts.len());
    for (i, cut) in cuts.iter().enumerate() {
        block_on(async {
            let device = CrashDevice::new(cut.image(i as u64)).as_device();
            let (stores, _) = start(&device, small(1)).await.unwrap();
            let mut range = KeyRange::ALL;
            loop {
                let page = stores[0].scan(range, 500, 1 << 20, View::Applied).await.unwrap();
                for (key, value) in page.items.iter().filter(|(k, _)| k.kind() == ItemKind::Extent as u8) {
                    let Ok(extent) = Extent::decode(value) else { continue };
                    let data = stores[0].read_data(&[extent.header.blocks().unwrap()]).await.unwrap();
                    let byte = (key.first() % 251) as u8 + 1;
                    assert!(data.iter().all(|b| *b == byte), "cut {i}: inode {} has another's bytes", key.first());
                }
                match page.next {
                    Some(next) => range.first = next,
                    None => break,
                }
            }
        });
    }
}

/// Allocating through one reactor and freeing through the other for ever.
#[test]
fn a2_allocating_here_and_freeing_there_reaches_a_steady_state() {
    block_on(async {
        let device = memory(96 * MIB);
        make(&device).await;
        let (stores, _) = start(&device, small(2)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        let mut files = Files::default();
        let mut free = Vec::new();
        for round in 0..40u64 {
            // All data through the first reactor; buckets and deaths belong to the second.
            for i in 0..60 {
                let ino = ino(200, 2 + round * 60 + i);
                files.create(&stores[0], &mut client, ino, round as u8).await.expect("no premature ENOSPC");
            }
            let all: Vec<Ino> = files.0.keys().copied().collect();
            let mut last = Default::default();
            for ino in all {
                last = files.delete(&stores[1], &mut client, ino).await;
            }
            stores[1].wait_durable(last).await.unwrap();
            vellum_rt::sleep(std::time::Duration::from_millis(5)).await;
            free.push(stores[0].statfs().await.unwrap().free_blocks);
        }
        let (early, late) = (free[5], *free.last().unwrap());
        assert!(late * 10 >= early * 9, "free blocks after each round: {free:?}");
        stores[0].shutdown().await.unwrap();
    });
}

/// Scenario 42, and the sum of all states after each step of a random history.
#[test]
fn a3_every_block_has_one_state_and_is_freed_once() {
    for reactors in [1, 2] {
        block_on(async {
            let device = memory(64 * MIB);
            make(&device).await;
            let (stores, _) = start(&device, small(reactors)).await.unwrap();
            let store = &stores[0];
            let (mut client, mut other) =
                (Client::open(store, RID).await, Client::open(store, vellum_base::Rid(9)).await);
            let (mut files, mut prng) = (Files::default(), Prng::new(5));
            let mut n = 0;
            for _ in 0..300 {
                match prng.below(3) {
                    0 if !files.0.is_empty() => {
                        let at = prng.below(files.0.len() as u64) as usize;
                        let victim = *files.0.keys().nth(at).unwrap();
                        let twice = files.death(victim);
                        files.delete(store, &mut client, victim).await;
                        // Another deleter of the same inode: an orphan scan that is late. Nothing is freed again.
                        let late = other.commit(store, twice).await;
                        assert!(late.is_ok() || matches!(late, Err(CommitError::Blocks { .. })), "{late:?}");
                    }
                    _ => {
                        let ino = ino((n * 40) as u8, 2 + n);
                        n += 1;
                        match files.create(store, &mut client, ino, n as u8).await {
                            Ok(_) | Err(StoreError::NoSpace) => {}
                            Err(e) => panic!("{e}"),
                        }
                    }
                }
                let open = store.status().await.unwrap().open_epoch;
                if prng.one_in(4) {
                    store.wait_durable(open).await.unwrap();
                }
                let status = store.status().await.unwrap();
                let sum = |f: fn(&vellum_store::ReactorStatus) -> u64| status.reactors.iter().map(f).sum::<u64>();
                let chunks: u64 = status.reactors.iter().map(|r| r.data_chunks as u64).sum();
                let granted = chunks * u64::from(store.superblock().chunk_blocks);
                let states = sum(|r| r.used_blocks) + sum(|r| r.free_blocks) + sum(|r| r.pending_blocks);
                let moving = granted.abs_diff(states + sum(|r| r.waiting_blocks));
                assert!(moving == 0, "{moving} of {granted} blocks have no state or two: {:?}", status.reactors);
            }
            let open = store.status().await.unwrap().open_epoch;
            store.wait_durable(open).await.unwrap();
            vellum_rt::sleep(std::time::Duration::from_millis(20)).await;
            let status = store.status().await.unwrap();
            assert_eq!(status.reactors.iter().map(|r| r.used_blocks).sum::<u64>(), files.blocks());
            assert_eq!(status.reactors.iter().map(|r| r.pending_blocks + r.waiting_blocks).sum::<u64>(), 0);
            store.shutdown().await.unwrap();
            let q = queue(&device);
            let report = vellum_store::check(&device, &q, CheckOptions { data: true }).await.unwrap();
            assert!(report.problems.is_empty(), "{:#?}", report.problems);
        });
    }
}
