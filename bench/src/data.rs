//! File content on a directory of any filesystem: the cases of the `data` suite. Every 4 KiB block carries its own number,
//! and every read looks at it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};
use vellum_base::prng::Prng;

use crate::files::drop_caches;
use crate::recorder::measure;
use crate::report::Report;

/// Sizes of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub stream_bytes: u64,
    /// Blocks that are overwritten, and as many that are read, at random places.
    pub random: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { stream_bytes: 1 << 30, random: 20_000 }
    }
}

const BLOCK: usize = 4096;
const FRAME: usize = 1 << 20;

fn stamp(block: &mut [u8], number: u64) {
    block[..8].copy_from_slice(&number.to_le_bytes());
}

fn look(block: &[u8], number: u64) -> Result<()> {
    ensure!(block[..8] == number.to_le_bytes(), "block {number} came back with other content");
    Ok(())
}

/// Runs every case on a file below `root` and appends the rows for `system`.
pub fn run(root: &Path, system: &str, shape: &Shape, report: &mut Report) -> Result<()> {
    let path = root.join("data");
    streams(&path, system, shape.stream_bytes, report)?;
    let places = |seed| {
        let mut prng = Prng::new(seed);
        move || prng.below(shape.stream_bytes / BLOCK as u64)
    };
    report.push(measure("4 KiB overwrite+fsync", system, 1, |_, r| {
        let file = OpenOptions::new().write(true).open(&path)?;
        let (mut next, mut block) = (places(1), noise(BLOCK));
        for _ in 0..shape.random {
            let number = next();
            stamp(&mut block, number);
            r.time(BLOCK as u64, || file.write_all_at(&block, number * BLOCK as u64))?;
        }
        Ok(file.sync_all()?)
    })?);
    drop_caches();
    report.push(measure("4 KiB read", system, 1, |_, r| {
        let file = File::open(&path)?;
        let (mut next, mut block) = (places(2), vec![0; BLOCK]);
        (0..shape.random).try_for_each(|_| {
            let number = next();
            r.time(BLOCK as u64, || file.read_exact_at(&mut block, number * BLOCK as u64))?;
            look(&block, number)
        })
    })?);
    drop_caches();
    // What copy-on-write has done to the file's order on the device.
    read_stream("stream read, again", &path, system, shape.stream_bytes, report)?;
    Ok(std::fs::remove_file(&path)?)
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Prng::new(7).fill(&mut bytes);
    bytes
}

/// A file written (and fsynced), and read back when the kernel has forgotten it, in calls of 1 MiB.
pub fn streams(path: &Path, system: &str, bytes: u64, report: &mut Report) -> Result<()> {
    report.push(measure("stream write+fsync", system, 1, |_, r| {
        let mut file = File::create(path)?;
        let mut frame = noise(FRAME);
        for n in 0..bytes / FRAME as u64 {
            for (i, block) in frame.chunks_mut(BLOCK).enumerate() {
                stamp(block, n * (FRAME / BLOCK) as u64 + i as u64);
            }
            r.time(FRAME as u64, || file.write_all(&frame))?;
        }
        Ok(file.sync_all()?)
    })?);
    drop_caches();
    read_stream("stream read", path, system, bytes, report)
}

fn read_stream(case: &str, path: &Path, system: &str, bytes: u64, report: &mut Report) -> Result<()> {
    report.push(measure(case, system, 1, |_, r| {
        let mut file = File::open(path)?;
        let mut frame = vec![0; FRAME];
        for n in 0..bytes / FRAME as u64 {
            r.time(FRAME as u64, || file.read_exact(&mut frame))?;
            for (i, block) in frame.chunks(BLOCK).enumerate() {
                look(block, n * (FRAME / BLOCK) as u64 + i as u64)?;
            }
        }
        Ok(())
    })?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_on_a_small_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut report = Report::new("data", "host");
        run(dir.path(), "host", &Shape { stream_bytes: 2 << 20, random: 20 }, &mut report).unwrap();
        assert_eq!(report.rows.len(), 5);
        assert_eq!((report.rows[1].ops, report.rows[2].bytes), (2, 20 * 4096));
        assert!(look(&[0; BLOCK], 1).is_err());
    }
}
