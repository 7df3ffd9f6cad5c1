//! Several clients with several tasks each do random things; the engine crashes now and then. A model knows what every
//! item and every block must be at every moment: clients live through the crashes, so no committed change may be lost.
//!
//! Checked: no two clients use incompatible locks [L1]; every read under a lock gives the newest value [L5, scenario 44,
//! E13]; what was synced is in the engine's durable state [P1]; at every crash that state holds each transaction whole
//! or not at all [P2, E12]; file data survives although its blocks are lost [E4]; in the end nothing is left over.

mod strict;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use strict::{FakeConfig, FakeEngine};
use vellum_base::prng::Prng;
use vellum_base::{BLOCK_SIZE, BlockAddr, BlockRange, DmaBuf, Ino, Key, KeyRange, Rid, View};
use vellum_client::{Client, ClientError, ClientOptions, LockGuard, LockMode, LockName};
use vellum_format::{Extent, ExtentHeader};
use vellum_rt::sim::{SimConfig, World};

const FILE_BLOCKS: u64 = 24;

/// All that was committed, in order.
#[derive(Default)]
struct Model {
    /// Newest value by key; `None` was deleted.
    items: BTreeMap<Key, (u64, Option<Bytes>)>,
    /// Every version of a key; true when it is a deletion.
    history: HashMap<Key, Vec<(u64, bool)>>,
    /// Transactions that put several keys.
    joint: Vec<(u64, Vec<Key>)>,
    /// What each block of a file holds.
    files: HashMap<Ino, Vec<u8>>,
    version: u64,
    users: HashMap<LockName, Vec<(Rid, LockMode)>>,
}

impl Model {
    fn commit(&mut self, changes: &[(Key, bool)]) -> u64 {
        self.version += 1;
        for (key, put) in changes {
            let value = put.then(|| value_of(self.version));
            self.items.insert(*key, (self.version, value));
            self.history.entry(*key).or_default().push((self.version, !put));
        }
        if changes.len() > 1 && changes.iter().all(|(_, put)| *put) {
            self.joint.push((self.version, changes.iter().map(|(k, _)| *k).collect()));
        }
        self.version
    }

    fn value(&self, key: &Key) -> Option<Bytes> {
        self.items.get(key).and_then(|(_, value)| value.clone())
    }
}

fn value_of(version: u64) -> Bytes {
    Bytes::copy_from_slice(&version.to_le_bytes())
}

fn version_of(value: &Bytes) -> u64 {
    u64::from_le_bytes(value[..8].try_into().unwrap())
}

struct Test {
    engine: Rc<FakeEngine>,
    model: RefCell<Model>,
    prng: RefCell<Prng>,
    running: Cell<usize>,
    files: RefCell<Vec<Ino>>,
    clients: RefCell<Vec<Rc<Client>>>,
}

/// A guard that the model watches.
struct Held {
    test: Rc<Test>,
    rid: Rid,
    guard: Option<LockGuard>,
}

impl Held {
    fn guard(&self) -> &LockGuard {
        self.guard.as_ref().unwrap()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut model = self.test.model.borrow_mut();
        for (name, mode) in self.guard().names() {
            let users = model.users.get_mut(&name).unwrap();
            let at = users.iter().position(|u| *u == (self.rid, mode)).unwrap();
            users.swap_remove(at);
        }
    }
}

