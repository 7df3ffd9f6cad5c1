//! A device becomes larger while it is in use (scenario 50): the new space is usable at once, power may be cut at every
//! write of the growth, and what is smaller than the filesystem is refused.

mod common;

use std::rc::Rc;

use common::crash::CrashDevice;
use common::*;
use vellum_base::{BlockAddr, Ino, ItemOp};
use vellum_format::{Inode, Superblock};
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Image};
use vellum_rt::native::block_on;
use vellum_store::{CheckOptions, Store, StoreError};

/// A file of `mib` MiB.
fn file_of(mib: u64) -> u64 {
    mib * 256
}

/// Writes a file of `blocks` blocks in pieces of 1 MiB, each a batch of its own.
async fn write_file(store: &Rc<Store>, client: &mut Client, ino: Ino, blocks: u64) {
    for first in (0..blocks).step_by(256) {
        let data = common::blocks(256, (first / 256) as u8).freeze();
        let mut ops = Vec::new();
        let mut at = 0;
        for range in store.write_data(client.rid, data.clone()).await.unwrap() {
            let end = at + range.len_blocks as usize;
            ops.push(extent_op(ino, first + at as u64, range, &data[at * 4096..end * 4096]));
            at = end;
        }
        let now = Inode { online_blocks: first + 256, ..inode((first + 256) * 4096, first) };
        ops.push(put_inode(ino, &now));
        client.commit(store, ops).await.unwrap();
    }
}

/// Every structure is in order; a copy that was being written when power went may be bad.
async fn assert_clean(device: &std::sync::Arc<dyn Device>, what: &str) {
    let q = queue(device);
    let report = vellum_store::check(device, &q, CheckOptions { data: true }).await;
    let report = report.unwrap_or_else(|e| panic!("{what}: {e}"));
    let problems: Vec<_> = report.problems.iter().filter(|p| p.place != "a copy").collect();
    assert!(problems.is_empty(), "{what}: {problems:#?}");
}

async fn made(bytes: u64) -> Image {
    let memory = MemoryDevice::new(bytes);
    let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(memory.clone());
    make(&device).await;
    memory.snapshot()
}

#[test]
fn what_was_gained_is_used_at_once_by_every_reactor() {
    block_on(async {
        let memory = MemoryDevice::from_image(made(64 * MIB).await);
        let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(memory.clone());
        let (stores, _) = start(&device, options(2)).await.unwrap();
        let before = stores[0].statfs().await.unwrap();
        let same = stores[1].grow().await.unwrap();
        assert_eq!((same.before_bytes, same.after_bytes), (64 * MIB, 64 * MIB), "nothing was gained");
        memory.enlarge(256 * MIB + 4096);
        let growth = stores[1].grow().await.unwrap();
        assert_eq!((growth.before_bytes, growth.after_bytes), (64 * MIB, 256 * MIB));
        assert_eq!(growth.device_bytes, 256 * MIB + 4096);
        let after = stores[0].statfs().await.unwrap();
        assert_eq!(after.total_blocks, 256 * 256);
        // The 32nd that deletion lives from grew along.
        assert!(after.free_blocks >= before.free_blocks + 180 * 256, "{before:?} {after:?}");
        let mut client = Client::open(&stores[0], RID).await;
        for n in 0..4 {
            write_file(&stores[n % 2], &mut client, ino(64 * n as u8, 2), file_of(38)).await;
        }
        stores[0].shutdown().await.unwrap();
        drop(stores);
        assert_clean(&device, "full of what was gained").await;
        let (stores, _) = start(&device, options(1)).await.unwrap();
        assert_eq!(stores[0].statfs().await.unwrap().total_blocks, 256 * 256);
    });
}

