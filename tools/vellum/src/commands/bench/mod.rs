//! bench: runs suites of `vellum-bench` with the processes and mounts that they need.

mod directory;
mod recovery;
mod walk;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use vellum_bench::files::{self, Shape as FilesShape};
use vellum_bench::recorder::measure;
use vellum_bench::{Report, compaction, data, gateways, items, locks, nvme, page, peers, runtime, small};
use vellum_nvme::driver::{Controller, NvmeDevice, Options};
use vellum_nvme::vfio_user::VfioUserTransport;

use crate::cli::{Bench, Suite};
use crate::processes::{self, Mount, Process, Workplace, end_with_signals};

pub fn bench(args: &Bench) -> Result<()> {
    end_with_signals()?;
    if args.suite != Suite::All {
        let report = suite(args.suite, args)?;
        if args.json {
            println!("{}", report.json());
        } else {
            print!("{}", report.table());
        }
        return Ok(());
    }
    let mut ran = Vec::new();
    for one in Suite::value_variants().iter().filter(|one| **one != Suite::All) {
        let name = one.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
        let result = suite(*one, args);
        match &result {
            Ok(report) => println!("{}", report.table()),
            Err(error) => println!("{name}: not run: {error:#}\n"),
        }
        ran.push(page::Ran { suite: name, result });
    }
    let to = args.report.as_deref().unwrap_or(Path::new("bench-report"));
    page::write(to, &ran, args.quick)?;
    println!("{}", to.join("bench.html").display());
    let failed = ran.iter().filter(|one| one.result.is_err()).count();
    anyhow::ensure!(failed == 0, "{failed} suites did not run");
    Ok(())
}

fn suite(suite: Suite, args: &Bench) -> Result<Report> {
    let temporary = Workplace::new("vellum-bench", &args.dir.clone().unwrap_or_else(std::env::temp_dir))?;
    let dir = temporary.path();
    match suite {
        Suite::All => bail!("all is not one suite"),
        Suite::Runtime => runtime::run(dir, &runtime_shape(args.quick)),
        Suite::Items => items::run(dir, &items_shape(args.quick)),
        Suite::Mount => mounts(dir, args.quick),
        Suite::Data => streams(dir, args.quick),
        Suite::Directory => directory::run(dir, &directory_shape(args)),
        Suite::Walk => walk::run(dir, &walk_shape(args.quick)),
        Suite::Recovery => recovery::run(dir, &recovery_shape(args.quick)),
        Suite::Small => small::run(dir, &small_shape(args.quick)),
        Suite::Locks => locks::run(&locks_shape(args.quick)),
        Suite::Cluster => gateways::run(dir, &gateways_shape(args.quick)),
        Suite::Nvme => nvme_layers(dir, args.quick),
        Suite::Compaction => compaction::run(dir, &compaction_shape(args.quick), |image, socket| {
            processes::Worker::start(image, socket, (processes::cores() > 1).then_some(1))
        }),
        Suite::Ingest => ingest(dir, args.from.as_deref().unwrap_or(Path::new("/usr")), args.quick),
    }
}

fn runtime_shape(quick: bool) -> runtime::Shape {
    let full = runtime::Shape::default();
    if quick { runtime::Shape { rounds: 2_000, frames: 200, reads: 8_000, file_bytes: 64 << 20 } } else { full }
}

fn items_shape(quick: bool) -> items::Shape {
    let full = items::Shape::default();
    if quick { items::Shape { keys: 50_000, synced_batches: 200, gets: 20_000, ..full } } else { full }
}

fn locks_shape(quick: bool) -> locks::Shape {
    let full = locks::Shape::default();
    if quick { locks::Shape { round_trips: 50_000, ..full } } else { full }
}

fn gateways_shape(quick: bool) -> gateways::Shape {
    let full = gateways::Shape::default();
    if quick { gateways::Shape { files: 2_000, synced_files: 300, handovers: 300, ..full } } else { full }
}

fn directory_shape(args: &Bench) -> directory::Shape {
    let mut shape = directory::Shape::default();
    if args.quick {
        shape.entries = vec![2_000, 50_000];
    }
    if let (Some(entries), Some(last)) = (args.entries, shape.entries.last_mut()) {
        *last = entries;
    }
    shape
}

fn walk_shape(quick: bool) -> walk::Shape {
    let full = walk::Shape::default();
    if quick { walk::Shape { files: vec![2_000, 20_000], repeats: 2, ..full } } else { full }
}

fn recovery_shape(quick: bool) -> recovery::Shape {
    let full = recovery::Shape::default();
    if quick { recovery::Shape { logs: vec![1 << 20, 4 << 20], files: vec![2_000], repeats: 1 } } else { full }
}

fn small_shape(quick: bool) -> small::Shape {
    let full = small::Shape::default();
    if quick { small::Shape { files: 5_000, ..full } } else { full }
}

/// The driver's layers in this process, then the same driver against a controller in another process on another core.
fn nvme_layers(dir: &Path, quick: bool) -> Result<Report> {
    let shape = nvme_shape(quick);
    let mut report = nvme::run(&shape)?;
    let socket = dir.join("controller.sock");
    let _server = processes::NullController::start(&socket)?;
    let controller = Controller::open(VfioUserTransport::connect(&socket)?, Options::default())?;
    let device = NvmeDevice::open(controller, Some(1), true)?;
    // Pinned in a thread of its own: other suites of this process run where they like.
    let pinned = std::thread::scope(|scope| {
        let measure = || {
            vellum_bench::perf::pin(Some(0))?;
            nvme::run_remote(&device, "vfio-user", &shape, &mut report)
        };
        scope.spawn(measure).join()
    });
    pinned.map_err(|_| anyhow::anyhow!("the benchmark's thread panicked"))??;
    Ok(report)
}

