//! Free space in pieces everywhere: sparse chunks of file data are emptied, so that metadata have room as long as blocks
//! are free (scenario 48's fragmentation). Content, sequences and every reference stay what they were.

mod common;

use std::rc::Rc;

use common::crash::CrashDevice;
use common::sparse::*;
use common::*;
use vellum_base::prng::Prng;
use vellum_base::{Ino, ItemOp, View};
use vellum_format::Inode;
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Image};
use vellum_rt::native::block_on;
use vellum_store::{CheckOptions, OpenOptions, Store, StoreStatus};

fn small(reactors: usize, evacuation_bytes_per_s: Option<u64>) -> OpenOptions {
    OpenOptions { memtable_bytes: 2 << 20, cache_bytes: 1 << 20, evacuation_bytes_per_s, ..options(reactors) }
}

const UNBOUND: Option<u64> = Some(0);

/// Inline items that do not compress, 64 of them in a batch.
async fn write_metadata(store: &Rc<Store>, client: &mut Client, prng: &mut Prng, n: u64) {
    let mut ops: Vec<ItemOp> = Vec::new();
    for i in 0..64u64 {
        let mut text = vec![0; 1000];
        prng.fill(&mut text);
        let at = ino(((n * 64 + i) % 256) as u8, 1 << 32 | (n * 64 + i));
        ops.extend([put(inline_key(at), text.into()), put_inode(at, &inode(1000, 1))]);
    }
    client.commit(store, ops).await.unwrap();
}

async fn check_clean(device: &std::sync::Arc<dyn Device>) {
    let q = queue(device);
    let report = vellum_store::check(device, &q, CheckOptions { data: true }).await.unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
}

/// A device of 96 MiB with one file in eight left.
async fn scattered(reactors: usize) -> (MemoryDevice, Files) {
    let memory = MemoryDevice::new(96 * MIB);
    let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(memory.clone());
    make(&device).await;
    let (stores, _) = start(&device, small(reactors, None)).await.unwrap();
    let mut client = Client::open(&stores[0], RID).await;
    let mut files = Files::default();
    files.scatter(&stores, &mut client, 8).await;
    stores[0].shutdown().await.unwrap();
    (memory, files)
}

fn sum(status: &StoreStatus, f: fn(&vellum_store::ReactorStatus) -> u64) -> u64 {
    status.reactors.iter().map(f).sum()
}

#[test]
fn metadata_find_room_between_scattered_blocks_and_without_evacuation_do_not() {
    block_on(async {
        let (memory, files) = scattered(1).await;
        for rate in [None, UNBOUND] {
            let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(MemoryDevice::from_image(memory.snapshot()));
            let (stores, _) = start(&device, small(1, rate)).await.unwrap();
            let store = &stores[0];
            let before = store.status().await.unwrap();
            assert!(before.free_chunks < 2 * before.reserve_chunks && before.space.free_blocks > 12_000, "{before:?}");
            let mut client = Client::open(store, RID).await;
            let writer = {
                let store = store.clone();
                vellum_rt::spawn(vellum_rt::Class::Request, "metadata", async move {
                    let mut prng = Prng::new(5);
                    // Twice the chunks that are free.
                    for n in 0..2 * 16 * before.free_chunks as u64 {
                        write_metadata(&store, &mut client, &mut prng, n).await;
                    }
                })
            };
            if rate.is_none() {
                // The wall: no chunk is free, nothing can be flushed, and three quarters of the device are free.
                loop {
                    let status = store.status().await.unwrap();
                    let stuck = |r: &vellum_store::ReactorStatus| r.pressure > 0.9 && r.frozen_tables > 0;
                    if status.free_chunks == 0 && status.reactors.iter().all(stuck) {
                        assert!(status.space.free_blocks > 10_000);
                        break;
                    }
                    assert!(!writer.is_finished(), "it had room: {status:?}");
                    vellum_rt::sleep(std::time::Duration::from_millis(5)).await;
                }
                writer.cancel();
                continue;
            }
            writer.await.unwrap();
            let status = settle(store).await;
            assert!(status.evacuation.moved_bytes > 0 && sum(&status, |r| r.emptied_chunks) > 8, "{status:?}");
            assert_eq!((status.evacuation.problems, &status.evacuation.last_error), (0, &None));
            files.verify(store).await;
            store.shutdown().await.unwrap();
            drop(stores);
            check_clean(&device).await;
        }
    });
}

