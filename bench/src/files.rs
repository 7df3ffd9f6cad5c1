//! File operations on a directory of any filesystem: the cases of the `mount` suite.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::data;
use crate::recorder::measure;
use crate::report::Report;

/// Sizes of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub threads: usize,
    pub files_per_thread: usize,
    pub files_per_dir: usize,
    pub file_bytes: usize,
    pub stream_bytes: u64,
    pub synced_files: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            threads: 2,
            files_per_thread: 5_000,
            files_per_dir: 1_000,
            file_bytes: 4096,
            stream_bytes: 1 << 30,
            synced_files: 400,
        }
    }
}

fn path_of(root: &Path, shape: &Shape, thread: usize, file: usize) -> PathBuf {
    root.join(format!("t{thread}/d{}/f{file}", file / shape.files_per_dir))
}

/// Asks the kernel to forget cached dentries, inodes and pages, so that a case measures the filesystem. Needs root;
/// elsewhere the caches stay warm for every system alike.
pub fn drop_caches() {
    rustix::fs::sync();
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
}

/// Runs every case under `root` (an empty directory) and appends the rows for `system`.
pub fn run(root: &Path, system: &str, shape: &Shape, report: &mut Report) -> Result<()> {
    let content = vec![0x5au8; shape.file_bytes];
    let path = |t, i| path_of(root, shape, t, i);
    let bytes = shape.file_bytes as u64;
    for thread in 0..shape.threads {
        for dir in 0..shape.files_per_thread.div_ceil(shape.files_per_dir) {
            fs::create_dir_all(root.join(format!("t{thread}/d{dir}"))).context("making the directories")?;
        }
    }
    let create = |p: &Path| -> Result<()> {
        OpenOptions::new().write(true).create_new(true).open(p)?.write_all(&content)?;
        Ok(())
    };
    report.push(measure("create+write", system, shape.threads, |t, r| {
        (0..shape.files_per_thread).try_for_each(|i| r.time(bytes, || create(&path(t, i))))
    })?);
    drop_caches();
    // stat(2) as most programs call it. std's metadata() asks for the birth time too, which LOOKUP's answer has no place for:
    // a second request for each inode, and the ceiling has no birth times.
    report.push(measure("stat", system, shape.threads, |t, r| {
        (0..shape.files_per_thread).try_for_each(|i| {
            let stat = r.time(0, || rustix::fs::lstat(path(t, i)))?;
            anyhow::ensure!(stat.st_size as u64 == bytes, "stat shows {} bytes", stat.st_size);
            Ok(())
        })
    })?);
    drop_caches();
    report.push(measure("readdir+stat", system, shape.threads, |t, r| {
        let mut seen = 0;
        for dir in 0..shape.files_per_thread.div_ceil(shape.files_per_dir) {
            for entry in fs::read_dir(root.join(format!("t{t}/d{dir}")))? {
                let entry = entry?;
                r.time(0, || rustix::fs::lstat(entry.path()))?;
                seen += 1;
            }
        }
        anyhow::ensure!(seen == shape.files_per_thread, "readdir shows {seen} files");
        Ok(())
    })?);
    drop_caches();
    report.push(measure("open+read", system, shape.threads, |t, r| {
        let mut buf = vec![0u8; shape.file_bytes];
        (0..shape.files_per_thread).try_for_each(|i| {
            r.time(bytes, || -> Result<()> {
                File::open(path(t, i))?.read_exact(&mut buf)?;
                Ok(())
            })?;
            anyhow::ensure!(buf == content, "a file came back with other content");
            Ok(())
        })
    })?);
    report.push(measure("rename", system, shape.threads, |t, r| {
        (0..shape.files_per_thread).try_for_each(|i| {
            let from = path(t, i);
            r.time(0, || fs::rename(&from, from.with_extension("moved")))?;
            Ok(())
        })
    })?);
    report.push(measure("unlink", system, shape.threads, |t, r| {
        (0..shape.files_per_thread).try_for_each(|i| {
            r.time(0, || fs::remove_file(path(t, i).with_extension("moved")))?;
            Ok(())
        })
    })?);
    synced(root, system, shape, report)?;
    let streamed = root.join("stream");
    data::streams(&streamed, system, shape.stream_bytes, report)?;
    fs::remove_file(streamed)?;
    rustix::fs::sync(); // the next system is not to wait for what this one leaves (journal, discards)
    Ok(())
}

/// create, write and fsync of small files by eight threads.
fn synced(root: &Path, system: &str, shape: &Shape, report: &mut Report) -> Result<()> {
    let dir = root.join("synced");
    fs::create_dir(&dir)?;
    let content = vec![0xa5u8; shape.file_bytes];
    report.push(measure("create+write+fsync", system, 8, |t, r| {
        (0..shape.synced_files).try_for_each(|i| {
            r.time(shape.file_bytes as u64, || -> Result<()> {
                let mut f = File::create(dir.join(format!("{t}-{i}")))?;
                f.write_all(&content)?;
                Ok(f.sync_all()?)
            })
        })
    })?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_on_a_small_directory() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape {
            threads: 2,
            files_per_thread: 20,
            files_per_dir: 8,
            file_bytes: 100,
            stream_bytes: 2 << 20,
            synced_files: 2,
        };
        let mut report = Report::new("mount", "host");
        run(dir.path(), "host", &shape, &mut report).unwrap();
        assert_eq!(report.rows.len(), 9);
        assert_eq!(report.rows[0].ops, 40);
    }
}