fn nvme_shape(quick: bool) -> nvme::Shape {
    if quick { nvme::Shape { ops: 100_000, repeats: 2 } } else { nvme::Shape::default() }
}

fn compaction_shape(quick: bool) -> compaction::Shape {
    let full = compaction::Shape::default();
    if quick { compaction::Shape { items: 60_000, idle: Duration::from_secs(2), ..full } } else { full }
}

fn files_shape(quick: bool) -> FilesShape {
    let full = FilesShape::default();
    if quick { FilesShape { files_per_thread: 500, stream_bytes: 64 << 20, synced_files: 25, ..full } } else { full }
}

/// Makes an image and mounts it.
fn fresh_mount(dir: &Path, bytes: u64) -> Result<Mount> {
    let image = dir.join("vellum.img");
    processes::mkfs_written(&image, bytes)?;
    Mount::new(&format!("file:{}", image.display()), &dir.join("vellum"))
}

fn mounts(dir: &Path, quick: bool) -> Result<Report> {
    let shape = files_shape(quick);
    on_three("mount", dir, |at, system, report| files::run(at, system, &shape, report))
}

fn streams(dir: &Path, quick: bool) -> Result<Report> {
    let full = data::Shape::default();
    let shape = if quick { data::Shape { stream_bytes: 64 << 20, random: 1_000 } } else { full };
    on_three("data", dir, |at, system, report| data::run(at, system, &shape, report))
}

/// The same on a filesystem in memory behind FUSE (the ceiling), on the host's, and on ours.
fn on_three(suite: &str, dir: &Path, cases: impl Fn(&Path, &str, &mut Report) -> Result<()>) -> Result<Report> {
    let mut report = Report::new(suite, "ceiling");
    let at = dir.join("ceiling");
    std::fs::create_dir(&at)?;
    let session = peers::memfs::mount(&at).context("mounting the in-memory peer (root is needed)")?;
    cases(&at, "ceiling", &mut report)?;
    session.umount_and_join()?;
    let at = dir.join("host");
    std::fs::create_dir(&at)?;
    cases(&at, "host", &mut report)?;
    std::fs::remove_dir_all(&at)?;
    let mount = fresh_mount(dir, 5 << 30)?;
    cases(&mount.dir, "vellum", &mut report)?;
    mount.unmount()?;
    // What a stream can reach is bounded by the device as well, and an fsync is the device's business.
    let by_both = ["stream write+fsync", "stream read", "stream read, again", "4 KiB read"];
    by_both.iter().for_each(|case| report.compare(case, "vellum", &["ceiling", "host"]));
    // The ceiling keeps nothing safe: beyond what it reaches of the host's rate, FUSE itself is in the way.
    ["ceiling", "vellum"].iter().for_each(|system| report.compare("create+write+fsync", system, &["host"]));
    let remark = "vellum keeps idle cores awake while it is busy (mount --idle-cores), the ceiling does not";
    report.remarks.push(remark.into());
    Ok(report)
}

/// The same `cp -r`, then a sync, onto the host's filesystem, onto one in memory behind FUSE (what cp can reach through any
/// mount), and onto ours.
fn ingest(dir: &Path, from: &Path, quick: bool) -> Result<Report> {
    let mut report = Report::new("ingest", "host");
    let source = if quick { Path::new("/usr/include") } else { from };
    let census = vellum_bench::tree::census(source)?;
    // Once before, so that both read a warm source.
    copy(source, &dir.join("warm"))?;
    std::fs::remove_dir_all(dir.join("warm"))?;
    rustix::fs::sync();
    let host = dir.join("host");
    std::fs::create_dir(&host)?;
    report.push(timed("host", source, &host, census)?);
    std::fs::remove_dir_all(&host)?;
    rustix::fs::sync();
    let at = dir.join("ceiling");
    std::fs::create_dir(&at)?;
    let session = peers::memfs::mount(&at).context("mounting the in-memory peer (root is needed)")?;
    report.push(timed("ceiling", source, &at, census)?);
    session.umount_and_join()?;
    let mount = fresh_mount(dir, (census.bytes * 3 / 2 + census.files * 8192 + (1 << 30)).next_multiple_of(1 << 20))?;
    report.push(timed("vellum", source, &mount.dir, census)?);
    vellum_bench::tree::verify(source, &mount.dir.join("copy"), u64::MAX, |_| ())?;
    mount.unmount()?;
    Ok(report)
}

fn timed(system: &str, source: &Path, to: &Path, census: vellum_bench::tree::Census) -> Result<vellum_bench::Row> {
    let mut row = measure("cp -r, sync", system, 1, |_, r| {
        let start = Instant::now();
        copy(source, &to.join("copy"))?;
        let dir = std::fs::File::open(to)?;
        rustix::fs::syncfs(&dir)?;
        dir.sync_all()?; // what Linux does not pass on to FUSE as syncfs(2)
        r.record(start.elapsed(), census.bytes);
        Ok(())
    })?;
    row.ops = census.files;
    row.ops_per_s = census.files as f64 / row.seconds;
    let note = format!("{} files in {:.1} s", census.files, row.seconds);
    Ok(row.note(note))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    Process::start(Command::new("cp").arg("-r").arg(from).arg(to))?.finish("cp")
}