#[test]
fn a_move_changes_nothing_that_anybody_looks_for() {
    block_on(async {
        for reactors in [1, 2] {
            let (memory, files) = scattered(reactors).await;
            let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(memory);
            let (stores, _) = start(&device, small(reactors, None)).await.unwrap();
            let inodes = |store: Rc<Store>, all: Vec<Ino>| async move {
                let keys: Vec<_> = all.into_iter().map(Inode::key).collect();
                store.get(&keys, View::Applied).await.unwrap()
            };
            let all: Vec<Ino> = files.0.keys().copied().collect();
            let before = inodes(stores[0].clone(), all.clone()).await;
            let places = {
                let mut places = Vec::new();
                for at in &all {
                    places.push(extents(&stores[0], *at).await);
                }
                places
            };
            stores[0].shutdown().await.unwrap();
            let (stores, _) = start(&device, small(reactors, UNBOUND)).await.unwrap();
            // Something must be durable before anybody looks.
            let mut client = Client::open(&stores[0], RID).await;
            client.commit(&stores[0], vec![put_inode(ino(1, 1 << 40), &inode(0, 1))]).await.unwrap();
            let status = until_enough(&stores[0]).await;
            assert!(inodes(stores[0].clone(), all.clone()).await == before, "an inode has changed");
            let mut moved = 0;
            for (at, old) in all.iter().zip(&places) {
                let new = extents(&stores[0], *at).await;
                moved += usize::from(new != *old);
                let checksums = |list: &[(_, vellum_format::Extent)]| -> Vec<u32> {
                    list.iter().flat_map(|(_, e)| e.checksums.clone()).collect()
                };
                assert_eq!(checksums(&new), checksums(old));
            }
            assert!(moved as u64 * FILE_BLOCKS as u64 * 4096 >= status.evacuation.moved_bytes / 2 && moved > 0);
            files.verify(&stores[0]).await;
            // All of what is free can be written to again.
            let mut more = Files::default();
            let mut n = 0u64;
            loop {
                let at = ino((n % 256) as u8, 1 << 41 | n);
                match more.create(&stores[n as usize % reactors], &mut client, at, n as u8).await {
                    Ok(()) => n += 1,
                    Err(vellum_store::StoreError::NoSpace) => break,
                    Err(e) => panic!("{e}"),
                }
            }
            let status = settle(&stores[0]).await;
            assert!(sum(&status, |r| r.free_blocks) < 64, "blocks that nobody got: {status:?}");
            more.verify(&stores[0]).await;
            files.verify(&stores[0]).await;
            stores[0].shutdown().await.unwrap();
            drop(stores);
            check_clean(&device).await;
        }
    });
}

/// Files change, die and are born while their blocks are moved. Nobody holds locks here, so a writer may find that an extent
/// was moved under it: its batch is refused as a whole, and it looks again.
#[test]
fn writers_and_moves_do_not_hurt_each_other() {
    block_on(async {
        for seed in 0..4 {
            let reactors = 1 + seed as usize % 2;
            let (memory, mut files) = scattered(reactors).await;
            let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(memory);
            let (stores, _) = start(&device, small(reactors, UNBOUND)).await.unwrap();
            let mut client = Client::open(&stores[0], RID).await;
            let mut prng = Prng::new(seed);
            let (mut n, mut lost_races) = (0u64, 0);
            loop {
                let store = &stores[n as usize % reactors];
                let victim = *files.0.keys().nth(prng.below(files.0.len() as u64) as usize).unwrap();
                match prng.below(8) {
                    // Not without end: changes are faster than the evacuation's rests, and the device would be full.
                    0 if n < 400 => {
                        let at = ino((n % 256) as u8, 1 << 40 | n);
                        files.create(store, &mut client, at, n as u8).await.unwrap();
                    }
                    _ => {
                        let from = prng.below(FILE_BLOCKS as u64 - 4) as usize;
                        let range = from..from + 1 + prng.below(4) as usize;
                        let done = files.overwrite(store, &mut client, victim, range, n as u8).await.unwrap();
                        lost_races += usize::from(!done);
                    }
                }
                n += 1;
                let status = stores[0].status().await.unwrap();
                let enough = status.free_chunks >= 2 * status.reserve_chunks && !status.evacuation.running;
                if n > 200 && enough {
                    println!("seed {seed}: {n} changes, {lost_races} races lost, {:?}", status.evacuation);
                    assert!(status.evacuation.moved_extents > 0);
                    break;
                }
            }
            files.verify(&stores[0]).await;
            stores[0].shutdown().await.unwrap();
            drop(stores);
            check_clean(&device).await;
        }
    });
}

