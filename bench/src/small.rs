//! The `small` suite: bytes of metadata that a small file costs on the device, before and after everything is merged.
//!
//! Counted are the chunks of the device that hold neither content nor nothing, less those of an empty filesystem, when the
//! node was stopped in order: first after the files were made, when everything is in segments as it was flushed, several
//! versions of an item in several runs; then after everything was merged. A stopped node has no log; what recovery would have
//! read after the last file is noted. Content counts apart, in blocks of its own or in items. The limit beside it is the 600
//! bytes that the design allows.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use vellum_base::{BLOCK_SIZE, Ino};
use vellum_client::{Address, Client};
use vellum_rt::native;

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

/// Bytes of the device in use for something else than content, and for content.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    metadata: f64,
    content: f64,
}

fn used(image: &Path) -> Result<Used> {
    let space = node::status_of_file(image)?.space;
    let bytes = |blocks: u64| (blocks * BLOCK_SIZE as u64) as f64;
    Ok(Used { metadata: bytes(space.metadata_blocks), content: bytes(space.used_data_blocks) })
}

async fn log_bytes(client: &Client) -> Result<f64> {
    let status: Value = serde_json::from_str(&client.status().await?)?;
    let reactors = status["store"]["reactors"].as_array().context("reactors in the status")?;
    Ok(reactors.iter().filter_map(|r| r["log_used_bytes"].as_f64()).sum())
}

/// How long making the files took, what it cost, and the bytes of the log after it.
struct Made {
    logs: f64,
    took: Duration,
    spent: Usage,
}

fn make(image: &Path, files: usize, bytes: usize) -> Result<Made> {
    let node = node::of_file(image, 1)?;
    let made = node::on_vfs(Address::InProcess(node.dialer()), async |vfs, caller| {
        let content = vec![b'x'; bytes];
        let (before, began) = (Usage::now(), Instant::now());
        fill(vfs, caller, Ino::ROOT, 0..files, &content).await?;
        let (took, spent) = (began.elapsed(), Usage::now().since(before));
        Ok(Made { logs: log_bytes(vfs.client()).await?, took, spent })
    })?;
    node.shutdown()?;
    Ok(made)
}

fn rows_of(dir: &Path, files: usize, bytes: usize) -> Result<Vec<Row>> {
    let image = dir.join("small.img");
    node::on_file(&image, (files as u64 * (bytes as u64 * 2 + 4096)).max(2 << 30), 1)?.shutdown()?;
    let empty = used(&image)?;
    let made = make(&image, files, bytes)?;
    let flushed = used(&image)?;
    let node = node::of_file(&image, 1)?;
    native::block_on(node::merge_everything(node.dialer()))?;
    node.shutdown()?;
    let merged = used(&image)?;
    std::fs::remove_file(&image)?;
    let per_file = |now: f64, empty: f64| (now - empty) / files as f64;
    let row = |when: &str, now: Used| {
        let blocks = per_file(now.content, empty.content);
        let in_items = if blocks < 1.0 { bytes } else { 0 };
        let metadata = per_file(now.metadata, empty.metadata) - in_items as f64;
        let logs = made.logs / files as f64;
        let note = format!("content apart: {blocks:.0} B in blocks, {in_items} B in items; log {logs:.0} B");
        rows_for(&format!("{bytes} B files, {when}"), files, metadata, note, &made)
    };
    Ok([row("made", flushed), row("merged", merged)].concat())
}

/// Rates are those of making the files; `device_bytes_per_op` is the metadata.
fn rows_for(case: &str, files: usize, metadata: f64, note: String, made: &Made) -> Vec<Row> {
    let (took, spent) = (made.took, made.spent);
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
    vec![limit.note("of metadata per file"), made.note(note)]
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
