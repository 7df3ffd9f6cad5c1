//! The `recovery` suite: how long a killed engine takes to serve again, by the bytes that its logs hold; and how long one
//! that was stopped in order takes, also with many files.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use vellum_base::Ino;
use vellum_bench::recorder::{Recorder, Usage};
use vellum_bench::{Report, Row, fill, node};
use vellum_client::Address;
use vellum_rt::net::Endpoint;

use crate::processes::{self, Engine};

/// Sizes of the suite.
pub struct Shape {
    /// What the logs hold when the engine is killed, in bytes; what they cannot hold is left out.
    pub logs: Vec<u64>,
    /// Files of the filesystems that are stopped in order.
    pub files: Vec<usize>,
    pub repeats: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { logs: vec![4 << 20, 16 << 20, 64 << 20, 256 << 20], files: vec![0, 1_000_000], repeats: 3 }
    }
}

/// Of the files that fill the logs; small enough to be an item.
const CONTENT: &[u8] = &[b'x'; 200];

/// The baseline: an engine with nothing to replay.
const STOPPED: &str = "stopped";

pub fn run(dir: &Path, shape: &Shape) -> Result<Report> {
    let mut report = Report::new("recovery", STOPPED);
    let (image, socket) = (dir.join("recovery.img"), dir.join("recovery.sock"));
    let mut last = 0;
    for log in &shape.logs {
        let mut rows = Vec::new();
        processes::mkfs(&image, 4 << 30)?;
        let mut held = 0;
        for killed in [false, true] {
            let mut starts = Starts::default();
            for _ in 0..shape.repeats {
                let engine = Engine::start(&image, &socket)?;
                held = held.max(fill_logs(&socket, *log)?);
                if killed {
                    engine.kill();
                } else {
                    engine.stop()?
                }
                starts.add(&image, &socket)?;
            }
            rows.push((if killed { "killed" } else { STOPPED }, starts));
        }
        if held < *log && held <= last {
            break; // the logs' bound is below
        }
        last = held;
        let case = format!("{} MiB of logs", held >> 20);
        rows.into_iter().for_each(|(system, starts)| report.push(starts.row(&case, system)));
    }
    for files in &shape.files {
        processes::mkfs(&image, *files as u64 * 4096 + (2 << 30))?;
        let engine = Engine::start(&image, &socket)?;
        node::on_vfs(at(&socket), async |vfs, caller| fill::fill(vfs, caller, Ino::ROOT, 0..*files, b"").await)?;
        engine.stop()?;
        let mut starts = Starts::default();
        (0..shape.repeats).try_for_each(|_| starts.add(&image, &socket))?;
        report.push(starts.row(&format!("{files} files"), STOPPED));
    }
    Ok(report)
}

/// Starts of one engine: operations, whose latency is from the start of the process until it says that it serves.
#[derive(Default)]
struct Starts {
    recorder: Recorder,
    total: Duration,
    said: String,
}

impl Starts {
    fn add(&mut self, image: &Path, socket: &Path) -> Result<()> {
        let engine = Engine::start(image, socket)?;
        self.recorder.record(engine.start_time, 0);
        self.total += engine.start_time;
        self.said = engine.said.rsplit_once(": ").map_or(String::new(), |(_, how)| how.to_owned());
        engine.stop()
    }

    fn row(self, case: &str, system: &str) -> Row {
        Row::of(case, system, &self.recorder, self.total, Usage::default()).note(self.said)
    }
}

fn at(socket: &Path) -> Address {
    Address::Net(Endpoint::Unix(socket.to_owned()))
}

/// Makes files until the logs hold so many bytes, or hold no more for having been flushed; what they hold then.
fn fill_logs(socket: &Path, wanted: u64) -> Result<u64> {
    node::on_vfs(at(socket), async |vfs, caller| {
        let root = format!("{:x}", vellum_rt::random_u64());
        let root = vfs.mkdir(caller, Ino::ROOT, root.as_bytes(), 0o755).await?.ino;
        let (mut held, mut files) = (0, 0);
        loop {
            fill::fill(vfs, caller, root, files..files + fill::FILES_PER_DIR, CONTENT).await?;
            files += fill::FILES_PER_DIR;
            let now = log_bytes(&vfs.client().status().await?)?;
            if now >= wanted || now < held {
                return Ok(now);
            }
            held = now;
        }
    })
}

fn log_bytes(status: &str) -> Result<u64> {
    let status: Value = serde_json::from_str(status)?;
    let reactors = status["store"]["reactors"].as_array().context("the status has no reactors")?;
    Ok(reactors.iter().filter_map(|reactor| reactor["log_used_bytes"].as_u64()).sum())
}