/// To a size that the manifest's areas do for, and to one that they are moved for.
#[test]
fn power_is_cut_at_every_write_of_a_growth() {
    for (to, least_cuts) in [(200 * MIB, 6), (1200 * MIB, 12)] {
        let (cuts, data) = block_on(async {
            let device = CrashDevice::new(made(80 * MIB).await);
            let (stores, _) = start(&device.as_device(), options(2)).await.unwrap();
            let mut client = Client::open(&stores[0], RID).await;
            write_file(&stores[0], &mut client, ino(3, 2), file_of(4)).await;
            let ops: Vec<ItemOp> = vec![put_inode(ino(200, 9), &inode(7, 1))];
            let epoch = client.commit(&stores[1], ops).await.unwrap();
            stores[0].wait_durable(epoch).await.unwrap();
            device.enlarge(to);
            device.cut_every(1);
            let growth = stores[0].grow().await.unwrap();
            assert_eq!(growth.after_bytes, to);
            let cuts = device.take_cuts();
            write_file(&stores[1], &mut client, ino(9, 2), file_of(80)).await;
            stores[0].shutdown().await.unwrap();
            (cuts, client.next)
        });
        assert!(cuts.len() >= least_cuts && data > 80, "{} cuts", cuts.len());
        for (i, cut) in cuts.iter().enumerate() {
            for seed in 0..3 {
                let what = format!("grown to {to}, cut {i} at {}, seed {seed}", cut.op);
                block_on(async {
                    let device = CrashDevice::new(cut.image(seed)).as_device();
                    assert_clean(&device, &what).await;
                    let (stores, _) = start(&device, options(1)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                    assert!(get(&stores[0], Inode::key(ino(200, 9))).await.is_some(), "{what}");
                    let growth = stores[0].grow().await.unwrap_or_else(|e| panic!("{what}: again: {e}"));
                    assert_eq!(growth.after_bytes, to, "{what}");
                    let mut client = Client::open(&stores[0], RID).await;
                    write_file(&stores[0], &mut client, ino(9, 2), file_of(if seed == 0 { 90 } else { 4 })).await;
                    stores[0].shutdown().await.unwrap();
                    drop(stores);
                    assert_clean(&device, &what).await;
                });
            }
        }
    }
}

/// Block 0 is lost on a filesystem that does not fill its device: the copy is searched for.
#[test]
fn a_damaged_superblock_is_made_good_before_and_after_a_growth() {
    block_on(async {
        let memory = MemoryDevice::from_image(made(64 * MIB).await);
        let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(memory.clone());
        memory.enlarge(MIB * 150);
        for round in 0..2 {
            let mut image = memory.snapshot();
            image.write(600, b"rot");
            memory.restore(image);
            let (stores, report) = start(&device, options(1)).await.unwrap();
            assert_eq!(report.repaired.len(), 1, "round {round}: {report:?}");
            stores[0].grow().await.unwrap();
            stores[0].shutdown().await.unwrap();
            drop(stores);
            assert_clean(&device, "repaired").await;
        }
        assert_eq!(sb(&memory).blocks, 150 * 256);
    });
}

fn sb(memory: &MemoryDevice) -> Superblock {
    let mut block = vec![0; 4096];
    memory.snapshot().read(0, &mut block);
    Superblock::decode(&block, BlockAddr(0)).unwrap()
}

/// What a growth left that ended after its first write must not be found in place of a newer superblock.
#[test]
fn a_copy_that_a_growth_left_behind_goes_at_the_next_open() {
    block_on(async {
        let memory = MemoryDevice::from_image(made(64 * MIB).await);
        let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(memory.clone());
        memory.enlarge(128 * MIB);
        let left = BlockAddr(128 * 256 - 1);
        let known = sb(&memory);
        let grown = Superblock { blocks: 128 * 256, copy: left, generation: known.generation + 1, ..known };
        let mut image = memory.snapshot();
        image.write(left.bytes(), &grown.encode(left));
        memory.restore(image);
        let (stores, _) = start(&device, options(1)).await.unwrap();
        stores[0].shutdown().await.unwrap();
        drop(stores);
        let mut image = memory.snapshot();
        let mut block = vec![0; 4096];
        image.read(left.bytes(), &mut block);
        assert!(block.iter().all(|b| *b == 0));
        image.write(0, &[7; 512]);
        image.write(0, &known_magic(&memory));
        memory.restore(image);
        assert_clean(&device, "from the old copy").await;
    });
}

/// The first bytes of block 0, without which nothing is searched for.
fn known_magic(memory: &MemoryDevice) -> [u8; 8] {
    let mut head = [0; 8];
    memory.snapshot().read(0, &mut head);
    head
}

#[test]
fn a_device_that_shrank_is_refused_and_nothing_changes() {
    block_on(async {
        let memory = MemoryDevice::from_image(made(128 * MIB).await);
        let whole = memory.snapshot();
        let mut bytes = vec![0; 100 * MIB as usize];
        whole.read(0, &mut bytes);
        let small: std::sync::Arc<dyn Device> =
            std::sync::Arc::new(MemoryDevice::from_image(Image::from_bytes(&bytes)));
        match start(&small, options(1)).await {
            Err(StoreError::Truncated { found, needed, .. }) => assert_eq!((found, needed), (100 * MIB, 128 * MIB)),
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("it opened"),
        }
    });
}

/// The manifest moves twice; what it leaves is free again.
#[test]
fn a_filesystem_grows_again_and_again() {
    block_on(async {
        let memory = MemoryDevice::from_image(made(70 * MIB).await);
        let device: std::sync::Arc<dyn Device> = std::sync::Arc::new(memory.clone());
        let (mut stores, _) = start(&device, options(1)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        for (n, mib) in [90, 1300, 1301, 5000].into_iter().enumerate() {
            memory.enlarge(mib * MIB);
            let growth = stores[0].grow().await.unwrap();
            assert_eq!((growth.after_bytes, growth.device_bytes), (mib * MIB, mib * MIB));
            write_file(&stores[0], &mut client, ino(n as u8, 2), file_of(12)).await;
            if n == 2 {
                stores[0].shutdown().await.unwrap();
                drop(stores);
                stores = start(&device, options(1)).await.unwrap().0;
                client = Client::open(&stores[0], RID).await;
            }
        }
        let areas = sb(&memory).manifest;
        assert!(areas.iter().flatten().all(|area| area.len_blocks == 5 * 256), "{areas:?}");
        let (free, total) = (stores[0].statfs().await.unwrap().free_blocks, 5000 * 256);
        // Files, four areas of 5 chunks, rings, segments, and the reserve of a 32nd.
        assert!(free > total - total / 32 - 300 * 256, "{} chunks are gone", (total - free) / 256);
        stores[0].shutdown().await.unwrap();
        drop(stores);
        assert_clean(&device, "grown four times").await;
    });
}

#[test]
fn a_growth_that_fails_is_told_and_the_next_open_goes_on() {
    let left = block_on(async {
        let device = CrashDevice::new(made(80 * MIB).await);
        let (stores, _) = start(&device.as_device(), options(1)).await.unwrap();
        device.enlarge(160 * MIB);
        device.fail_flushes();
        assert!(stores[0].grow().await.is_err());
        let error = stores[0].until_failed().await.to_string();
        assert!(error.contains("grow"), "{error}");
        assert!(stores[0].grow().await.is_err(), "a failed store takes nothing in");
        device.snapshot()
    });
    block_on(async {
        let device = CrashDevice::new(left).as_device();
        assert_clean(&device, "after a failed growth").await;
        let (stores, _) = start(&device, options(1)).await.unwrap();
        assert_eq!(stores[0].grow().await.unwrap().after_bytes, 160 * MIB);
    });
}
