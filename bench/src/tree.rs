//! Real trees: copying one, and comparing two byte for byte.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use crate::recorder::Recorder;

/// What a tree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Census {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub bytes: u64,
}

/// Counts what a tree holds.
pub fn census(root: &Path) -> Result<Census> {
    let mut census = Census::default();
    for entry in WalkDir::new(root).min_depth(1) {
        let Ok(entry) = entry else { continue };
        match entry.file_type() {
            kind if kind.is_dir() => census.directories += 1,
            kind if kind.is_symlink() => census.symlinks += 1,
            kind if kind.is_file() => {
                census.files += 1;
                census.bytes += entry.metadata()?.len();
            }
            _ => {}
        }
    }
    Ok(census)
}

/// Copies regular files, directories and symlinks of `from` into the existing directory `to`; other kinds are passed
/// over. Each file's latency goes to `recorder`; `progress` is told after each entry. At most `max_files` files.
pub fn copy(
    from: &Path,
    to: &Path,
    max_files: u64,
    recorder: &mut Recorder,
    mut progress: impl FnMut(&Census),
) -> Result<Census> {
    let mut census = Census::default();
    let mut buf = vec![0u8; 1 << 20];
    for entry in WalkDir::new(from).sort_by_file_name().min_depth(1) {
        let Ok(entry) = entry else { continue }; // a live tree: what vanished or may not be read is not ours to copy
        let relative = entry.path().strip_prefix(from).context("walkdir stays below its root")?;
        let target = to.join(relative);
        let kind = entry.file_type();
        if kind.is_dir() {
            fs::create_dir(&target).with_context(|| format!("making {}", target.display()))?;
            census.directories += 1;
        } else if kind.is_symlink() {
            let points_to = fs::read_link(entry.path())?;
            symlink(&points_to, &target).with_context(|| format!("linking {}", target.display()))?;
            census.symlinks += 1;
        } else if kind.is_file() {
            if census.files >= max_files {
                break;
            }
            let Ok(source) = File::open(entry.path()) else { continue };
            let mode = source.metadata()?.mode();
            let copied = recorder
                .time(0, || copy_file(source, &target, mode, &mut buf))
                .with_context(|| format!("copying {}", target.display()))?;
            census.files += 1;
            census.bytes += copied;
        }
        progress(&census);
    }
    Ok(census)
}

fn copy_file(mut source: File, target: &Path, mode: u32, buf: &mut [u8]) -> Result<u64> {
    use std::io::Write;
    let mut out = File::create_new(target)?;
    let mut copied = 0;
    loop {
        let n = source.read(buf)?;
        if n == 0 {
            break;
        }
        out.write_all(&buf[..n])?;
        copied += n as u64;
    }
    out.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    Ok(copied)
}

/// Compares what [`copy`] would copy of `from` with what stands in `to`: names, kinds, sizes, contents, targets.
pub fn verify(from: &Path, to: &Path, max_files: u64, mut progress: impl FnMut(&Census)) -> Result<Census> {
    let mut census = Census::default();
    let (mut a, mut b) = (vec![0u8; 1 << 20], vec![0u8; 1 << 20]);
    for entry in WalkDir::new(from).sort_by_file_name().min_depth(1) {
        let Ok(entry) = entry else { continue };
        let target = to.join(entry.path().strip_prefix(from).context("walkdir stays below its root")?);
        let kind = entry.file_type();
        if kind.is_dir() {
            if !fs::symlink_metadata(&target).with_context(|| format!("{} is lost", target.display()))?.is_dir() {
                bail!("{} is no directory", target.display());
            }
            census.directories += 1;
        } else if kind.is_symlink() {
            let points_to = fs::read_link(&target).with_context(|| format!("{} is lost", target.display()))?;
            if points_to != fs::read_link(entry.path())? {
                bail!("{} points elsewhere", target.display());
            }
            census.symlinks += 1;
        } else if kind.is_file() {
            if census.files >= max_files {
                break;
            }
            let Ok(source) = File::open(entry.path()) else { continue };
            let copy = File::open(&target).with_context(|| format!("{} is lost", target.display()))?;
            census.bytes += same_content(source, copy, &mut a, &mut b)
                .with_context(|| format!("comparing {}", target.display()))?;
            census.files += 1;
        }
        progress(&census);
    }
    Ok(census)
}

fn same_content(mut x: File, mut y: File, a: &mut [u8], b: &mut [u8]) -> Result<u64> {
    let mut at = 0;
    loop {
        let n = x.read(a)?;
        if n == 0 {
            if y.read(b)? != 0 {
                bail!("it is longer than its source of {at} bytes");
            }
            return Ok(at);
        }
        y.read_exact(&mut b[..n]).with_context(|| format!("it ends within {} bytes after {at}", n))?;
        if a[..n] != b[..n] {
            bail!("it differs within {n} bytes after byte {at}");
        }
        at += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dir: &Path) {
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("d/file"), b"content").unwrap();
        fs::write(dir.join("empty"), b"").unwrap();
        symlink("d/file", dir.join("link")).unwrap();
    }

    #[test]
    fn a_copy_verifies_and_a_changed_byte_does_not() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        sample(a.path());
        let copied = copy(a.path(), b.path(), u64::MAX, &mut Recorder::default(), |_| ()).unwrap();
        assert_eq!(copied, Census { files: 2, directories: 1, symlinks: 1, bytes: 7 });
        assert_eq!(verify(a.path(), b.path(), u64::MAX, |_| ()).unwrap(), copied);
        fs::write(b.path().join("d/file"), b"c0ntent").unwrap();
        assert!(verify(a.path(), b.path(), u64::MAX, |_| ()).is_err());
        fs::write(b.path().join("d/file"), b"contents").unwrap();
        assert!(verify(a.path(), b.path(), u64::MAX, |_| ()).is_err());
        fs::remove_file(b.path().join("d/file")).unwrap();
        assert!(verify(a.path(), b.path(), u64::MAX, |_| ()).is_err());
    }
}
