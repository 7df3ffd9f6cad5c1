//! The `runtime` suite: what a reactor costs beside plain threads on plain sockets and files.

use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use vellum_base::{BLOCK_SIZE, DmaBuf, prng::Prng};
use vellum_nvme::OpenMode;
use vellum_rt::native::{self, Config};
use vellum_rt::net::{Endpoint, Listener, Stream};
use vellum_rt::{Class, channel};
use vellum_store::PolledQueue;

use crate::executors;
use crate::link;
use crate::peers::sockets::{self, Wait};
use crate::peers::uring;
use crate::recorder::{Recorder, Usage};
use crate::report::{Report, Row};

/// Sizes of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rounds: usize,
    /// Of 1 MiB over the link.
    pub frames: usize,
    pub reads: usize,
    pub file_bytes: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { rounds: 50_000, frames: 2_000, reads: 200_000, file_bytes: 512 << 20 }
    }
}

const MESSAGE_BYTES: usize = 64;
/// Turns of each system at a case of reads.
const READ_TURNS: usize = 10;

const SPINNING: &str = "spinning";
const PLAIN_RING: &str = "plain io_uring";

/// Runs every case; sockets and the data file live in `dir`.
pub fn run(dir: &Path, shape: &Shape) -> Result<Report> {
    let mut report = Report::new("runtime", "blocking");
    for (wait, name) in [(Wait::Block, "blocking"), (Wait::Spin, SPINNING)] {
        report.push(case("echo 64 B", name, |r| sockets::echo(wait, shape.rounds, MESSAGE_BYTES, r))?);
    }
    for (name, config) in &executors::all() {
        let row = case("echo 64 B", name, |r| echo(config, &dir.join("echo.sock"), shape.rounds, r))?;
        let spinning = report.rows.iter().find(|other| other.case == row.case && other.system == SPINNING);
        let times = spinning.map_or(0.0, |spinning| row.p50_us / spinning.p50_us);
        executors::push(&mut report, row.note(format!("{times:.2}x of spinning's median (goal: at most 1.5x)")));
    }
    for (name, config) in &executors::all() {
        executors::push(&mut report, case("core to core", name, |r| messages(config, shape.rounds, r))?);
    }
    links(dir, shape, &mut report)?;
    let file = dir.join("reads.img");
    fill(&file, shape.file_bytes)?;
    let blocks = shape.file_bytes / BLOCK_SIZE as u64;
    let plain = open_direct(&file)?;
    report.push(case("read 4 KiB qd1", "blocking", |r| sockets::reads(&plain, blocks, shape.reads / 4, r))?);
    for depth in [1usize, 32, 128] {
        let count = if depth == 1 { shape.reads / 4 } else { shape.reads } / READ_TURNS;
        let name = format!("read 4 KiB qd{depth}");
        let all = executors::all();
        let mut ring = Turns::default();
        let mut reactors: Vec<Turns> = all.iter().map(|_| Turns::default()).collect();
        for _ in 0..READ_TURNS {
            ring.take(|r| uring::reads(&plain, blocks, depth, count, r))?;
            for (turns, (_, config)) in reactors.iter_mut().zip(&all) {
                turns.take(|r| reads(config, &file, blocks, depth, count, r))?;
            }
        }
        report.push(ring.row(&name, PLAIN_RING));
        for (turns, (system, _)) in reactors.iter().zip(&all) {
            let row = against_plain_ring(&report, turns.row(&name, system));
            executors::push(&mut report, row);
        }
    }
    for (name, config) in executors::all() {
        report.push(idle(name, config)?);
    }
    std::fs::remove_file(&file)?;
    Ok(report)
}

/// Notes what `row` takes of the CPU for an operation, over the plain ring's.
fn against_plain_ring(report: &Report, row: Row) -> Row {
    let plain = report.rows.iter().find(|other| other.case == row.case && other.system == PLAIN_RING);
    match plain.filter(|plain| plain.cpu_us_per_op > 0.0) {
        Some(plain) => {
            let (cpu, rate) = (row.cpu_us_per_op / plain.cpu_us_per_op, row.ops_per_s / plain.ops_per_s);
            row.note(format!("{cpu:.2}x of the plain ring's CPU at {rate:.2}x of its rate (goal: CPU at most 1x)"))
        }
        None => row,
    }
}

