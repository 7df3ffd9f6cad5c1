//! The `cluster` suite: two gateways beside one, on directories of their own, and on one that they take from each other.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use vellum_base::Ino;
use vellum_client::{Address, Client};
use vellum_format::Inode;
use vellum_link::InProcessDialer;
use vellum_rt::native;
use vellum_vfs::OpenFlags;
use vellum_wire::{LockMode, LockName};

use crate::node;
use crate::recorder::measure;
use crate::report::{Report, Row};

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Files that each gateway makes, looks up and removes.
    pub files: usize,
    /// Files that each gateway makes durable one by one.
    pub synced_files: usize,
    pub handovers: u64,
    pub device_bytes: u64,
    pub reactors: usize,
}

impl Default for Shape {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Shape {
            files: 20_000,
            synced_files: 2_000,
            handovers: 3_000,
            device_bytes: 2 << 30,
            reactors: (cores / 2).max(1),
        }
    }
}

const GATEWAYS: usize = 2;

pub fn run(dir: &Path, shape: &Shape) -> Result<Report> {
    let mut report = Report::new("cluster", "one gateway");
    let node = node::on_file(&dir.join("cluster.img"), shape.device_bytes, shape.reactors)?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    for (gateways, name) in [(1, "one gateway"), (GATEWAYS, "two gateways")] {
        let row = own_directories(node.dialer(), gateways, shape.files)?;
        let note = format!("{} reactors, {gateways} gateway threads on {cores} cores", shape.reactors);
        report.push(Row { system: name.into(), ..row }.note(note));
        let row = durable_creates(node.dialer(), gateways, shape.synced_files)?;
        report.push(Row { system: name.into(), ..row });
    }
    report.push(handovers(node.dialer(), shape.handovers)?);
    node.shutdown()?;
    Ok(report)
}

/// Creates, lookups and unlinks of empty files, each gateway in a directory of its own, all durable at the end.
fn own_directories(dialer: InProcessDialer, gateways: usize, files: usize) -> Result<Row> {
    measure("create+stat+unlink", "", gateways, |gateway, recorder| {
        node::on_vfs(Address::InProcess(dialer.clone()), async |vfs, caller| {
            let dir = format!("{gateways}-{gateway}");
            let dir = vfs.mkdir(caller, Ino::ROOT, dir.as_bytes(), 0o755).await?.ino;
            let flags = OpenFlags { write: true, ..OpenFlags::default() };
            for n in 0..files {
                let name = format!("file{n}");
                let start = Instant::now();
                let (_, handle) = vfs.create(caller, dir, name.as_bytes(), 0o644, flags).await?;
                vfs.release(handle).await?;
                vfs.lookup(dir, name.as_bytes()).await?;
                vfs.unlink(dir, name.as_bytes()).await?;
                recorder.record(start.elapsed(), 0);
            }
            Ok(())
        })
    })
}

/// Empty files, each durable before the next is made: what limits it is the device's flush, which gateways share.
fn durable_creates(dialer: InProcessDialer, gateways: usize, files: usize) -> Result<Row> {
    measure("create, durable", "", gateways, |gateway, recorder| {
        node::on_vfs(Address::InProcess(dialer.clone()), async |vfs, caller| {
            let dir = format!("durable {gateways}-{gateway}");
            let dir = vfs.mkdir(caller, Ino::ROOT, dir.as_bytes(), 0o755).await?.ino;
            let flags = OpenFlags { write: true, ..OpenFlags::default() };
            for n in 0..files {
                let start = Instant::now();
                let (_, handle) = vfs.create(caller, dir, format!("file{n}").as_bytes(), 0o644, flags).await?;
                vfs.fsync(handle).await?;
                vfs.release(handle).await?;
                recorder.record(start.elapsed(), 0);
            }
            Ok(())
        })
    })
}

/// An inode of the group that is fought for.
// Far from the groups that the engine hands out: what a client is given anew it knows to be empty.
const INO: Ino = Ino((7 << 56) | (5_000 << 10) | 1);

/// Two gateways on threads of their own take one group from each other; each change is durable before the other sees it.
fn handovers(dialer: InProcessDialer, wanted: u64) -> Result<Row> {
    let (last, moved, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    measure("ping-pong, durable", "two gateways", GATEWAYS, |me, recorder| {
        let me = me as u64 + 1;
        native::block_on(async {
            let client = node::client(dialer.clone()).await?;
            let begun = Instant::now();
            let mut waited = Instant::now();
            while !over.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(60) {
                take_turn(&client).await?;
                if last.swap(me, Ordering::Relaxed) != me {
                    recorder.record(waited.elapsed(), 0);
                    if moved.fetch_add(1, Ordering::Relaxed) + 1 >= wanted {
                        over.store(true, Ordering::Relaxed);
                    }
                }
                waited = Instant::now();
            }
            Ok(client.farewell().await?)
        })
    })
}

async fn take_turn(client: &std::rc::Rc<Client>) -> Result<()> {
    let guard = client.lock(&[(LockName::Group(INO.group()), LockMode::Write)]).await?;
    let found = client.get(&guard, Inode::key(INO)).await?;
    let size = found.map_or(Ok(0), |value| Inode::decode(&value).map(|inode| inode.size))?;
    let mut txn = client.begin(&guard);
    let inode = Inode { mode: 0o100_644, nlink: 1, size: size + 1, ..Inode::default() };
    txn.put(Inode::key(INO), inode.encode());
    let id = txn.commit()?;
    drop(guard);
    Ok(client.sync_txn(id).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_small() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { files: 50, synced_files: 10, handovers: 20, device_bytes: 256 << 20, reactors: 1 };
        match run(dir.path(), &shape) {
            Ok(report) => assert_eq!(report.rows.len(), 5, "{}", report.table()),
            Err(e) if format!("{e:#}").contains("O_DIRECT") => println!("SKIPPED: {e:#}"),
            Err(e) => panic!("{e:#}"),
        }
    }
}
