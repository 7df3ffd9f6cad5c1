//! The `items` suite: puts and gets of the store, beside fjall (and RocksDB, by feature) with the same keys and batches.
//!
//! All have caches and memtables of the same size (64 MiB that are filled, and as much that is being written). What the peers do not cache themselves is in the kernel's page cache;
//! Vellum bypasses that, so the cache is large enough for all keys: what is compared is the way to a key in memory. The
//! image is written once before the run, as the blocks of a device are: a write to a hole of a file, and the flush after it,
//! would measure the host's filesystem.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use vellum_base::prng::Prng;
use vellum_base::{Batch, BatchNo, Ino, ItemOp, Key, Rid, View};
use vellum_format::ItemKind;
use vellum_nvme::{Device, OpenMode};
use vellum_rt::Class;
use vellum_rt::native::{self, Config};
use vellum_store::{Everyone, MkfsOptions, OpenOptions, PolledQueue, ReactorSeed, Store};

use crate::executors;
use crate::node::fresh_image;
use crate::peers::kv::{self, CACHE_BYTES, Fjall, KEY_LEN, KeyValue, MEMTABLE_BYTES, RawKey, VALUE_LEN};
use crate::recorder::{Recorder, Usage, measure};
use crate::report::{Report, Row};

/// Sizes of the suite. Keys have 24 varying bytes, values 100.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub keys: usize,
    pub batch: usize,
    pub synced_batches: usize,
    pub gets: usize,
}

/// User data of a key and its value.
const ITEM_LEN: u64 = (KEY_LEN + VALUE_LEN) as u64;
/// Of the cases where several wait at once for what they wrote.
const CLIENTS: usize = 8;

impl Shape {
    fn batches_per_client(&self) -> usize {
        (self.synced_batches / CLIENTS).min(self.keys / self.batch / CLIENTS)
    }
}

impl Default for Shape {
    fn default() -> Self {
        Shape { keys: 1_000_000, batch: 100, synced_batches: 2_000, gets: 300_000 }
    }
}

/// Runs all cases; images and databases go below `dir`.
pub fn run(dir: &Path, shape: &Shape) -> Result<Report> {
    let mut report = Report::new("items", "fjall");
    peer(&dir.join("fjall"), |dir| Ok(Box::new(Fjall::open(dir)?)), shape, &mut report)?;
    #[cfg(feature = "rocksdb")]
    rocksdb(&dir.join("rocksdb"), shape, &mut report)?;
    for (system, config) in executors::all() {
        vellum(&dir.join("items.img"), system, config, shape, &mut report)?;
    }
    Ok(report)
}

#[cfg(feature = "rocksdb")]
fn rocksdb(dir: &Path, shape: &Shape, report: &mut Report) -> Result<()> {
    use crate::peers::rocksdb::{self, RocksDb};
    match rocksdb::find() {
        Ok(library) => peer(dir, |dir| Ok(Box::new(RocksDb::open(library, dir)?)), shape, report),
        Err(absent) => {
            report.remarks.push(absent);
            Ok(())
        }
    }
}

fn raw_keys(shape: &Shape, seed: u64) -> Vec<RawKey> {
    let mut prng = Prng::new(seed);
    (0..shape.keys)
        .map(|_| {
            let mut key = [0u8; KEY_LEN];
            prng.fill(&mut key);
            key
        })
        .collect()
}

/// The keys of a case with gets, in its order.
fn wanted<'a>(keys: &'a [RawKey], shape: &Shape, seed: u64) -> impl Iterator<Item = &'a RawKey> {
    let mut prng = Prng::new(seed);
    (0..shape.gets).map(move |_| &keys[prng.below(keys.len() as u64) as usize])
}

fn value_of(i: usize) -> [u8; VALUE_LEN] {
    let mut value = [0u8; VALUE_LEN];
    Prng::new(i as u64).fill(&mut value);
    value
}

/// One row whose operations are keys, though what was timed are batches of `per_op`.
fn row(case: &str, system: &str, recorder: &Recorder, per_op: usize, start: Instant, before: Usage) -> Row {
    per_key(Row::of(case, system, recorder, start.elapsed(), Usage::now().since(before)), per_op)
}

fn per_key(mut row: Row, per_op: usize) -> Row {
    let n = per_op as f64;
    row.ops *= per_op as u64;
    row.ops_per_s *= n;
    row.cpu_us_per_op /= n;
    row.device_bytes_per_op /= n;
    if per_op > 1 {
        row.note = format!("latencies of batches of {per_op}");
    }
    row
}