impl Test {
    fn below(&self, n: u64) -> u64 {
        self.prng.borrow_mut().below(n)
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Items live in three groups.
    fn key(&self) -> Key {
        let ino = Ino(((self.below(3) + 1) << 30) + self.below(2) + 5);
        Key::fs(ino, 2, self.below(6), 0, 0)
    }

    async fn pause(&self) {
        if self.one_in(4) {
            vellum_rt::sleep(Duration::from_micros(self.below(3000))).await;
        }
    }

    async fn lock(self: &Rc<Self>, client: &Rc<Client>, wants: &[(LockName, LockMode)]) -> Held {
        let guard = client.lock(wants).await.expect("a lock");
        let rid = client.rid();
        let mut model = self.model.borrow_mut();
        for (name, mode) in guard.names() {
            let users = model.users.entry(name).or_default();
            let clash = users.iter().find(|(r, m)| *r != rid && !m.compatible(mode));
            assert!(clash.is_none(), "L1: {rid} uses {name:?} as {mode:?} beside {clash:?}");
            users.push((rid, mode));
        }
        drop(model);
        Held { test: self.clone(), rid, guard: Some(guard) }
    }

    async fn read_items(self: &Rc<Self>, client: &Rc<Client>) {
        let key = self.key();
        let held = self.lock(client, &[(LockName::of(Ino(key.first())), LockMode::Read)]).await;
        if self.one_in(3) {
            let range = KeyRange::of_inode(Ino(key.first()));
            let mut at = range;
            loop {
                let page = client.scan(held.guard(), at, 1 + self.below(4) as usize).await.expect("a scan");
                let last = page.next.and_then(|n| before(&n)).unwrap_or(range.last);
                let model = self.model.borrow();
                let expected = model.items.range(at.first..=last);
                let expected: Vec<_> = expected.filter_map(|(k, (_, v))| Some((*k, v.clone()?))).collect();
                assert_eq!(page.items, expected);
                drop(model);
                match page.next {
                    Some(next) => at.first = next,
                    None => break,
                }
            }
        } else {
            let value = client.get(held.guard(), key).await.expect("a get");
            assert_eq!(value, self.model.borrow().value(&key), "{key:?}");
        }
        self.pause().await;
    }

    async fn change_items(self: &Rc<Self>, client: &Rc<Client>) {
        client.reserve(4).await.expect("room");
        let keys: std::collections::BTreeSet<Key> = (0..1 + self.below(3)).map(|_| self.key()).collect();
        let wants: Vec<_> = keys.iter().map(|k| (LockName::of(Ino(k.first())), LockMode::Write)).collect();
        let held = self.lock(client, &wants).await;
        self.pause().await;
        let keys: Vec<Key> = keys.into_iter().collect();
        let values = client.get_many(held.guard(), &keys).await.expect("items");
        for (key, value) in keys.iter().zip(values) {
            assert_eq!(value, self.model.borrow().value(key), "{key:?}");
        }
        self.pause().await;
        let changes: Vec<(Key, bool)> = keys.iter().map(|k| (*k, !self.one_in(5))).collect();
        let version = self.model.borrow_mut().commit(&changes);
        let mut txn = client.begin(held.guard());
        for (key, put) in changes {
            if put { txn.put(key, value_of(version)) } else { txn.delete(key) }
        }
        txn.commit().expect("a commit");
        self.pause().await;
    }

    /// What could be read under a lock before a sync was changed by this client, or durable already.
    async fn sync(self: &Rc<Self>, client: &Rc<Client>) {
        let ino = Ino(self.key().first());
        let held = self.lock(client, &[(LockName::of(ino), LockMode::Read)]).await;
        let range = KeyRange::of_inode(ino);
        let promised: Vec<(Key, u64)> = {
            let model = self.model.borrow();
            model.items.range(range.first..=range.last).map(|(key, (version, _))| (*key, *version)).collect()
        };
        drop(held);
        client.sync().await.expect("a sync");
        for (key, version) in promised {
            let durable = self.engine.item(&key, View::Durable).map(|v| version_of(&v));
            let model = self.model.borrow();
            let deleted = || model.history[&key].iter().any(|(v, deletion)| *v >= version && *deletion);
            assert!(durable.map_or_else(deleted, |found| found >= version), "{key:?} of {version} is {durable:?}");
        }
    }

    /// The extents of a file, with their first blocks.
    async fn extents(&self, client: &Rc<Client>, held: &Held, ino: Ino) -> Vec<(Key, u64, Extent)> {
        let mut range = KeyRange { first: Extent::seek_key(ino, 0), last: Extent::seek_key(ino, u64::MAX) };
        let mut extents = Vec::new();
        loop {
            let page = client.scan(held.guard(), range, 100).await.expect("extents");
            for (key, value) in page.items {
                let extent = Extent::decode(&value).expect("an extent");
                let first = Extent::first_block(&key, extent.header.len_blocks).expect("a place");
                extents.push((key, first, extent));
            }
            match page.next {
                Some(next) => range.first = next,
                None => return extents,
            }
        }
    }

    async fn write_file(self: &Rc<Self>, client: &Rc<Client>, ino: Ino) {
        let first = self.below(FILE_BLOCKS);
        let len = 1 + self.below(FILE_BLOCKS - first);
        let fill = 1 + self.below(255) as u8;
        let mut data = DmaBuf::zeroed(len as usize * BLOCK_SIZE);
        data.fill(fill);
        let ranges = client.write_blocks(data.freeze()).await.expect("room for data");
        while let Err(error) = self.refer(client, ino, first, len, fill, &ranges).await {
            assert_eq!(error, ClientError::Moved);
        }
    }

    async fn refer(
        self: &Rc<Self>,
        client: &Rc<Client>,
        ino: Ino,
        first: u64,
        len: u64,
        fill: u8,
        ranges: &[BlockRange],
    ) -> Result<(), ClientError> {
        let held = self.lock(client, &[(LockName::of(ino), LockMode::Write)]).await;
        self.pause().await;
        let old = self.extents(client, &held, ino).await;
        self.pause().await; // a crash may tear what was just read
        let mut txn = client.begin(held.guard());
        for (key, at, extent) in old {
            let end = at + u64::from(extent.header.len_blocks);
            if end <= first || at >= first + len {
                continue;
            }
            txn.delete(key);
            let mut keep = |from: u64, to: u64| {
                if from < to {
                    let part = to - from;
                    let header = ExtentHeader {
                        start: BlockAddr(extent.header.start.0 + (from - at)),
                        len_blocks: part as u32,
                        offline: false,
                    };
                    let kept = Extent { header, checksums: vec![0; part as usize] };
                    txn.put(Extent::key(ino, from, part as u32), kept.encode());
                }
            };
            keep(at, first);
            keep(first + len, end);
        }
        let mut at = first;
        for range in ranges {
            let header = ExtentHeader { start: range.start, len_blocks: range.len_blocks, offline: false };
            let extent = Extent { header, checksums: vec![0; range.len_blocks as usize] };
            txn.put(Extent::key(ino, at, range.len_blocks), extent.encode());
            at += u64::from(range.len_blocks);
        }
        txn.commit()?;
        let mut model = self.model.borrow_mut();
        let blocks = model.files.get_mut(&ino).expect("a file of the model");
        blocks[first as usize..(first + len) as usize].fill(fill);
        Ok(())
    }

    async fn read_file(self: &Rc<Self>, client: &Rc<Client>, ino: Ino) {
        let held = self.lock(client, &[(LockName::of(ino), LockMode::Read)]).await;
        let extents = self.extents(client, &held, ino).await;
        let expected = self.model.borrow().files[&ino].clone();
        self.pause().await;
        let ranges: Vec<_> = extents.iter().filter_map(|(_, _, e)| e.header.blocks()).collect();
        let data = client.read_blocks(&ranges).await.expect("data");
        let mut found = vec![0u8; FILE_BLOCKS as usize];
        let mut blocks = data.chunks(BLOCK_SIZE);
        for (_, first, extent) in &extents {
            for n in 0..u64::from(extent.header.len_blocks) {
                let block = blocks.next().expect("all blocks");
                assert!(block.iter().all(|b| *b == block[0]), "a block is of one write");
                found[(first + n) as usize] = block[0];
            }
        }
        assert_eq!(found, expected, "{ino:?}");
    }

    /// A transaction is in the durable state whole or not at all.
    fn check_durable(&self) {
        let model = self.model.borrow();
        let durable = self.engine.items(View::Durable);
        for (version, keys) in model.joint.iter().rev().take(200) {
            let holds = |key: &&Key| model.history[*key].iter().all(|(v, deletion)| v < version || !deletion);
            let states: Vec<bool> = keys
                .iter()
                .filter(holds)
                .map(|key| durable.get(key).is_some_and(|value| version_of(value) >= *version))
                .collect();
            assert!(states.windows(2).all(|w| w[0] == w[1]), "txn {version} is torn: {keys:?} {states:?}");
        }
    }
}

fn before(key: &Key) -> Option<Key> {
    let n = key.0.iter().rposition(|b| *b > 0)?;
    let mut k = *key;
    k.0[n] -= 1;
    k.0[n + 1..].fill(0xff);
    Some(k)
}

async fn worker(test: Rc<Test>, client: Rc<Client>, files: Rc<vellum_rt::local::Semaphore>, ops: usize) {
    for _ in 0..ops {
        match test.below(12) {
            0..4 => test.read_items(&client).await,
            4..8 => test.change_items(&client).await,
            8 => test.sync(&client).await,
            what => {
                let _turn = files.acquire(1).await;
                let known = test.files.borrow().len() as u64;
                if known < 4 {
                    let ino = client.alloc_ino(Ino::ROOT, false).await.expect("an inode number");
                    test.model.borrow_mut().files.insert(ino, vec![0; FILE_BLOCKS as usize]);
                    test.files.borrow_mut().push(ino);
                }
                let at = test.below(test.files.borrow().len() as u64) as usize;
                let ino = test.files.borrow()[at];
                if what == 9 { test.read_file(&client, ino).await } else { test.write_file(&client, ino).await }
            }
        }
    }
    test.running.set(test.running.get() - 1);
}

async fn crashes(test: Rc<Test>, every: Duration) {
    for _ in 0..20 {
        vellum_rt::sleep(Duration::from_micros(1 + test.below(every.as_micros() as u64 * 2))).await;
        test.check_durable();
        if test.running.get() == 0 {
            return;
        }
        test.engine.crash();
    }
}

/// Says who waits for what when nothing has ended for long.
async fn watch(test: Rc<Test>) {
    vellum_rt::sleep(Duration::from_secs(300)).await;
    for client in test.clients.borrow().iter() {
        println!("{} {:?}", client.rid(), client.stats());
        for view in client.lock_views() {
            println!("   {view:?}");
        }
    }
    println!("{}", test.engine.describe_locks());
    panic!("it hangs");
}

fn run(seed: u64) {
    let mut world = World::new(seed, SimConfig::default());
    let node = world.add_node();
    let reactor = world.add_reactor(node);
    let task = world.enter(reactor, || run_clients(seed));
    if world.block_on(reactor, Duration::from_secs(600), task).is_none() {
        panic!("seed {seed} hangs:\n{}", world.recent_trace().join("\n"));
    }
}

async fn run_clients(seed: u64) {
    let mut prng = Prng::new(seed);
    let mut draw = |choices: &[u64]| choices[prng.below(choices.len() as u64) as usize];
    let config = FakeConfig {
        seed,
        total_blocks: 4096,
        latency: Duration::from_micros(draw(&[0, 50, 1000])),
        epoch: Duration::from_millis(draw(&[2, 20, 500])),
        flush: Duration::from_micros(draw(&[1, 300, 5000])),
        busy_one_in: draw(&[0, 0, 10]),
        torn_one_in: draw(&[0, 3]),
    };
    let options = ClientOptions {
        cache_bytes: draw(&[2000, 20_000, 1 << 20]) as usize,
        large_group_items: 16,
        max_idle_locks: draw(&[3, 10_000]) as usize,
        batch_ops: draw(&[60, 4096]) as usize,
        batch_delay: Duration::from_millis(draw(&[1, 5, 50])),
        max_batches_in_flight: draw(&[1, 8]) as usize,
        max_retained_batches: draw(&[2, 64]) as usize,
        max_retained_data_bytes: draw(&[200_000, 64 << 20]) as usize,
        spare_groups: draw(&[0, 2]) as usize + 1,
        ..ClientOptions::default()
    };
    let (clients, tasks, ops) = (draw(&[1, 2, 3]), draw(&[1, 3]), 60);
    let every = Duration::from_millis(draw(&[20, 80, 100_000]));
    println!("{clients} clients, {tasks} tasks, a crash every {every:?}, {config:?}, {options:?}");
    let test = Rc::new(Test {
        engine: FakeEngine::new(config),
        model: RefCell::default(),
        prng: RefCell::new(Prng::new(seed + 1)),
        running: Cell::new((clients * tasks) as usize),
        files: RefCell::default(),
        clients: RefCell::default(),
    });
    let mut all = Vec::new();
    let mut workers = Vec::new();
    strict::spawn("watchdog", watch(test.clone()));
    for _ in 0..clients {
        let client = test.engine.connect(options.clone()).await;
        let files = Rc::new(vellum_rt::local::Semaphore::new(1));
        for _ in 0..tasks {
            let task = worker(test.clone(), client.clone(), files.clone(), ops);
            workers.push(vellum_rt::spawn(vellum_rt::Class::Request, "worker", task));
        }
        test.clients.borrow_mut().push(client.clone());
        all.push(client);
    }
    strict::spawn("crashes", crashes(test.clone(), every));
    for worker in workers {
        assert!(worker.await.is_ok());
    }
    for client in &all {
        client.sync().await.expect("a last sync");
    }
    let files = test.files.borrow().clone();
    for ino in files {
        test.read_file(&all[0], ino).await;
    }
    for (key, (_, value)) in &test.model.borrow().items {
        assert_eq!(test.engine.item(key, View::Durable), *value, "{key:?} in the end");
    }
    for client in &all {
        let stats = client.stats();
        assert_eq!((stats.retained_batches, stats.retained_data_bytes), (0, 0), "{stats:?}");
        client.farewell().await.expect("a farewell");
    }
    let extents: u64 = test.engine.items(View::Durable).iter().filter_map(|(k, v)| blocks(k, v)).sum();
    assert_eq!(test.engine.free_blocks() + extents, 4096, "blocks are left over");
}

fn blocks(key: &Key, value: &[u8]) -> Option<u64> {
    (key.kind() == vellum_format::ItemKind::Extent as u8).then_some(())?;
    Some(u64::from(Extent::decode_header(value).ok()?.blocks()?.len_blocks))
}

#[test]
fn clients_agree_and_lose_nothing_over_crashes() {
    let (first, count) = match std::env::var("VELLUM_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => (seed, 1),
        None => (0, std::env::var("VELLUM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(400)),
    };
    for seed in first..first + count {
        println!("seed {seed}");
        run(seed);
    }
}
