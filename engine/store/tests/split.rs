//! Shards that split while they are served: every value stays right, space comes back, and the next open sees the halves.

mod common;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use common::crash::CrashDevice;
use common::*;
use vellum_base::prng::Prng;
use vellum_base::{BlockAddr, Bucket, DmaBuf, Ino, Key, Rid};
use vellum_format::superblock::Features;
use vellum_nvme::Device;
use vellum_nvme::memory::MemoryDevice;
use vellum_rt::native::block_on;
use vellum_rt::{Class, spawn};
use vellum_store::{CheckOptions, MkfsOptions, OpenOptions, ShardStatus, Store, check, dump, mkfs, read_superblock};

async fn make_with(device: &Arc<dyn Device>, shards: u32, copies: u8) {
    let queue = queue(device);
    let options = MkfsOptions { shards, metadata_copies: copies, ..MkfsOptions::default() };
    mkfs(device, &queue, options).await.unwrap();
}

/// Shards of half a megabyte.
fn small(reactors: usize) -> OpenOptions {
    OpenOptions { shard_bytes: 512 << 10, memtable_bytes: 512 << 10, ..options(reactors) }
}

async fn shards(store: &Rc<Store>) -> Vec<ShardStatus> {
    store.status().await.unwrap().reactors.into_iter().flat_map(|r| r.shards).collect()
}

/// Writes, overwrites and deletes inline values of its own inodes, reads some back at once; what must be there at the end.
async fn client(stores: Vec<Rc<Store>>, rid: Rid, seed: u64, batches: u64) -> BTreeMap<Key, Bytes> {
    let mut client = Client::open(&stores[0], rid).await;
    let (mut random, mut model) = (Prng::new(seed), BTreeMap::new());
    for n in 0..batches {
        let store = &stores[random.below(stores.len() as u64) as usize];
        let mut ops = BTreeMap::new();
        for _ in 0..1 + random.below(12) {
            let ino = ino(random.next_u64() as u8, (seed << 16) | (1 + random.below(40)));
            let mut text = vec![0; 200 + random.below(800) as usize];
            random.fill(&mut text);
            ops.insert(ino, Bytes::from(text));
        }
        let puts =
            ops.iter().flat_map(|(ino, text)| [put(inline_key(*ino), text.clone()), put_inode(*ino, &inode(0, n + 1))]);
        let epoch = client.commit(store, puts.collect()).await.unwrap();
        model.extend(ops.into_iter().map(|(ino, text)| (inline_key(ino), text)));
        let read = random.below(model.len() as u64) as usize;
        let (key, value) = model.iter().nth(read).unwrap();
        assert_eq!(get(store, *key).await.as_ref(), Some(value), "client {seed}, batch {n}: {key:?}");
        if random.one_in(8) {
            store.wait_durable(epoch).await.unwrap();
        }
    }
    model
}

async fn holds(store: &Rc<Store>, model: &BTreeMap<Key, Bytes>) {
    for (key, value) in model {
        assert_eq!(get(store, *key).await.as_ref(), Some(value), "{key:?}");
    }
}

async fn is_whole(device: &Arc<dyn Device>) {
    let queue = queue(device);
    let report = check(device, &queue, CheckOptions::default()).await.unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
}

/// Two clients write on two reactors; the bound on a shard's length makes shards split under them again and again.
#[test]
fn long_shards_split_under_load() {
    let memory = MemoryDevice::new(256 * MIB);
    let device: Arc<dyn Device> = Arc::new(memory.clone());
    let model = block_on(async {
        make_with(&device, 2, 1).await;
        let (stores, _) = start(&device, small(2)).await.unwrap();
        let mut model = BTreeMap::new();
        let mut rounds = 0;
        while shards(&stores[0]).await.len() < 4 {
            rounds += 1;
            assert!(rounds < 100, "{:#?}", shards(&stores[0]).await);
            let writers = [1, 2].map(|n| {
                let task = client(stores.clone(), Rid(RID.0 + n), n + 2 * rounds, 150);
                spawn(Class::Request, "client", task)
            });
            for writer in writers {
                model.extend(writer.await.unwrap());
            }
        }
        holds(&stores[1], &model).await;
        let queue = queue(&device);
        let text = dump::manifest(&queue).await.unwrap().to_string();
        assert!(text.contains("shard 3"), "{text}");
        // Killed.
        model
    });
    let image = memory.snapshot();
    for reactors in [1, 3, 2] {
        let device: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(image.clone()));
        block_on(async {
            is_whole(&device).await;
            let (stores, _) = start(&device, small(reactors)).await.unwrap();
            assert!(shards(&stores[0]).await.len() >= 4);
            stores[0].compact_all().await.unwrap();
            holds(&stores[0], &model).await;
            stores[0].shutdown().await.unwrap();
            is_whole(&device).await;
        });
    }
}

