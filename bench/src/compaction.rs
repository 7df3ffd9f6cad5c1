//! The `compaction` suite: what a client waits for gets and durable commits while the engine merges everything it has:
//! not at all, on the engine's own reactor, and handed to a worker process on another core.
//!
//! One reactor serves. Before each phase some keys are written anew, so that every shard has several levels and "merge
//! everything" rewrites all of it; the phase lasts as long as that takes (the idle one a fixed time).

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vellum_base::prng::Prng;
use vellum_base::{Batch, BatchNo, Ino, ItemOp, Key, Rid, View};
use vellum_format::{Inode, ItemKind};
use vellum_link::{Address, ConnectOptions, Connection, Identity};
use vellum_nvme::OpenMode;
use vellum_rt::net::Endpoint;
use vellum_rt::{Class, native, spawn};
use vellum_server::{Node, NodeOptions};
use vellum_store::{MkfsOptions, OpenOptions, PolledQueue, Prefer};
use vellum_wire::{LockMode, LockName, LockWant, Request, Response};

use crate::node::fresh_image;
use crate::recorder::{Recorder, Usage};
use crate::report::{Report, Row};

/// Sizes of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub items: u64,
    pub value_bytes: usize,
    /// Gets between two commits.
    pub gets: u32,
    /// Length of the idle phase.
    pub idle: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { items: 400_000, value_bytes: 800, gets: 8, idle: Duration::from_secs(5) }
    }
}

/// Groups that the items are spread over, and items of one batch.
const GROUPS: u64 = 512;
const BATCH: u64 = 200;
/// Between two operations: a client that thinks, so that the engine is not saturated by it.
const THINK: Duration = Duration::from_micros(500);
/// A merge that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(1800);

