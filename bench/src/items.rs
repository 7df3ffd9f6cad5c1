//! The `items` suite: puts and gets of the store on one reactor, beside fjall with the same keys and batches.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::Bytes;
use vellum_base::prng::Prng;
use vellum_base::{Batch, BatchNo, Ino, ItemOp, Key, Rid, View};
use vellum_format::ItemKind;
use vellum_nvme::{OpenMode, Queue};
use vellum_rt::Class;
use vellum_rt::native::{self, Config};
use vellum_store::{Everyone, MkfsOptions, OpenOptions, Store};

use crate::executors;
use crate::node::fresh_image;
use crate::peers::kv::Fjall;
use crate::recorder::{Recorder, Usage};
use crate::report::{Report, Row};

/// Sizes of the suite. Keys have 24 varying bytes, values 100.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub keys: usize,
    pub batch: usize,
    pub synced_batches: usize,
    pub gets: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { keys: 1_000_000, batch: 100, synced_batches: 2_000, gets: 300_000 }
    }
}

const VALUE_LEN: usize = 100;

/// Runs all cases; images and databases go below `dir`.
pub fn run(dir: &Path, shape: &Shape) -> Result<Report> {
    let mut report = Report::new("items", "fjall");
    peer(&dir.join("fjall"), shape, &mut report)?;
    for (system, config) in executors::all() {
        vellum(&dir.join("items.img"), system, config, shape, &mut report)?;
    }
    Ok(report)
}

fn raw_keys(shape: &Shape, seed: u64) -> Vec<[u8; 24]> {
    let mut prng = Prng::new(seed);
    (0..shape.keys)
        .map(|_| {
            let mut key = [0u8; 24];
            prng.fill(&mut key);
            key
        })
        .collect()
}

fn value_of(i: usize) -> [u8; VALUE_LEN] {
    let mut value = [0u8; VALUE_LEN];
    Prng::new(i as u64).fill(&mut value);
    value
}

