//! The `directory` suite: one directory of many names, listed through a mount by processes that have just begun, then again, then
//! with the attributes of each; and how much memory engine and gateway have while they do it.

use std::fs::File;
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, mknodat, openat, statat};
use vellum_base::Ino;
use vellum_bench::recorder::{Recorder, Usage};
use vellum_bench::{Report, Row, files, node};
use vellum_client::Address;
use vellum_rt::net::Endpoint;

use crate::processes::{self, Engine, Mount, Resident};
use crate::size;

/// Sizes of the suite.
pub struct Shape {
    pub entries: Vec<u64>,
    /// Directories with more names are not made on the host's filesystem.
    pub host_entries_max: u64,
    /// With more names, attributes are asked for this many only.
    pub attributes_max: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { entries: vec![10_000, 1_000_000], host_entries_max: 1_000_000, attributes_max: 2_000_000 }
    }
}

const HOST: &str = "host";
/// What glibc's readdir(3) asks the kernel for at a time.
const LIST_BYTES: usize = 32 << 10;

pub fn run(dir: &Path, shape: &Shape) -> Result<Report> {
    let mut report = Report::new("directory", HOST);
    for &entries in &shape.entries {
        if entries <= shape.host_entries_max {
            on_host(&dir.join(HOST), entries, &mut report)?;
        }
        on_vellum(dir, entries, shape.attributes_max, &mut report)?;
    }
    report.remarks.push("memory: resident before -> after (peak between); see docs/OPERATING.md for the bounds".into());
    Ok(report)
}

fn name(n: u64) -> String {
    format!("n{n:09}")
}

fn on_host(dir: &Path, entries: u64, report: &mut Report) -> Result<()> {
    std::fs::create_dir(dir)?;
    let at = File::open(dir)?;
    report.push(timed(&format!("make {entries}"), HOST, || {
        for n in 0..entries {
            mknodat(&at, name(n), FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
        }
        at.sync_all()?;
        Ok(entries)
    })?);
    for (case, how) in CASES {
        if case.forget {
            files::drop_caches();
        }
        report.push(timed(&format!("{} {entries}", case.name), HOST, || walk(dir, entries, entries, *how))?);
    }
    Ok(std::fs::remove_dir_all(dir)?)
}

/// How a directory is gone through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Names alone, as `ls -f`.
    Names,
    /// And the attributes of each, as `ls -l`.
    Attributes,
}

struct Case {
    name: &'static str,
    /// By kernel and processes that have nothing in memory.
    forget: bool,
}

const CASES: &[(Case, How)] = &[
    (Case { name: "list cold", forget: true }, How::Names),
    (Case { name: "list again", forget: false }, How::Names),
    (Case { name: "list+stat", forget: false }, How::Attributes),
];

fn on_vellum(dir: &Path, entries: u64, attributes_max: u64, report: &mut Report) -> Result<()> {
    let (image, socket) = (dir.join("directory.img"), dir.join("directory.sock"));
    processes::mkfs(&image, entries * 4096 + (2 << 30))?;
    let engine = Engine::start(&image, &socket)?;
    report.push(timed(&format!("make {entries}"), "vellum", || make(&socket, entries))?);
    engine.stop()?;
    files::drop_caches();
    let engine = Engine::start(&image, &socket)?;
    let start = Instant::now();
    let mount = Mount::new(&format!("unix:{}", socket.display()), &dir.join("mount"))?;
    let (opened, mounted) = (engine.start_time, start.elapsed());
    let pids = [("gateway", mount.pid()), ("engine", engine.pid())];
    for (case, how) in CASES {
        let before = pids.map(|(_, pid)| Resident::of(pid));
        pids.iter().try_for_each(|(_, pid)| Resident::forget_peak(*pid))?;
        let of = if *how == How::Attributes { entries.min(attributes_max) } else { entries };
        let name =
            if of < entries { format!("{} {of} of {entries}", case.name) } else { format!("{} {of}", case.name) };
        let row = timed(&name, "vellum", || walk(&mount.dir.join("d"), entries, of, *how))?;
        let mut notes = Vec::new();
        for ((who, pid), before) in pids.iter().zip(before) {
            let (before, after) = (before?.now_bytes, Resident::of(*pid)?);
            let show = size::show;
            notes.push(format!("{who} {} -> {} ({})", show(before), show(after.now_bytes), show(after.peak_bytes)));
        }
        if case.forget {
            notes.push(format!("started in {} ms, mounted in {} ms", opened.as_millis(), mounted.as_millis()));
        }
        report.push(row.note(notes.join(", ")));
    }
    mount.unmount()?;
    engine.stop()?;
    Ok(std::fs::remove_file(&image)?)
}

/// Makes the names by a client of its own, in the order of their numbers; durable.
fn make(socket: &Path, entries: u64) -> Result<u64> {
    node::on_vfs(Address::Net(Endpoint::Unix(socket.to_owned())), async |vfs, caller| {
        let dir = vfs.mkdir(caller, Ino::ROOT, b"d", 0o755).await?.ino;
        for n in 0..entries {
            vfs.mknod(caller, dir, name(n).as_bytes(), 0o644, 0).await?;
        }
        vfs.syncfs().await?;
        Ok(entries)
    })
}

/// Goes through the first `of` of the directory's `entries`, and counts.
fn walk(dir: &Path, entries: u64, of: u64, how: How) -> Result<u64> {
    let at = openat(rustix::fs::CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening {}", dir.display()))?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); LIST_BYTES];
    let mut list = RawDir::new(&at, &mut buffer);
    let mut seen = 0;
    while let Some(entry) = list.next() {
        let entry = entry?;
        let bytes = entry.file_name().to_bytes();
        if matches!(bytes, b"." | b"..") {
            continue;
        }
        if how == How::Attributes {
            statat(&at, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        seen += 1;
        if seen == of && of < entries {
            return Ok(seen);
        }
    }
    ensure!(seen == entries, "the listing shows {seen} of {entries} names");
    Ok(seen)
}

/// Operations are the entries; the one latency is that of the whole.
fn timed(case: &str, system: &str, work: impl FnOnce() -> Result<u64>) -> Result<Row> {
    let (before, start, mut recorder) = (Usage::now(), Instant::now(), Recorder::default());
    let entries = recorder.time(0, work)?;
    let row = Row::of(case, system, &recorder, start.elapsed(), Usage::now().since(before));
    Ok(Row {
        ops: entries,
        ops_per_s: entries as f64 / row.seconds,
        cpu_us_per_op: row.cpu_us_per_op / entries as f64,
        ..row
    })
}
