//! One system's random 4 KiB reads alone, for `perf` and `strace`.
//!
//! `cargo run --release -p vellum-bench --example reads -- FILE plain|vellum DEPTH READS`; FILE is made if it is not there.

use anyhow::{Context, Result, bail};
use std::path::Path;
use vellum_base::BLOCK_SIZE;
use vellum_bench::peers::uring;
use vellum_bench::recorder::{Recorder, Usage};
use vellum_bench::runtime;

const FILE_BYTES: u64 = 512 << 20;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, system, depth, reads] = args.as_slice() else { bail!("say FILE plain|vellum DEPTH READS") };
    let path = Path::new(path);
    if !path.exists() {
        runtime::fill(path, FILE_BYTES)?;
    }
    let (depth, reads) = (depth.parse().context("DEPTH")?, reads.parse().context("READS")?);
    let blocks = FILE_BYTES / BLOCK_SIZE as u64;
    let mut recorder = Recorder::default();
    let (before, start) = (Usage::now(), std::time::Instant::now());
    match system.as_str() {
        "plain" => uring::reads(&runtime::open_direct(path)?, blocks, depth, reads, &mut recorder)?,
        "vellum" => runtime::reads(&Default::default(), path, blocks, depth, reads, &mut recorder)?,
        other => bail!("no system {other}; there are plain and vellum"),
    }
    let used = Usage::now().since(before);
    println!(
        "{system:<7} qd{depth:<4} {:>8.0}/s {:.3} us of CPU each",
        reads as f64 / start.elapsed().as_secs_f64(),
        used.cpu_us as f64 / reads as f64
    );
    Ok(())
}