#[test]
fn a_crash_at_any_write_leaves_every_extent_at_one_of_its_places() {
    let (made, files): (Image, Files) = block_on(async {
        let (memory, files) = scattered(2).await;
        (memory.snapshot(), files)
    });
    let cuts = block_on(async {
        let device = CrashDevice::new(made);
        let (stores, _) = start(&device.as_device(), small(2, UNBOUND)).await.unwrap();
        device.cut_every(3);
        let mut client = Client::open(&stores[0], RID).await;
        client.commit(&stores[0], vec![put_inode(ino(1, 1 << 40), &inode(0, 1))]).await.unwrap();
        let status = until_enough(&stores[0]).await;
        assert!(status.evacuation.moved_bytes > 0);
        let cuts = device.take_cuts();
        stores[0].shutdown().await.unwrap();
        cuts
    });
    assert!(cuts.len() > 40, "{} cuts", cuts.len());
    let step = cuts.len().div_ceil(50);
    for (i, cut) in cuts.iter().enumerate().step_by(step) {
        block_on(async {
            let memory = MemoryDevice::from_image(cut.image(i as u64));
            let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(memory);
            let (stores, _) = start(&device, small(1, None)).await.unwrap();
            files.verify(&stores[0]).await;
            stores[0].shutdown().await.unwrap();
            drop(stores);
            check_clean(&device).await;
        });
    }
}

#[test]
fn what_is_rotten_stays_where_it_is_and_is_reported() {
    block_on(async {
        let (memory, mut files) = scattered(1).await;
        let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(memory.clone());
        let (stores, _) = start(&device, small(1, None)).await.unwrap();
        let rotten = *files.0.keys().nth(files.0.len() / 2).unwrap();
        let before = extents(&stores[0], rotten).await;
        stores[0].shutdown().await.unwrap();
        drop(stores);
        let block = before[0].1.header.start;
        let mut image = memory.snapshot();
        image.write(block.bytes() + 100, &[0xee; 4]);
        let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(MemoryDevice::from_image(image));
        let (stores, _) = start(&device, small(1, UNBOUND)).await.unwrap();
        let store = &stores[0];
        let mut client = Client::open(store, RID).await;
        client.commit(store, vec![put_inode(ino(1, 1 << 40), &inode(0, 1))]).await.unwrap();
        // Every sparse chunk but that one becomes free, sooner or later: more are wanted than there are.
        let mut prng = Prng::new(3);
        let mut n = 0;
        let status = loop {
            write_metadata(store, &mut client, &mut prng, n).await;
            n += 1;
            let status = store.status().await.unwrap();
            if status.evacuation.problems > 0 && !status.evacuation.running {
                break status;
            }
        };
        assert_eq!(sum(&status, |r| r.draining_chunks as u64), 0, "{status:?}");
        assert_eq!(extents(store, rotten).await, before, "it stays where it is");
        let found = store.scrub_status().await.unwrap();
        let finding = found.findings.iter().find(|f| f.place == format!("block {}", block.0)).unwrap();
        assert!(finding.affects.contains(&rotten.to_string()) && !finding.repaired, "{finding:?}");
        files.0.remove(&rotten);
        files.verify(store).await;
        store.shutdown().await.unwrap();
        drop(stores);
        let q = queue(&device);
        let report = vellum_store::check(&device, &q, CheckOptions { data: true }).await.unwrap();
        assert_eq!(report.problem_count, 1, "{:#?}", report.problems);
    });
}

#[test]
fn it_stops_with_the_node_and_goes_on_with_the_next() {
    block_on(async {
        let (memory, files) = scattered(2).await;
        let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(memory);
        // A step, and then a pause that nobody lives to see the end of.
        let (stores, _) = start(&device, small(2, Some(1))).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        client.commit(&stores[0], vec![put_inode(ino(1, 1 << 40), &inode(0, 1))]).await.unwrap();
        while stores[0].status().await.unwrap().evacuation.moved_bytes == 0 {
            vellum_rt::sleep(std::time::Duration::from_millis(1)).await;
        }
        stores[0].shutdown().await.unwrap();
        drop(stores);
        check_clean(&device).await;
        let (stores, _) = start(&device, small(2, UNBOUND)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        client.commit(&stores[0], vec![put_inode(ino(1, 1 << 40), &inode(0, 1))]).await.unwrap();
        until_enough(&stores[0]).await;
        files.verify(&stores[0]).await;
        stores[0].shutdown().await.unwrap();
        drop(stores);
        check_clean(&device).await;
    });
}