/// One row whose operations are keys, though what was timed are batches of `per_op`.
fn row(case: &str, system: &str, recorder: &Recorder, per_op: usize, start: Instant, before: Usage) -> Row {
    let mut row = Row::of(case, system, recorder, start.elapsed(), Usage::now().since(before));
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

fn peer(dir: &Path, shape: &Shape, report: &mut Report) -> Result<()> {
    let keys = raw_keys(shape, 1);
    let db = Fjall::open(dir)?;
    let (before, start, mut r) = (Usage::now(), Instant::now(), Recorder::default());
    db.fill(&keys, value_of, shape.batch, false, &mut r)?;
    report.push(row("fill", "fjall", &r, shape.batch, start, before));
    let (before, start, mut r) = (Usage::now(), Instant::now(), Recorder::default());
    let synced = &raw_keys(shape, 2)[..(shape.synced_batches * shape.batch).min(shape.keys)];
    db.fill(synced, value_of, shape.batch, true, &mut r)?;
    report.push(row("durable batches", "fjall", &r, shape.batch, start, before));
    db.persist()?;
    let (before, start, mut r) = (Usage::now(), Instant::now(), Recorder::default());
    let mut prng = Prng::new(3);
    let wanted: Vec<_> = (0..shape.gets).map(|_| keys[prng.below(keys.len() as u64) as usize]).collect();
    db.gets(&wanted, &mut r)?;
    report.push(row("gets", "fjall", &r, 1, start, before));
    drop(db);
    std::fs::remove_dir_all(dir).context("removing the peer's database")
}

/// The 24 bytes as an item key: bucket and inode from the first eight, the rest as they are.
fn item_key(raw: &[u8; 24]) -> Key {
    let u64_at = |at: usize| raw[at..at + 8].iter().fold(0u64, |acc, b| acc << 8 | u64::from(*b));
    Key::fs(Ino(u64_at(0)), ItemKind::Symlink as u8, u64_at(8), u64_at(16), 0)
}

fn batch(number: u64, first: usize, keys: &[[u8; 24]]) -> Batch {
    let ops = keys
        .iter()
        .enumerate()
        .map(|(i, key)| ItemOp::Put { key: item_key(key), value: Bytes::copy_from_slice(&value_of(first + i)) })
        .collect();
    Batch { number: BatchNo(number), ops }
}

fn vellum(image: &Path, system: &str, config: Config, shape: &Shape, report: &mut Report) -> Result<()> {
    fresh_image(image, (shape.keys as u64 * 1000).max(1 << 30))?;
    let device = vellum_nvme::open(&image.display().to_string(), OpenMode { exclusive: true, ..OpenMode::default() })?;
    let shape = *shape;
    let rows = native::block_on_with(config, async move {
        let queue: Rc<dyn Queue> = device.open_queue(64)?;
        let polled = queue.clone();
        let poller = vellum_rt::add_poller("mkfs", move || polled.process_completions());
        let watch = queue.wake_fd().map(vellum_rt::watch_fd);
        vellum_store::mkfs(&device, &queue, MkfsOptions::default()).await?;
        let options = OpenOptions { cache_bytes: 64 << 20, memtable_bytes: 64 << 20, ..OpenOptions::default() };
        let mut opened = vellum_store::open(&device, &queue, options).await?;
        drop((poller, watch, queue));
        let seed = opened.seeds.pop().context("one reactor")?;
        let store = Store::start(seed, Rc::new(Everyone)).await?;
        let rows = cases(&store, &shape).await?;
        store.shutdown().await?;
        Ok::<_, anyhow::Error>(rows)
    })??;
    rows.into_iter().for_each(|row| executors::push(report, Row { system: system.into(), ..row }));
    std::fs::remove_file(image).context("removing the image")
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
        r.record(began.elapsed(), chunk.len() as u64 * 124);
    }
    rows.push(row("fill", "vellum", &r, shape.batch, start, before));
    store.wait_durable(last).await?;
    let written = Usage::now().since(before).device_write_bytes as f64;
    if let Some(row) = rows.last_mut() {
        let payload = (shape.keys * 124) as f64;
        row.note = format!("{}; write amplification {:.2} so far", row.note, written / payload);
    }
    let (before, start, mut r) = (Usage::now(), Instant::now(), Recorder::default());
    let synced = &raw_keys(shape, 2)[..(shape.synced_batches * shape.batch).min(shape.keys)];
    for (n, chunk) in synced.chunks(shape.batch).enumerate() {
        number += 1;
        let began = Instant::now();
        let epoch = store.commit(rid, batch(number, n * shape.batch, chunk)).await?;
        store.wait_durable(epoch).await?;
        r.record(began.elapsed(), chunk.len() as u64 * 124);
    }
    rows.push(row("durable batches", "vellum", &r, shape.batch, start, before));
    rows.push(durable_by_eight(store, shape).await?);
    let (before, start, mut r) = (Usage::now(), Instant::now(), Recorder::default());
    let mut prng = Prng::new(3);
    for _ in 0..shape.gets {
        let key = item_key(&keys[prng.below(keys.len() as u64) as usize]);
        let began = Instant::now();
        let found = store.get(&[key], View::Applied).await?;
        r.record(began.elapsed(), 124);
        anyhow::ensure!(matches!(&found[..], [Some(value)] if value.len() == VALUE_LEN), "the store lost a key");
    }
    rows.push(row("gets", "vellum", &r, 1, start, before));
    Ok(rows)
}

/// Eight clients at once, each waiting for each of its batches: what group commit makes of it.
async fn durable_by_eight(store: &Rc<Store>, shape: &Shape) -> Result<Row> {
    let keys = Rc::new(raw_keys(shape, 4));
    let recorder = Rc::new(RefCell::new(Recorder::default()));
    let (before, start) = (Usage::now(), Instant::now());
    let per_client = (shape.synced_batches / 8).min(shape.keys / shape.batch / 8);
    let tasks: Vec<_> = (0..8u64)
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
                    recorder.borrow_mut().record(began.elapsed(), size as u64 * 124);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_small() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { keys: 4000, batch: 100, synced_batches: 16, gets: 500 };
        match run(dir.path(), &shape) {
            Ok(report) => assert_eq!(report.rows.len(), 3 + 4 * executors::all().len(), "{}", report.table()),
            Err(e) if format!("{e:#}").contains("O_DIRECT") => println!("SKIPPED: {e:#}"),
            Err(e) => panic!("{e:#}"),
        }
    }
}