/// Adds what a case has written for each byte of keys and values.
fn note_amplification(row: &mut Row, shape: &Shape, before: Usage) {
    let written = Usage::now().since(before).device_write_bytes as f64;
    let payload = (shape.keys * (KEY_LEN + VALUE_LEN)) as f64;
    row.note = format!("{}; write amplification {:.2} so far", row.note, written / payload);
}

fn peer(
    dir: &Path,
    open: impl FnOnce(&Path) -> Result<Box<dyn KeyValue>>,
    shape: &Shape,
    report: &mut Report,
) -> Result<()> {
    let keys = raw_keys(shape, 1);
    let db = open(dir)?;
    let (before, start, mut r) = (Usage::now(), Instant::now(), Recorder::default());
    kv::fill(&*db, &keys, value_of, shape.batch, false, &mut r)?;
    let mut filled = row("fill", db.name(), &r, shape.batch, start, before);
    note_amplification(&mut filled, shape, before);
    report.push(filled);
    let (before, start, mut r) = (Usage::now(), Instant::now(), Recorder::default());
    let synced = &raw_keys(shape, 2)[..(shape.synced_batches * shape.batch).min(shape.keys)];
    kv::fill(&*db, synced, value_of, shape.batch, true, &mut r)?;
    report.push(row("durable batches", db.name(), &r, shape.batch, start, before));
    report.push(peer_by_eight(&*db, shape)?);
    let (before, start, mut r) = (Usage::now(), Instant::now(), Recorder::default());
    kv::gets(&*db, wanted(&keys, shape, 3), &mut r)?;
    report.push(row("gets", db.name(), &r, 1, start, before));
    report.push(measure("gets by two", db.name(), 2, |thread, r| {
        kv::gets(&*db, wanted(&keys, shape, 5 + thread as u64), r)
    })?);
    drop(db);
    std::fs::remove_dir_all(dir).context("removing the peer's database")
}

/// Clients at once, each a thread that waits for each of its batches.
fn peer_by_eight(db: &dyn KeyValue, shape: &Shape) -> Result<Row> {
    let (keys, size) = (raw_keys(shape, 4), shape.batch);
    let share = shape.batches_per_client() * size;
    let timed = measure("durable batches x8", db.name(), CLIENTS, |client, r| {
        let first = client * share;
        kv::fill(db, &keys[first..first + share], |i| value_of(first + i), size, true, r)
    })?;
    Ok(per_key(timed, size))
}

/// The 24 bytes as an item key: bucket and inode from the first eight, the rest as they are.
fn item_key(raw: &[u8; 24]) -> Key {
    let u64_at = |at: usize| raw[at..at + 8].iter().fold(0u64, |acc, b| acc << 8 | u64::from(*b));
    Key::fs(Ino(u64_at(0)), ItemKind::Symlink as u8, u64_at(8), u64_at(16), 0)
}

fn batch(number: u64, first: usize, keys: &[[u8; 24]]) -> Batch {
    // Values share memory, as those of a batch that came in a frame.
    let mut values = BytesMut::with_capacity(keys.len() * VALUE_LEN);
    (0..keys.len()).for_each(|i| values.extend_from_slice(&value_of(first + i)));
    let values = values.freeze();
    let value = |i: usize| values.slice(i * VALUE_LEN..(i + 1) * VALUE_LEN);
    let ops = keys.iter().enumerate().map(|(i, key)| ItemOp::Put { key: item_key(key), value: value(i) }).collect();
    Batch { number: BatchNo(number), ops }
}

/// The store's log and memtables may take shares of the device; here they are as long as is asked for.
const IMAGE_BYTES_PER_KEY: u64 = 4300;
const LEAST_IMAGE_BYTES: u64 = 256 << 20;
/// Far from what stops a peer's log: fjall's journal may have 512 MiB, RocksDB's four memtables.
const LOG_BYTES: u64 = 256 << 20;

fn vellum(image: &Path, system: &str, config: Config, shape: &Shape, report: &mut Report) -> Result<()> {
    let bytes = (shape.keys as u64 * IMAGE_BYTES_PER_KEY).max(LEAST_IMAGE_BYTES);
    // A quarter is more than the suite comes to use, and no more work for the disk than needed.
    fresh_image(image, bytes / 4)?;
    std::fs::OpenOptions::new().write(true).open(image)?.set_len(bytes)?;
    let device = vellum_nvme::open(&image.display().to_string(), OpenMode { exclusive: true, ..OpenMode::default() })?;
    let mut rows = by_one_reactor(&device, config.clone(), *shape)?;
    rows.push(gets_by_two(&device, config, *shape)?);
    rows.into_iter().for_each(|row| executors::push(report, Row { system: system.into(), ..row }));
    std::fs::remove_file(image).context("removing the image")
}