/// Runs all phases. `worker` starts a worker process on a device for the engine at a socket; it ends when what is
/// returned is dropped.
pub fn run<W>(dir: &Path, shape: &Shape, worker: impl FnOnce(&Path, &Path) -> Result<W>) -> Result<Report> {
    let (image, socket) = (dir.join("compaction.img"), dir.join("engine.sock"));
    let mut report = Report::new("compaction", "idle");
    fresh_image(&image, (shape.items * shape.value_bytes as u64 * 8).max(2 << 30))?;
    // Not exclusively: the worker opens it too.
    let device = vellum_nvme::open(&image.display().to_string(), OpenMode::default())?;
    let made = device.clone();
    native::block_on(async move {
        let queue = PolledQueue::open(&*made, 64, "mkfs")?;
        vellum_store::mkfs(&made, &queue, MkfsOptions::default()).await
    })?;
    let options = |prefer| NodeOptions {
        listen: vec![Endpoint::Unix(socket.clone())],
        cores: vec![Some(0)],
        prefer,
        store: OpenOptions { cache_bytes: 64 << 20, memtable_bytes: 64 << 20, ..OpenOptions::default() },
        ..NodeOptions::default()
    };
    let node = Node::start(device.clone(), options(Prefer::Here))?;
    let ends = client(&socket, shape, true, &[Phase::Idle, Phase::Here])?;
    report_phases(&mut report, ends, shape);
    node.shutdown()?;
    let _ = std::fs::remove_file(&socket);
    let node = Node::start(device, options(Prefer::Helpers))?;
    let worker = worker(&image, &socket)?;
    let ends = client(&socket, shape, false, &[Phase::Worker])?;
    report_phases(&mut report, ends, shape);
    drop(worker);
    node.shutdown()?;
    std::fs::remove_file(&image)?;
    Ok(report)
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Phase {
    Idle,
    Here,
    Worker,
}

struct Ended {
    phase: Phase,
    gets: Recorder,
    commits: Recorder,
    took: Duration,
    used: Usage,
}

fn report_phases(report: &mut Report, ends: Vec<Ended>, shape: &Shape) {
    for ended in ends {
        let system = match ended.phase {
            Phase::Idle => "idle",
            Phase::Here => "here",
            Phase::Worker => "worker",
        };
        let merged = shape.items * (shape.value_bytes as u64 + 200);
        let note = match ended.phase {
            Phase::Idle => String::new(),
            _ => format!("merging about {} MB took {:.1} s", merged / 1_000_000, ended.took.as_secs_f64()),
        };
        for (case, recorder) in [("get", &ended.gets), ("durable commit", &ended.commits)] {
            report.push(Row::of(case, system, recorder, ended.took, ended.used).note(note.clone()));
        }
    }
}

fn client(socket: &Path, shape: &Shape, fill: bool, phases: &[Phase]) -> Result<Vec<Ended>> {
    let (address, shape, phases) = (Address::Net(Endpoint::Unix(socket.to_owned())), *shape, phases.to_vec());
    native::block_on(async move {
        let identity = Identity { rid: Rid(vellum_rt::random_u64()), fsid: None };
        let connection = Connection::open(address, identity, ConnectOptions::default()).await?;
        let load = Load { connection, shape, next: Cell::new(1), prng: Cell::new(1) };
        load.take_locks().await?;
        if fill {
            load.fill(0, shape.items).await?;
        }
        let mut ends = Vec::new();
        for phase in phases {
            // A tenth of the keys anew: every shard has something to merge with the rest.
            load.fill(0, shape.items / 10).await?;
            if phase == Phase::Worker {
                load.wait_for_worker().await?;
            }
            ends.push(load.phase(phase).await?);
        }
        load.connection.farewell().await?;
        Ok(ends)
    })
}

struct Load {
    connection: Rc<Connection>,
    shape: Shape,
    next: Cell<u64>,
    prng: Cell<u64>,
}

/// Groups of one client in a new filesystem, and the inode of an item: spread over all buckets.
fn group(n: u64) -> u64 {
    let (bucket, place) = (n % 256, 1000 + n / 256);
    (bucket << (56 - Ino::SLOT_BITS)) | place
}

fn ino(n: u64) -> Ino {
    Ino((group(n % GROUPS) << Ino::SLOT_BITS) | (1 + n / GROUPS % 1000))
}

fn key(n: u64) -> Key {
    Key::fs(ino(n), ItemKind::Symlink as u8, n / GROUPS / 1000, 0, 0)
}

impl Load {
    async fn take_locks(&self) -> Result<()> {
        let mut groups: Vec<u64> = (0..GROUPS).map(group).collect();
        groups.sort_unstable();
        let wants = groups.into_iter().map(|group| LockWant { name: LockName::Group(group), mode: LockMode::Write });
        self.connection.call(Request::Lock { wants: wants.collect() }, None).await.context("locks")?;
        Ok(())
    }

    fn batch(&self, ops: Vec<ItemOp>) -> Request {
        let number = BatchNo(self.next.get());
        self.next.set(number.0 + 1);
        Request::Commit { batch: Batch { number, ops } }
    }

    fn item(&self, n: u64) -> ItemOp {
        let mut value = vec![0; self.shape.value_bytes];
        Prng::new(n ^ self.next.get()).fill(&mut value);
        ItemOp::Put { key: key(n), value: value.into() }
    }

    async fn fill(&self, from: u64, to: u64) -> Result<()> {
        let mut n = from;
        while n < to {
            let end = (n + BATCH).min(to);
            let ops = (n..end).map(|n| self.item(n)).collect();
            self.connection.call(self.batch(ops), None).await.context("fill")?;
            n = end;
        }
        self.sync().await
    }

    async fn sync(&self) -> Result<()> {
        let through = BatchNo(self.next.get() - 1);
        self.connection.call(Request::Sync { through }, None).await?;
        Ok(())
    }

    async fn status(&self) -> Result<Value> {
        let Response::Status { json } = self.connection.call(Request::Status, None).await?.body else {
            bail!("no status")
        };
        Ok(serde_json::from_str(&json)?)
    }

    async fn wait_for_worker(&self) -> Result<()> {
        for _ in 0..600 {
            if self.status().await?["reactors"][0]["workers"].as_u64() > Some(0) {
                return Ok(());
            }
            vellum_rt::sleep(Duration::from_millis(50)).await;
        }
        bail!("the worker did not come")
    }

    async fn phase(&self, phase: Phase) -> Result<Ended> {
        // What the fill left is merged first: then the phases begin alike.
        let done = Rc::new(Cell::new(phase == Phase::Idle));
        let (before, start) = (Usage::now(), Instant::now());
        let merging = (phase != Phase::Idle).then(|| {
            let (flag, call) = (done.clone(), self.connection.call(Request::CompactAll, None));
            spawn(Class::Request, "compact", async move {
                let result = call.await;
                flag.set(true);
                result
            })
        });
        let (mut gets, mut commits) = (Recorder::default(), Recorder::default());
        while !done.get() || (phase == Phase::Idle && start.elapsed() < self.shape.idle) {
            ensure!(start.elapsed() < LONGEST, "the merge does not end");
            for _ in 0..self.shape.gets {
                self.get(&mut gets).await?;
            }
            self.durable_commit(&mut commits).await?;
        }
        let took = start.elapsed();
        if let Some(merging) = merging {
            merging.await.context("the merge was cancelled")?.context("the merge failed")?;
        }
        let used = Usage::now().since(before);
        let sum = |status: &Value, what: &str| status["store"]["reactors"][0]["compactions"][what].as_u64();
        let status = self.status().await?;
        if phase == Phase::Worker {
            ensure!(sum(&status, "done_elsewhere") > Some(0), "nothing was handed over: {status:#}");
        }
        Ok(Ended { phase, gets, commits, took, used })
    }

    fn random(&self) -> u64 {
        let mut prng = Prng::new(self.prng.get());
        self.prng.set(self.prng.get() + 1);
        prng.below(self.shape.items)
    }

    async fn get(&self, recorder: &mut Recorder) -> Result<()> {
        vellum_rt::sleep(THINK).await;
        let (keys, began) = (vec![key(self.random())], Instant::now());
        let reply = self.connection.call(Request::Get { keys, view: View::Applied }, None).await?;
        recorder.record(began.elapsed(), self.shape.value_bytes as u64);
        let Response::Items { values } = reply.body else { bail!("no items") };
        ensure!(matches!(&values[..], [Some(value)] if value.len() == self.shape.value_bytes), "a key is lost");
        Ok(())
    }

    async fn durable_commit(&self, recorder: &mut Recorder) -> Result<()> {
        vellum_rt::sleep(THINK).await;
        let ino = ino(self.random());
        let inode = Inode { mode: 0o100644, nlink: 0, data_version: self.next.get(), ..Inode::default() };
        let op = ItemOp::Put { key: Inode::key(ino), value: inode.encode() };
        let began = Instant::now();
        self.connection.call(self.batch(vec![op]), None).await?;
        self.sync().await?;
        recorder.record(began.elapsed(), 128);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_runs_small() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { items: 6000, value_bytes: 400, gets: 4, idle: Duration::from_millis(100) };
        let worker = |image: &Path, socket: &Path| {
            let device = vellum_nvme::open(&image.display().to_string(), OpenMode::default())?;
            let address = Address::Net(Endpoint::Unix(socket.to_owned()));
            let (stop, stopped) = vellum_rt::channel::bounded(1);
            let thread = std::thread::spawn(move || {
                native::block_on(async move {
                    let _ = vellum_server::worker::run(device, address, Default::default(), stopped).await;
                });
            });
            Ok(Running(Some(stop), Some(thread)))
        };
        match run(dir.path(), &shape, worker) {
            Ok(report) => assert_eq!(report.rows.len(), 6, "{}", report.table()),
            Err(e) if format!("{e:#}").contains("O_DIRECT") => println!("SKIPPED: {e:#}"),
            Err(e) => panic!("{e:#}"),
        }
    }

    struct Running(Option<vellum_rt::channel::Sender<()>>, Option<std::thread::JoinHandle<()>>);

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.take();
            if let Some(thread) = self.1.take() {
                let _ = thread.join();
            }
        }
    }
}
