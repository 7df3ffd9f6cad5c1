//! quickstart: the main job from nothing, on a file. An image is made and served; a real tree goes in while the engine is
//! killed and started again; the index says what changed; everything is killed; after recovery every byte is compared.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use vellum_archive as archive;
use vellum_base::Ino;
use vellum_bench::Recorder;
use vellum_bench::tree::{self, Census};
use vellum_format::IndexKind;
use vellum_rt::net::Endpoint;

use crate::cli::{KeyArgs, Quickstart};
use crate::endpoint::Target;
use crate::exit::{Exit, WithExit};
use crate::library::Library;
use crate::processes::{Engine, Mount, Workplace, cannot_mount, end_with_signals, mkfs};
use crate::session::with_client;
use crate::size;

const CHANGED_DIR: &str = "vellum-quickstart-changes";
const CHANGED_FILES: usize = 5;

struct Lab {
    image: PathBuf,
    socket: PathBuf,
    mount_at: PathBuf,
    engine: Option<Engine>,
}

impl Lab {
    fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.socket.clone())
    }

    fn target(&self) -> Target {
        Target::Served(vec![self.endpoint()])
    }

    fn start(&mut self) -> Result<Duration> {
        let engine = Engine::start(&self.image, &self.socket)?;
        let time = engine.start_time;
        self.engine = Some(engine);
        Ok(time)
    }

    fn kill(&mut self) {
        self.engine = None;
    }

    fn mount(&self) -> Result<Mount> {
        Mount::new(&self.endpoint().to_string(), &self.mount_at)
    }
}

/// What is printed at the end.
#[derive(Default)]
struct Outcome {
    ingested: Census,
    ingest_time: Duration,
    recorder: Recorder,
    restart: Duration,
    /// The gateway's files after the engine was killed under it, and the walk's answer.
    changed: Vec<(u64, u64, String)>,
    walk_time: Duration,
    recovery: Duration,
    verified: Census,
}

pub fn quickstart(args: &Quickstart) -> Result<()> {
    let from = args.from.clone().unwrap_or_else(|| PathBuf::from("/usr"));
    let from = from.canonicalize().with_context(|| format!("cannot read {}", from.display()))?;
    end_with_signals()?;
    let temporary = Workplace::new("vellum-quickstart", &std::env::temp_dir())?;
    let image = args.image.clone().unwrap_or_else(|| temporary.path().join("vellum.img"));
    let mut lab = Lab {
        image,
        socket: temporary.path().join("engine.sock"),
        mount_at: temporary.path().join("mnt"),
        engine: None,
    };
    let say = |line: String| {
        if !args.json {
            println!("{line}");
        }
    };
    let refusal = if args.no_mount { Some("--no-mount was given".to_owned()) } else { cannot_mount() };
    let census = tree::census(&from)?;
    let bytes = (census.bytes * 3 / 2 + census.files * 8192 + (1 << 30)).next_multiple_of(1 << 20);
    mkfs(&lab.image, bytes)?;
    lab.start()?;
    say(format!("1. made {} ({}), serving it at {}", lab.image.display(), size::show(bytes), lab.endpoint()));
    let way = match &refusal {
        None => format!("through a mount at {}", lab.mount_at.display()),
        Some(why) => format!("through the library ({why})"),
    };
    say(format!("2. ingesting {} {way}; the engine is killed on the way", from.display()));
    let outcome = match refusal {
        None => by_mount(args, &from, &census, &mut lab),
        Some(_) => by_library(args, &from, &census, &mut lab),
    }
    .exit(Exit::NotClean)?;
    report(args, &way, &outcome);
    Ok(())
}

fn by_mount(args: &Quickstart, from: &Path, census: &Census, lab: &mut Lab) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mount = lab.mount()?;
    let bar = progress_bar("ingest", census.files.min(args.files), args.json);
    let start = Instant::now();
    let middle = census.files.min(args.files) / 2;
    let mut accident = Accident::new(middle);
    outcome.ingested = tree::copy(from, &mount.dir, args.files, &mut outcome.recorder, |c| {
        bar.set_position(c.files);
        accident.happen(c, lab);
    })?;
    outcome.restart = accident.result()?;
    sync(&mount.dir)?;
    outcome.ingest_time = start.elapsed();
    bar.finish_and_clear();
    let before = committed(lab)?;
    let dir = mount.dir.join(CHANGED_DIR);
    std::fs::create_dir(&dir)?;
    for name in changed_names() {
        std::fs::write(dir.join(name), b"new")?;
    }
    sync(&mount.dir)?;
    walk(lab, before, &mut outcome)?;
    lab.kill();
    mount.kill();
    outcome.recovery = lab.start()?;
    let mount = lab.mount()?;
    let bar = progress_bar("verify", outcome.ingested.files, args.json);
    outcome.verified = tree::verify(from, &mount.dir, args.files, |c| bar.set_position(c.files))?;
    bar.finish_and_clear();
    mount.unmount()?;
    lab.engine.take().map_or(Ok(()), Engine::stop)?;
    Ok(outcome)
}

