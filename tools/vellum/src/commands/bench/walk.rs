//! The `walk` suite: what changed, asked of the index and of the tree.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vellum_archive::Walk;
use vellum_base::Ino;
use vellum_bench::recorder::{Recorder, Usage};
use vellum_bench::{Report, Row, fill, node};
use vellum_client::Address;
use vellum_format::IndexKind;
use vellum_rt::native;

use crate::processes::{Engine, Mount};

/// Sizes of the suite.
pub struct Shape {
    pub files: Vec<usize>,
    pub changed: usize,
    pub repeats: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { files: vec![10_000, 1_000_000], changed: 100, repeats: 5 }
    }
}

const FIND: &str = "find -newer";

pub fn run(dir: &Path, shape: &Shape) -> Result<Report> {
    let mut report = Report::new("walk", FIND);
    shape.files.iter().try_for_each(|files| tree(dir, *files, shape, &mut report))?;
    Ok(report)
}

/// Makes a tree through the library; then an engine and a mount of it are processes, as a user has them.
fn tree(dir: &Path, files: usize, shape: &Shape, report: &mut Report) -> Result<()> {
    let (image, socket) = (dir.join("walk.img"), dir.join("walk.sock"));
    let made = node::on_file(&image, files as u64 * 4096 + (2 << 30), 1)?;
    node::on_vfs(Address::InProcess(made.dialer()), async |vfs, caller| {
        fill::fill(vfs, caller, Ino::ROOT, 0..files, b"").await
    })?;
    made.shutdown()?;
    let engine = Engine::start(&image, &socket)?;
    let mount = Mount::new(&format!("unix:{}", socket.display()), &dir.join("walk"))?;
    let before = walk(&socket, u64::MAX)?.through;
    let reference = mount.dir.join("reference");
    File::create(&reference)?;
    change(&mount.dir, files, shape.changed)?;
    let case = format!("{} of {files} changed", shape.changed);
    // find has seen the tree once and both find what they read in memory.
    find(&mount.dir, &reference, shape.changed)?;
    report.push(timed(&case, FIND, shape, || find(&mount.dir, &reference, shape.changed))?);
    report.push(timed(&case, "vellum", shape, || {
        let seen = walk(&socket, before + 1)?.entries;
        ensure!(seen >= shape.changed, "the walk shows {seen} of {} changes", shape.changed);
        Ok(seen)
    })?);
    let case = format!("all of {files}");
    report.push(timed(&case, FIND, shape, || find(&mount.dir, Path::new("/dev/null"), 0).map(|_| files))?);
    report.push(timed(&case, "vellum", shape, || {
        let seen = walk(&socket, 0)?.entries;
        ensure!(seen >= files, "the walk shows {seen} of {files} files");
        Ok(seen)
    })?);
    mount.unmount()?;
    engine.stop()?;
    Ok(fs::remove_file(&image)?)
}

/// One byte more for so many files, spread over the tree; durable.
fn change(root: &Path, files: usize, changed: usize) -> Result<()> {
    std::thread::sleep(std::time::Duration::from_millis(20)); // newer than the reference, also in a coarse clock
    for i in 0..changed {
        let n = i * (files / changed.max(1)).max(1) % files;
        let path = root.join(fill::directory(n)).join(fill::name(n));
        OpenOptions::new().append(true).open(path)?.write_all(b"!")?;
    }
    Ok(File::open(root)?.sync_all()?)
}

/// Operations are the entries that were found.
fn timed(case: &str, system: &str, shape: &Shape, mut once: impl FnMut() -> Result<usize>) -> Result<Row> {
    let (before, start, mut recorder, mut entries) = (Usage::now(), Instant::now(), Recorder::default(), 0);
    for _ in 0..shape.repeats {
        entries += recorder.time(0, &mut once)?;
    }
    let row = Row::of(case, system, &recorder, start.elapsed(), Usage::now().since(before));
    let note = format!("{:.2} ms each; latencies are of a whole search", row.p50_us / 1e3);
    Ok(Row { ops: entries as u64, ops_per_s: entries as f64 / row.seconds, ..row }.note(note))
}

fn find(root: &Path, reference: &Path, at_least: usize) -> Result<usize> {
    let out = Command::new("find").arg(root).args(["-type", "f", "-newer"]).arg(reference).output();
    let out = out.context("starting find")?;
    ensure!(out.status.success(), "find ended with {}", out.status);
    let seen = out.stdout.iter().filter(|byte| **byte == b'\n').count();
    ensure!(seen >= at_least, "find shows {seen} of {at_least} changes");
    Ok(seen)
}

struct Walked {
    entries: usize,
    /// The index knows all changes up to this sequence.
    through: u64,
}

/// All changes from a sequence on, by a client of its own.
fn walk(socket: &Path, from: u64) -> Result<Walked> {
    native::block_on(async {
        let client = node::client_at(vellum_rt::net::Endpoint::Unix(socket.to_owned())).await?;
        let mut walk = Walk::new(client.clone(), IndexKind::MetaSeq, (from, Ino::NONE), u64::MAX);
        let mut entries = 0;
        loop {
            let page = walk.page().await?;
            if page.is_empty() {
                break;
            }
            entries += page.len();
        }
        let through = walk.through().0;
        client.farewell().await?;
        Ok(Walked { entries, through })
    })
}