/// What two shards name is rewritten by both, and then its blocks are free: no more space is used than by whole shards.
#[test]
fn what_crossed_the_boundary_is_rewritten_and_its_space_comes_back() {
    for copies in [1, 2] {
        let device = memory(128 * MIB);
        block_on(async {
            make_with(&device, 1, copies).await;
            let (stores, _) = start(&device, options(1)).await.unwrap();
            let store = &stores[0];
            let model = client(stores.clone(), RID, 1, 300).await;
            store.compact_all().await.unwrap();
            let before = shards(store).await;
            assert_eq!((before.len(), before[0].clipped), (1, 0));
            store.hold_compactions(true);
            for bucket in [128, 64, 32, 192] {
                assert!(store.split_shard(Bucket(bucket)).await.unwrap());
                assert!(!store.split_shard(Bucket(bucket)).await.unwrap(), "it is the first of its shard");
            }
            let halves = shards(store).await;
            let bounds: Vec<(u8, u8)> = halves.iter().map(|s| (s.first_bucket.0, s.last_bucket.0)).collect();
            assert_eq!(bounds, [(0, 31), (32, 63), (64, 127), (128, 191), (192, 255)]);
            assert!(halves.iter().all(|s| s.clipped > 0), "one segment held all: {halves:?}");
            holds(store, &model).await;
            is_whole(&device).await;
            store.hold_compactions(false);
            while shards(store).await.iter().any(|s| s.clipped > 0) {
                let compactions = &store.status().await.unwrap().reactors[0].compactions;
                assert_eq!(compactions.failed, 0, "{:?}", compactions.last_error);
                vellum_rt::sleep(std::time::Duration::from_millis(1)).await;
            }
            let after: u64 = shards(store).await.iter().map(|s| s.segment_bytes).sum();
            assert!(after < before[0].segment_bytes * 5 / 4, "{after} of {}", before[0].segment_bytes);
            holds(store, &model).await;
            store.shutdown().await.unwrap();
            is_whole(&device).await;
            let (stores, _) = start(&device, options(2)).await.unwrap();
            holds(&stores[0], &model).await;
        });
    }
}

/// A filesystem from before there were splits keeps its shards, so that the version that made it can open it again.
#[test]
fn a_filesystem_without_the_feature_is_never_split() {
    let device = memory(64 * MIB);
    block_on(async {
        make_with(&device, 1, 1).await;
        {
            let queue = queue(&device);
            let mut sb = read_superblock(&queue).await.unwrap();
            assert_ne!(sb.features, Features::default());
            sb.features = Features::default();
            for at in [BlockAddr(0), sb.copy] {
                let block = DmaBuf::copy_from(&sb.encode(at), true).freeze();
                queue.write(at.bytes(), block, false).await.unwrap();
            }
        }
        let (stores, _) = start(&device, OpenOptions { shard_bytes: 1, ..small(1) }).await.unwrap();
        let model = client(stores.clone(), RID, 1, 200).await;
        stores[0].compact_all().await.unwrap();
        assert!(!stores[0].split_shard(Bucket(9)).await.unwrap());
        assert_eq!(shards(&stores[0]).await.len(), 1);
        holds(&stores[0], &model).await;
        stores[0].shutdown().await.unwrap();
        is_whole(&device).await;
    });
}

/// Splits stop where a shard has one bucket.
#[test]
fn a_shard_of_one_bucket_stays() {
    let device = memory(64 * MIB);
    block_on(async {
        make_with(&device, 256, 1).await;
        let (stores, _) = start(&device, OpenOptions { shard_bytes: 1, ..small(1) }).await.unwrap();
        let model = client(stores.clone(), RID, 1, 50).await;
        stores[0].compact_all().await.unwrap();
        assert!(!stores[0].split_shard(Bucket(7)).await.unwrap());
        assert_eq!(shards(&stores[0]).await.len(), 256);
        holds(&stores[0], &model).await;
        assert_eq!(get(&stores[0], inline_key(Ino(1 << 20))).await, None);
    });
}

/// The device fails while a split is made durable: who asked for it is told, and the next open finds the whole or the halves.
#[test]
fn a_split_on_a_failing_device_fails_with_the_store() {
    let memory = MemoryDevice::new(64 * MIB);
    let device: Arc<dyn Device> = Arc::new(memory.clone());
    block_on(make_with(&device, 1, 1));
    let crash = CrashDevice::new(memory.snapshot());
    let model = block_on(async {
        let (stores, _) = start(&crash.as_device(), options(2)).await.unwrap();
        let model = client(stores.clone(), RID, 1, 20).await;
        stores[1].wait_durable(stores[1].commit(RID, batch(21, Vec::new())).await.unwrap()).await.unwrap();
        crash.fail_flushes();
        assert!(stores[1].split_shard(Bucket(100)).await.is_err());
        model
    });
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(crash.snapshot()));
    block_on(async {
        is_whole(&device).await;
        let (stores, _) = start(&device, options(2)).await.unwrap();
        holds(&stores[0], &model).await;
    });
}