fn options(reactors: usize) -> OpenOptions {
    let memtable_bytes = 2 * MEMTABLE_BYTES;
    OpenOptions { reactors, cache_bytes: CACHE_BYTES, memtable_bytes, log_bytes: LOG_BYTES, ..OpenOptions::default() }
}

/// What each reactor's store begins with.
async fn seeds(device: &Arc<dyn Device>, reactors: usize, fresh: bool) -> Result<Vec<ReactorSeed>> {
    let queue = PolledQueue::open(&**device, 64, "open")?;
    if fresh {
        vellum_store::mkfs(device, &queue, MkfsOptions::default()).await?;
    }
    Ok(vellum_store::open(device, &queue, options(reactors)).await?.seeds)
}

fn by_one_reactor(device: &Arc<dyn Device>, config: Config, shape: Shape) -> Result<Vec<Row>> {
    let device = device.clone();
    native::block_on_with(config, async move {
        let seed = seeds(&device, 1, true).await?.pop().context("one reactor")?;
        let store = Store::start(seed, Rc::new(Everyone)).await?;
        let rows = cases(&store, &shape).await?;
        store.shutdown().await?;
        Ok::<_, anyhow::Error>(rows)
    })?
}

async fn cases(store: &Rc<Store>, shape: &Shape) -> Result<Vec<Row>> {
    let rid = Rid(1);
    store.open_rid(rid, b"bench").await?;
    let keys = raw_keys(shape, 1);
    let mut rows = Vec::new();
    let mut number = 0;
    let (before, start, mut r) = (Usage::now(), Instant::now(), Recorder::default());
    let mut last = Default::default();
    for (n, chunk) in keys.chunks(shape.batch).enumerate() {
        number += 1;
        let began = Instant::now();
        last = store.commit(rid, batch(number, n * shape.batch, chunk)).await?;
        r.record(began.elapsed(), chunk.len() as u64 * ITEM_LEN);
    }
    rows.push(row("fill", "vellum", &r, shape.batch, start, before));
    store.wait_durable(last).await?;
    rows.iter_mut().for_each(|row| note_amplification(row, shape, before));
    let (before, start, mut r) = (Usage::now(), Instant::now(), Recorder::default());
    let synced = &raw_keys(shape, 2)[..(shape.synced_batches * shape.batch).min(shape.keys)];
    for (n, chunk) in synced.chunks(shape.batch).enumerate() {
        number += 1;
        let began = Instant::now();
        let epoch = store.commit(rid, batch(number, n * shape.batch, chunk)).await?;
        store.wait_durable(epoch).await?;
        r.record(began.elapsed(), chunk.len() as u64 * ITEM_LEN);
    }
    rows.push(row("durable batches", "vellum", &r, shape.batch, start, before));
    rows.push(durable_by_eight(store, shape).await?);
    let (before, start, mut r) = (Usage::now(), Instant::now(), Recorder::default());
    for raw in wanted(&keys, shape, 3) {
        let key = item_key(raw);
        let began = Instant::now();
        let found = store.get(&[key], View::Applied).await?;
        r.record(began.elapsed(), ITEM_LEN);
        check_found(&found)?;
    }
    rows.push(row("gets", "vellum", &r, 1, start, before));
    Ok(rows)
}

