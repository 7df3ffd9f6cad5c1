//! The `small` suite: bytes of metadata that a small file costs on the device, before and after everything is merged.
//!
//! Counted is what the node says that it uses: log bytes in use and the blocks of segments, less what it used when it was
//! empty, less content that lies in blocks of its own. The limit beside it is the 600 bytes that the design allows.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use vellum_base::{BLOCK_SIZE, Ino};
use vellum_client::{Address, Client};

use crate::fill::fill;
use crate::node;
use crate::recorder::{Recorder, Usage};
use crate::report::{Report, Row};

/// Sizes of the suite.
#[derive(Clone, Debug)]
pub struct Shape {
    pub files: usize,
    pub file_bytes: Vec<usize>,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { files: 100_000, file_bytes: vec![0, 100, 1000, 4096] }
    }
}

/// The design's bound on metadata per small file, in bytes.
const LIMIT: f64 = 600.0;

pub fn run(dir: &Path, shape: &Shape) -> Result<Report> {
    let mut report = Report::new("small", "limit").by_device_bytes();
    for bytes in &shape.file_bytes {
        rows_of(dir, shape.files, *bytes)?.into_iter().for_each(|row| report.push(row));
    }
    Ok(report)
}

/// Blocks of the device, in use for something else than content, and the bytes of logs that recovery would read.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    metadata: f64,
    content: f64,
}

fn used(status: &Value) -> Result<Used> {
    let store = &status["store"];
    let blocks = |name: &str| store["space"][name].as_f64().with_context(|| format!("no {name} in {store}"));
    let logs: f64 =
        store["reactors"].as_array().into_iter().flatten().filter_map(|r| r["log_used_bytes"].as_f64()).sum();
    let block = BLOCK_SIZE as f64;
    Ok(Used { metadata: blocks("metadata_blocks")? * block + logs, content: blocks("used_data_blocks")? * block })
}

async fn now_used(client: &Client) -> Result<Used> {
    used(&serde_json::from_str(&client.status().await?)?)
}

fn rows_of(dir: &Path, files: usize, bytes: usize) -> Result<Vec<Row>> {
    let image = dir.join("small.img");
    let node = node::on_file(&image, (files as u64 * (bytes as u64 * 2 + 4096)).max(2 << 30), 1)?;
    let dialer = node.dialer();
    let rows = node::on_vfs(Address::InProcess(dialer.clone()), async |vfs, caller| {
        let content = vec![b'x'; bytes];
        let empty = now_used(vfs.client()).await?;
        let (before, began) = (Usage::now(), Instant::now());
        fill(vfs, caller, Ino::ROOT, 0..files, &content).await?;
        let (filled, took, spent) = (now_used(vfs.client()).await?, began.elapsed(), Usage::now().since(before));
        node::merge_everything(dialer).await?;
        let merged = now_used(vfs.client()).await?;
        let row = |when: &str, now: Used| {
            let metadata = (now.metadata - empty.metadata) / files as f64;
            let blocks = (now.content - empty.content) / files as f64;
            rows_for(&format!("{bytes} B files, {when}"), files, metadata, blocks, took, spent)
        };
        Ok([row("made", filled), row("merged", merged)].concat())
    })?;
    node.shutdown()?;
    std::fs::remove_file(&image)?;
    Ok(rows)
}

/// Rates are those of making the files; `device_bytes_per_op` is the metadata.
fn rows_for(case: &str, files: usize, metadata: f64, content: f64, took: Duration, spent: Usage) -> Vec<Row> {
    let mut recorder = Recorder::default();
    recorder.record(took / files as u32, 0);
    let limit =
        Row { device_bytes_per_op: LIMIT, ..Row::of(case, "limit", &Recorder::default(), took, Usage::default()) };
    let made = Row::of(case, "vellum", &recorder, took, spent);
    let made = Row {
        ops: files as u64,
        ops_per_s: files as f64 / made.seconds,
        cpu_us_per_op: made.cpu_us_per_op / files as f64,
        device_bytes_per_op: metadata,
        ..made
    };
    vec![limit.note("of metadata per file"), made.note(format!("{content:.0} B of blocks per file hold content"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_small() {
        let dir = tempfile::tempdir().unwrap();
        match run(dir.path(), &Shape { files: 300, file_bytes: vec![0, 4096] }) {
            Ok(report) => assert_eq!(report.rows.len(), 8, "{}", report.table()),
            Err(e) if format!("{e:#}").contains("O_DIRECT") => println!("SKIPPED: {e:#}"),
            Err(e) => panic!("{e:#}"),
        }
    }
}