type LinkCase = fn(Option<&link::Both>, usize, &mut Recorder) -> Result<()>;

/// The framed link over loopback TCP, plain and within TLS, one beside the other.
fn links(dir: &Path, shape: &Shape, report: &mut Report) -> Result<()> {
    let keys = link::Both::make(&dir.join("keys"))?;
    let cases: [(&str, LinkCase, usize); 3] = [
        ("link call", link::calls, shape.rounds / 2),
        ("link write 1 MiB", link::writes, shape.frames),
        ("link read 1 MiB", link::reads, shape.frames),
    ];
    for (name, work, count) in cases {
        let plain = case(name, "plain tcp", |r| work(None, count, r))?;
        let tls = case(name, "tls", |r| work(Some(&keys), count, r))?;
        let note = |row: &crate::report::Row| format!("{:.0} MB/s", row.mb_per_s());
        let ratio = tls.ops_per_s / plain.ops_per_s;
        let (plain_note, tls_note) = (note(&plain), format!("{}, {ratio:.2}x of plain", note(&tls)));
        report.push(plain.note(plain_note));
        report.push(tls.note(tls_note));
    }
    Ok(())
}

fn case(name: &str, system: &str, work: impl FnOnce(&mut Recorder) -> Result<()>) -> Result<Row> {
    let mut turns = Turns::default();
    turns.take(work)?;
    Ok(turns.row(name, system))
}

/// What the turns of one system at a case add up to. Systems that take turns see the same moods of the machine.
#[derive(Default)]
struct Turns {
    recorder: Recorder,
    took: Duration,
    used: Usage,
}

impl Turns {
    fn take(&mut self, work: impl FnOnce(&mut Recorder) -> Result<()>) -> Result<()> {
        let (before, start) = (Usage::now(), std::time::Instant::now());
        work(&mut self.recorder)?;
        self.took += start.elapsed();
        self.used = self.used.and(Usage::now().since(before));
        Ok(())
    }

    fn row(&self, name: &str, system: &str) -> Row {
        Row::of(name, system, &self.recorder, self.took, self.used)
    }
}

/// A file of random bytes to read from.
pub fn fill(path: &Path, bytes: u64) -> Result<()> {
    use std::io::Write;
    let mut file = File::create(path)?;
    let mut frame = vec![0u8; 1 << 20];
    Prng::new(9).fill(&mut frame);
    for _ in 0..bytes >> 20 {
        file.write_all(&frame)?;
    }
    Ok(file.sync_all()?)
}

/// For reading past the page cache.
pub fn open_direct(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("{} does not take O_DIRECT", path.display()))
}

/// Round trips between two reactors over a unix socket.
fn echo(config: &Config, socket: &Path, rounds: usize, recorder: &mut Recorder) -> Result<()> {
    let endpoint = Endpoint::Unix(socket.to_owned());
    let (ready_in, mut ready_out) = channel::bounded::<()>(1);
    let at = endpoint.clone();
    let server = native::spawn_thread_with("echo", None, config.clone(), move || async move {
        let listener = Listener::bind(&at)?;
        let _ = ready_in.send(()).await;
        let stream = listener.accept().await?;
        let mut buf = DmaBuf::new(BLOCK_SIZE);
        let mut head = Vec::new();
        loop {
            let (n, b) = stream.recv(buf, 0..BLOCK_SIZE).await;
            buf = b;
            let n = n?;
            if n == 0 {
                return Ok::<(), std::io::Error>(());
            }
            head.clear();
            head.extend_from_slice(&buf[..n]);
            let (sent, h) = stream.send_all(head, None).await;
            sent?;
            head = h;
        }
    })?;
    native::block_on_with(config.clone(), async {
        ready_out.recv().await;
        let stream = Stream::connect(&endpoint).await?;
        let mut buf = DmaBuf::new(BLOCK_SIZE);
        let mut head = vec![7u8; MESSAGE_BYTES];
        for _ in 0..rounds {
            let start = std::time::Instant::now();
            let (sent, h) = stream.send_all(head, None).await;
            sent?;
            head = h;
            let mut at = 0;
            while at < MESSAGE_BYTES {
                let (n, b) = stream.recv(buf, at..BLOCK_SIZE).await;
                buf = b;
                match n? {
                    0 => anyhow::bail!("the echo server left"),
                    n => at += n,
                }
            }
            recorder.record(start.elapsed(), MESSAGE_BYTES as u64);
        }
        stream.shutdown();
        Ok(())
    })??;
    server.join()??;
    Ok(())
}