/// Eight clients at once, each waiting for each of its batches: what group commit makes of it.
async fn durable_by_eight(store: &Rc<Store>, shape: &Shape) -> Result<Row> {
    let keys = Rc::new(raw_keys(shape, 4));
    let recorder = Rc::new(RefCell::new(Recorder::default()));
    let (before, start) = (Usage::now(), Instant::now());
    let per_client = shape.batches_per_client();
    let tasks: Vec<_> = (0..CLIENTS as u64)
        .map(|client| {
            let (store, keys, recorder, size) = (store.clone(), keys.clone(), recorder.clone(), shape.batch);
            vellum_rt::spawn(Class::Request, "bench client", async move {
                let rid = Rid(100 + client);
                store.open_rid(rid, b"bench").await?;
                for n in 0..per_client {
                    let first = (client as usize * per_client + n) * size;
                    let began = Instant::now();
                    let batch = batch(n as u64 + 1, first, &keys[first..first + size]);
                    let epoch = store.commit(rid, batch).await?;
                    store.wait_durable(epoch).await?;
                    recorder.borrow_mut().record(began.elapsed(), size as u64 * ITEM_LEN);
                }
                Ok::<_, anyhow::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.map_err(|_| anyhow::anyhow!("a client was cancelled"))??;
    }
    let row = row("durable batches x8", "vellum", &recorder.borrow(), shape.batch, start, before);
    Ok(row)
}

/// Two reactors, each with clients that ask for keys of both.
fn gets_by_two(device: &Arc<dyn Device>, config: Config, shape: Shape) -> Result<Row> {
    const REACTORS: usize = 2;
    let opened = device.clone();
    let seeds = native::block_on_with(config.clone(), async move { seeds(&opened, REACTORS, false).await })??;
    let keys = Arc::new(raw_keys(&shape, 1));
    let arrived = Arc::new(AtomicUsize::new(0));
    let mut threads = Vec::new();
    for (reactor, seed) in seeds.into_iter().enumerate() {
        let (keys, arrived) = (keys.clone(), arrived.clone());
        // None goes on before all have come here; meanwhile it answers the others.
        let meet = async move |nth: usize| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < nth * REACTORS {
                vellum_rt::sleep(Duration::from_micros(100)).await;
            }
        };
        threads.push(native::spawn_thread_with("bench reactor", None, config.clone(), move || async move {
            let store = Store::start(seed, Rc::new(Everyone)).await?;
            gets_by_clients(&store, &keys, &shape, reactor as u64).await?; // brings all of them into the caches
            meet(1).await;
            let (before, start) = (Usage::now(), Instant::now());
            let recorder = gets_by_clients(&store, &keys, &shape, (REACTORS + reactor) as u64).await?;
            meet(2).await;
            let measured = (recorder, start.elapsed(), Usage::now().since(before));
            meet(3).await;
            store.shutdown().await?;
            Ok::<_, anyhow::Error>(measured)
        })?);
    }
    let mut all = Recorder::default();
    let mut last = (Duration::ZERO, Usage::default());
    for thread in threads {
        let (recorder, elapsed, used) = thread.join()??;
        all.merge(&recorder);
        last = (elapsed, used);
    }
    let note = format!("{REACTORS} reactors, {CLIENTS} clients on each");
    Ok(Row::of("gets by two", "vellum", &all, last.0, last.1).note(note))
}

async fn gets_by_clients(store: &Rc<Store>, keys: &Arc<Vec<RawKey>>, shape: &Shape, seed: u64) -> Result<Recorder> {
    let recorder = Rc::new(RefCell::new(Recorder::default()));
    let shape = Shape { gets: shape.gets / CLIENTS, ..*shape };
    let tasks: Vec<_> = (0..CLIENTS as u64)
        .map(|client| {
            let (store, keys, recorder) = (store.clone(), keys.clone(), recorder.clone());
            vellum_rt::spawn(Class::Request, "bench client", async move {
                for raw in wanted(&keys, &shape, 100 + seed * CLIENTS as u64 + client) {
                    let (key, began) = (item_key(raw), Instant::now());
                    check_found(&store.get(&[key], View::Applied).await?)?;
                    recorder.borrow_mut().record(began.elapsed(), ITEM_LEN);
                }
                Ok::<_, anyhow::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.map_err(|_| anyhow::anyhow!("a client was cancelled"))??;
    }
    Ok(recorder.take())
}

fn check_found(found: &[Option<Bytes>]) -> Result<()> {
    anyhow::ensure!(matches!(found, [Some(value)] if value.len() == VALUE_LEN), "the store lost a key");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_small() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { keys: 4000, batch: 100, synced_batches: 16, gets: 500 };
        match run(dir.path(), &shape) {
            Ok(report) => {
                let peers = 1 + usize::from(report.rows.iter().any(|row| row.system == "rocksdb"));
                assert_eq!(report.rows.len(), 5 * (peers + executors::all().len()), "{}", report.table());
                assert_eq!(report.remarks.len(), usize::from(cfg!(feature = "rocksdb") && peers == 1));
            }
            Err(e) if format!("{e:#}").contains("O_DIRECT") => println!("SKIPPED: {e:#}"),
            Err(e) => panic!("{e:#}"),
        }
    }
}