fn by_library(args: &Quickstart, from: &Path, census: &Census, lab: &mut Lab) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let bar = progress_bar("ingest", census.files.min(args.files), args.json);
    let mut accident = Accident::new(census.files.min(args.files) / 2);
    let start = Instant::now();
    let endpoint = lab.endpoint();
    vellum_rt::native::block_on(async {
        let library = Library::connect(endpoint).await?;
        outcome.ingested = library
            .copy(from, args.files, &mut outcome.recorder, |c| {
                bar.set_position(c.files);
                accident.happen(c, lab);
            })
            .await?;
        outcome.restart = accident.result()?;
        library.sync().await?;
        outcome.ingest_time = start.elapsed();
        bar.finish_and_clear();
        let before = committed(lab)?;
        library.make_files(CHANGED_DIR, &changed_names(), b"new").await?;
        library.sync().await?;
        walk(lab, before, &mut outcome)?;
        library.leave().await
    })?;
    lab.kill();
    outcome.recovery = lab.start()?;
    let bar = progress_bar("verify", outcome.ingested.files, args.json);
    let endpoint = lab.endpoint();
    vellum_rt::native::block_on(async {
        let library = Library::connect(endpoint).await?;
        outcome.verified = library.verify(from, args.files, |c| bar.set_position(c.files)).await?;
        library.leave().await
    })?;
    bar.finish_and_clear();
    lab.engine.take().map_or(Ok(()), Engine::stop)?;
    Ok(outcome)
}

/// The engine is killed and started again once, in the middle of the ingest; the gateway and the copy go on.
struct Accident {
    at_files: u64,
    result: Option<Result<Duration>>,
}

impl Accident {
    fn new(at_files: u64) -> Accident {
        Accident { at_files, result: None }
    }

    fn happen(&mut self, census: &Census, lab: &mut Lab) {
        if self.result.is_none() && census.files >= self.at_files {
            lab.kill();
            self.result = Some(lab.start());
        }
    }

    fn result(self) -> Result<Duration> {
        self.result.unwrap_or(Ok(Duration::ZERO)).context("starting the engine again")
    }
}

fn changed_names() -> Vec<String> {
    (0..CHANGED_FILES).map(|i| format!("file-{i}")).collect()
}

/// fsync of a directory makes the whole mount durable. (Linux does not pass syncfs(2) on to FUSE.)
fn sync(dir: &Path) -> Result<()> {
    std::fs::File::open(dir)?.sync_all().context("fsync of the root directory")
}

/// Another user of the engine, on a thread of its own: this one may be running the library's reactor.
fn aside<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.map_err(|_| anyhow::anyhow!("asking the engine panicked"))?
}

fn committed(lab: &Lab) -> Result<u64> {
    let target = lab.target();
    aside(|| with_client(&target, &KeyArgs::default(), async |client| Ok(archive::committed_seq(&client).0)))
}

/// What changed after the sequence `after`, with paths.
fn walk(lab: &Lab, after: u64, outcome: &mut Outcome) -> Result<()> {
    let start = Instant::now();
    let target = lab.target();
    outcome.changed = aside(|| {
        with_client(&target, &KeyArgs::default(), async |client| {
            let mut walk = archive::Walk::new(client.clone(), IndexKind::MetaSeq, (after + 1, Ino::NONE), u64::MAX);
            let mut changed = Vec::new();
            loop {
                let entries = walk.page().await?;
                if entries.is_empty() {
                    return Ok(changed);
                }
                for (seq, ino) in entries {
                    let paths = archive::ino_paths(&client, ino).await?;
                    let path = paths.first().map_or("(no name)".into(), |p| String::from_utf8_lossy(p).into_owned());
                    changed.push((seq, ino.0, path));
                }
            }
        })
    })?;
    outcome.walk_time = start.elapsed();
    let found = outcome.changed.iter().filter(|(_, _, path)| path.contains("/file-")).count();
    anyhow::ensure!(found == CHANGED_FILES, "the index names {found} of {CHANGED_FILES} changed files");
    Ok(())
}

fn progress_bar(what: &'static str, files: u64, json: bool) -> ProgressBar {
    let bar = ProgressBar::new(files);
    if json {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("   {prefix} {wide_bar} {pos}/{len} files, {eta} left") {
        bar.set_style(style);
    }
    bar.set_prefix(what);
    bar
}

fn report(args: &Quickstart, way: &str, o: &Outcome) {
    let seconds = o.ingest_time.as_secs_f64();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    if args.json {
        println!(
            "{}",
            json!({
                "way": way, "ingested": o.ingested, "ingest_seconds": seconds,
                "files_per_s": o.ingested.files as f64 / seconds,
                "mb_per_s": o.ingested.bytes as f64 / 1e6 / seconds,
                "file_p50_us": o.recorder.quantile_us(0.5), "file_p99_us": o.recorder.quantile_us(0.99),
                "restart_ms": ms(o.restart), "recovery_ms": ms(o.recovery), "walk_ms": ms(o.walk_time),
                "changed": o.changed.iter().map(|(seq, ino, path)| json!({ "seq": seq, "ino": ino, "path": path }))
                    .collect::<Vec<_>>(),
                "verified": o.verified, "identical": true,
            })
        );
        return;
    }
    println!(
        "   {} files, {} directories, {} symlinks, {} in {seconds:.1} s: {:.0} files/s, {:.0} MB/s, made durable by one sync",
        o.ingested.files,
        o.ingested.directories,
        o.ingested.symlinks,
        size::show(o.ingested.bytes),
        o.ingested.files as f64 / seconds,
        o.ingested.bytes as f64 / 1e6 / seconds,
    );
    println!(
        "   per file: p50 {:.0} us, p99 {:.0} us, max {:.1} ms",
        o.recorder.quantile_us(0.5),
        o.recorder.quantile_us(0.99),
        o.recorder.max_us() / 1e3
    );
    println!(
        "   killed with SIGKILL in the middle; it served again after {:.0} ms, and the copy went on",
        ms(o.restart)
    );
    println!("3. changed since then, by index and not by walking ({:.1} ms):", ms(o.walk_time));
    for (seq, ino, path) in &o.changed {
        println!("   seq {seq} ino {ino} {path}");
    }
    println!("4. killed everything with SIGKILL; the engine recovered and served after {:.0} ms", ms(o.recovery));
    println!("5. verified {} files, {}: every byte is there", o.verified.files, size::show(o.verified.bytes));
}
