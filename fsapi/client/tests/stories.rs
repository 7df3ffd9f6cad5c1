//! The client against the strict engine, one story at a time.

mod strict;

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use strict::{FakeConfig, FakeEngine};
use vellum_base::{DmaBuf, Ino, Key, KeyRange, View};
use vellum_client::{Client, ClientError, ClientOptions, LockMode, LockName};
use vellum_format::{Extent, ExtentHeader};
use vellum_rt::sim::{SimConfig, World};

fn run<F: Future<Output = ()> + 'static>(seed: u64, test: impl FnOnce() -> F) {
    let mut world = World::new(seed, SimConfig::default());
    let node = world.add_node();
    let reactor = world.add_reactor(node);
    let task = world.enter(reactor, test);
    assert!(world.block_on(reactor, Duration::from_secs(3600), task).is_some(), "it hangs");
}

fn group(ino: Ino) -> LockName {
    LockName::of(ino)
}

fn item(ino: Ino, n: u64) -> Key {
    Key::fs(ino, 2, n, 0, 0)
}

fn text(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

async fn put(client: &Rc<Client>, key: Key, value: &str) {
    let guard = client.lock(&[(group(Ino(key.first())), LockMode::Write)]).await.unwrap();
    let mut txn = client.begin(&guard);
    txn.put(key, text(value));
    txn.commit().unwrap();
}

async fn get(client: &Rc<Client>, key: Key) -> Option<Bytes> {
    let guard = client.lock(&[(group(Ino(key.first())), LockMode::Read)]).await.unwrap();
    client.get(&guard, key).await.unwrap()
}

#[test]
fn a_change_is_seen_by_others_and_survives_what_was_synced() {
    run(1, || async {
        let engine = FakeEngine::new(FakeConfig::default());
        let (a, b) = (engine.connect(ClientOptions::default()).await, engine.connect(ClientOptions::default()).await);
        let key = item(Ino::ROOT, 1);
        put(&a, key, "one").await;
        assert_eq!(get(&b, key).await, Some(text("one")), "an invalidation makes it durable first");
        assert_eq!(engine.item(&key, View::Durable), Some(text("one")));
        put(&b, key, "two").await;
        b.sync().await.unwrap();
        engine.crash();
        assert_eq!(get(&a, key).await, Some(text("two")));
        a.farewell().await.unwrap();
        b.farewell().await.unwrap();
    });
}

#[test]
fn creating_in_a_new_directory_asks_nobody() {
    run(2, || async {
        let engine = FakeEngine::new(FakeConfig::default());
        let client = engine.connect(ClientOptions { small_dir_inodes: 8, ..ClientOptions::default() }).await;
        let dir = client.alloc_ino(Ino::ROOT, true).await.unwrap();
        vellum_rt::sleep(Duration::from_millis(5)).await; // the spare groups are there
        let before = engine.requests();
        for _ in 0..100 {
            let ino = client.alloc_ino(dir, false).await.unwrap();
            let guard = client.lock(&[(group(dir), LockMode::Write), (group(ino), LockMode::Write)]).await.unwrap();
            let names = KeyRange { first: Key::fs(dir, 3, 9, 0, 0), last: Key::fs(dir, 3, 9, u64::MAX, 255) };
            assert!(client.scan(&guard, names, 10).await.unwrap().items.is_empty());
            assert_eq!(client.get(&guard, item(ino, 0)).await.unwrap(), None);
            let mut txn = client.begin(&guard);
            txn.put(item(ino, 0), text("inode"));
            txn.put(Key::fs(dir, 3, ino.0, 0, 0), text("name"));
            txn.commit().unwrap();
        }
        // The spare group that was taken is replaced in the background: two requests, and a batch may have left.
        assert!(engine.requests() - before <= 4, "{} requests", engine.requests() - before);
        client.farewell().await.unwrap();
    });
}

#[test]
fn undurable_data_is_read_from_memory_and_finds_a_new_place_after_a_crash() {
    for torn in [0, 2] {
        run(3, move || async move {
            let slow = Duration::from_secs(60);
            let engine = FakeEngine::new(FakeConfig { epoch: slow, torn_one_in: 0, ..FakeConfig::default() });
            let client = engine.connect(ClientOptions { spare_groups: 1, ..ClientOptions::default() }).await;
            let ino = client.alloc_ino(Ino::ROOT, false).await.unwrap();
            let mut data = DmaBuf::zeroed(8 * 4096);
            data.chunks_mut(4096).zip(1..).for_each(|(block, n)| block.fill(n));
            let ranges = client.write_blocks(data.freeze()).await.unwrap();
            assert_eq!(ranges.len(), 1);
            let guard = client.lock(&[(group(ino), LockMode::Write)]).await.unwrap();
            let header = ExtentHeader { start: ranges[0].start, len_blocks: 8, offline: false };
            let extent = Extent { header, checksums: vec![0; 8] };
            let mut txn = client.begin(&guard);
            txn.put(Extent::key(ino, 0, 8), extent.encode());
            txn.commit().unwrap();
            vellum_rt::sleep(Duration::from_millis(100)).await; // sent and applied, not durable
            engine.configure(|c| c.torn_one_in = torn.min(1));
            engine.crash();
            // The old address still reads what was written, under the guard that got it.
            let read = client.read_blocks(&ranges).await.unwrap();
            assert_eq!((read[0], read[7 * 4096]), (1, 8));
            client.sync().await.unwrap();
            let page = client.scan(&guard, KeyRange::of_inode(ino), 10).await.unwrap();
            assert_eq!(page.items.len(), if torn == 0 { 1 } else { 2 });
            let mut n = 0;
            for (_, value) in &page.items {
                let header = Extent::decode_header(value).unwrap();
                assert!(!vellum_client::is_provisional(header.start));
                let read = client.read_blocks(&[header.blocks().unwrap()]).await.unwrap();
                for block in read.chunks(4096) {
                    n += 1;
                    assert_eq!(block[0], n);
                }
            }
            assert_eq!(n, 8);
            drop(guard);
            client.farewell().await.unwrap();
        });
    }
}

#[test]
fn many_syncs_share_few_requests() {
    run(4, || async {
        let engine = FakeEngine::new(FakeConfig::default());
        let client = engine.connect(ClientOptions::default()).await;
        let mut tasks = Vec::new();
        for n in 0..100 {
            let client = client.clone();
            tasks.push(vellum_rt::spawn(vellum_rt::Class::Request, "writer", async move {
                put(&client, item(Ino::ROOT, n), "x").await;
                client.sync().await.unwrap();
            }));
        }
        for task in tasks {
            assert!(task.await.is_ok());
        }
        assert!(client.stats().sync_requests <= 6, "{:?}", client.stats());
        client.farewell().await.unwrap();
    });
}

#[test]
fn a_fenced_client_says_so_for_ever_and_hinders_nobody() {
    run(5, || async {
        let engine = FakeEngine::new(FakeConfig::default());
        let (a, b) = (engine.connect(ClientOptions::default()).await, engine.connect(ClientOptions::default()).await);
        let key = item(Ino::ROOT, 1);
        put(&a, key, "lost").await;
        engine.fence(a.rid());
        assert!(matches!(a.sync().await, Err(ClientError::Fenced { .. })));
        assert!(matches!(a.lock(&[(group(Ino::ROOT), LockMode::Read)]).await, Err(ClientError::Fenced { .. })));
        put(&b, key, "kept").await;
        assert_eq!(get(&b, key).await, Some(text("kept")));
        b.farewell().await.unwrap();
    });
}

#[test]
fn idle_locks_beyond_the_bound_are_given_back() {
    run(6, || async {
        let engine = FakeEngine::new(FakeConfig::default());
        let options = ClientOptions { max_idle_locks: 32, ..ClientOptions::default() };
        let (a, b) = (engine.connect(options).await, engine.connect(ClientOptions::default()).await);
        let ino = |n: u64| Ino((1 << 40) + (n << 10));
        for n in 0..200 {
            put(&a, item(ino(n), 1), &n.to_string()).await;
        }
        vellum_rt::sleep(Duration::from_millis(100)).await;
        assert!(a.stats().locks_held <= 40, "{:?}", a.stats());
        for n in 0..200 {
            assert_eq!(get(&b, item(ino(n), 1)).await, Some(text(&n.to_string())));
        }
        a.farewell().await.unwrap();
        b.farewell().await.unwrap();
    });
}

#[test]
fn a_writer_and_a_cancelled_waiter_leave_no_lock_behind() {
    run(7, || async {
        let engine = FakeEngine::new(FakeConfig::default());
        let (a, b) = (engine.connect(ClientOptions::default()).await, engine.connect(ClientOptions::default()).await);
        let name = group(Ino::ROOT);
        let held = a.lock(&[(name, LockMode::Write)]).await.unwrap();
        for _ in 0..5 {
            let wants = [(name, LockMode::Write)];
            let waiting = b.lock(&wants);
            assert!(vellum_rt::timeout(Duration::from_millis(3), waiting).await.is_err());
        }
        drop(held);
        drop(a.lock(&[(name, LockMode::Write)]).await.unwrap());
        drop(b.lock(&[(name, LockMode::Read)]).await.unwrap());
        a.farewell().await.unwrap();
        b.farewell().await.unwrap();
    });
}