/// Round trips of a message between two reactors.
fn messages(config: &Config, rounds: usize, recorder: &mut Recorder) -> Result<()> {
    let (there_in, mut there_out) = channel::bounded::<u64>(64);
    let (back_in, mut back_out) = channel::bounded::<u64>(64);
    let peer = native::spawn_thread_with("peer", None, config.clone(), move || async move {
        while let Some(m) = there_out.recv().await {
            if back_in.send(m).await.is_err() {
                break;
            }
        }
    })?;
    native::block_on_with(config.clone(), async {
        for i in 0..rounds as u64 {
            let start = std::time::Instant::now();
            let _ = there_in.send(i).await;
            anyhow::ensure!(back_out.recv().await == Some(i), "a message came back changed");
            recorder.record(start.elapsed(), 8);
        }
        drop(there_in);
        Ok(())
    })??;
    peer.join()?;
    Ok(())
}

/// Random 4 KiB reads through the Device trait, `depth` in flight.
pub fn reads(
    config: &Config,
    path: &Path,
    blocks: u64,
    depth: usize,
    count: usize,
    recorder: &mut Recorder,
) -> Result<()> {
    let spec = format!("uring:{}", path.display());
    let device = vellum_nvme::open(&spec, OpenMode { read_only: true, ..OpenMode::default() })?;
    let recorded = Rc::new(std::cell::RefCell::new(std::mem::take(recorder)));
    let shared = recorded.clone();
    native::block_on_with(config.clone(), async move {
        let queue = PolledQueue::open(&*device, depth as u32, "device")?;
        let workers: Vec<_> = (0..depth)
            .map(|worker| {
                let (queue, recorded) = (queue.clone(), shared.clone());
                vellum_rt::spawn(Class::Request, "reads", async move {
                    let mut prng = Prng::new(worker as u64);
                    let mut buf = DmaBuf::new(BLOCK_SIZE);
                    for _ in 0..count / depth {
                        let at = prng.below(blocks) * BLOCK_SIZE as u64;
                        let start = std::time::Instant::now();
                        buf = queue.read(at, buf).await?;
                        recorded.borrow_mut().record(start.elapsed(), BLOCK_SIZE as u64);
                    }
                    Ok::<(), vellum_nvme::DeviceError>(())
                })
            })
            .collect();
        for worker in workers {
            worker.await.map_err(|_| anyhow::anyhow!("a reader was cancelled"))??;
        }
        Ok::<(), anyhow::Error>(())
    })??;
    *recorder = recorded.take();
    Ok(())
}

/// CPU share of two reactors with nothing to do.
fn idle(system: &str, config: Config) -> Result<Row> {
    let stop = Arc::new(Mutex::new(Vec::new()));
    let keep = stop.clone();
    let reactors = native::start(&[None, None], config, move |_| {
        let (tell, mut told) = channel::bounded::<()>(1);
        keep.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(tell);
        async move {
            told.recv().await;
        }
    })?;
    std::thread::sleep(Duration::from_millis(200));
    let before = Usage::now();
    let span = Duration::from_secs(2);
    std::thread::sleep(span);
    let used = Usage::now().since(before);
    stop.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    reactors.join()?;
    let mut recorder = Recorder::default();
    recorder.record(span, 0);
    let share = used.cpu_us as f64 / span.as_micros() as f64 * 100.0;
    Ok(Row::of("two idle reactors", system, &recorder, span, used)
        .note(format!("{share:.2} % of a core (goal: under 1 %)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_small() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { rounds: 20, frames: 10, reads: 128 * READ_TURNS, file_bytes: 1 << 20 };
        match run(dir.path(), &shape) {
            Ok(report) => assert_eq!(report.rows.len(), 12 + 6 * executors::all().len(), "{}", report.table()),
            Err(e) if format!("{e:#}").contains("O_DIRECT") => println!("SKIPPED: {e:#}"),
            Err(e) => panic!("{e:#}"),
        }
    }
}
