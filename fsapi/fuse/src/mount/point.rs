//! Looks at a mount point before it is used, without asking any filesystem that may not answer.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::Access;

use super::{MountError, Unmount};

/// Types of mounts that are ours.
const OUR_TYPE: &str = "fuse.vellum";

/// One line of /proc/self/mountinfo.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    pub path: PathBuf,
    /// `major:minor`.
    pub device: String,
    pub fstype: String,
}

/// How long a mount of ours, found at the mount point, may take to show that it lives.
const PROBE: Duration = Duration::from_secs(1);

/// The absolute path of a usable mount point. What a dead Vellum gateway left there is detached.
pub fn check(path: &Path) -> Result<PathBuf, MountError> {
    let unusable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => MountError::Absent(path.to_path_buf()),
        _ => MountError::Unusable { path: path.to_path_buf(), error },
    };
    let absolute = absolute(path).map_err(unusable)?;
    while top_is_ours(&absolute)? {
        if !is_dead(&absolute)? {
            return Err(MountError::AlreadyMounted(path.to_path_buf()));
        }
        tracing::warn!(path = %absolute.display(), "clearing away the mount of a dead gateway");
        super::unmount(&absolute, Unmount::Lazy)?;
    }
    if !std::fs::metadata(&absolute).map_err(unusable)?.is_dir() {
        return Err(MountError::NotADirectory(path.to_path_buf()));
    }
    match rustix::fs::access(&absolute, Access::WRITE_OK) {
        // Root may mount over a directory of a read-only filesystem: nothing is written to it.
        Err(rustix::io::Errno::ROFS) if super::is_root() => Ok(absolute),
        Ok(()) => Ok(absolute),
        Err(_) => Err(MountError::NotWritable(path.to_path_buf())),
    }
}

/// Resolves all but the last component, which may be a mount that does not answer.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return path.canonicalize() };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let joined = parent.canonicalize()?.join(name);
    if mounts_at(&joined)?.is_empty() { joined.canonicalize() } else { Ok(joined) }
}

/// Asked on a thread: a mount that lives may be served by the very reactor that calls.
fn is_dead(path: &Path) -> io::Result<bool> {
    let (tell, told) = mpsc::channel();
    let path = path.to_path_buf();
    std::thread::Builder::new().name("fuse-probe".into()).spawn(move || {
        let _ = tell.send(std::fs::metadata(path).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN)));
    })?;
    Ok(told.recv_timeout(PROBE).unwrap_or(false))
}

fn top_is_ours(path: &Path) -> io::Result<bool> {
    Ok(mounts_at(path)?.last().is_some_and(|mount| mount.fstype == OUR_TYPE))
}

/// All mounts at exactly `path`, the visible one last.
pub fn mounts_at(path: &Path) -> io::Result<Vec<Mount>> {
    Ok(mounts()?.into_iter().filter(|mount| mount.path == path).collect())
}

/// Where something is mounted at `dir` or below it, in the order of mounting. `dir` is absolute and without symlinks.
pub fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(mounts()?.into_iter().map(|mount| mount.path).filter(|path| path.starts_with(dir)).collect())
}

fn mounts() -> io::Result<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse).collect())
}

/// `36 35 98:0 /root /mnt/point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|&b| b == b' ');
    let device = String::from_utf8(words.nth(2)?.to_vec()).ok()?;
    let path = PathBuf::from(OsString::from_vec(unescape(words.nth(1)?)));
    let fstype = String::from_utf8(words.skip_while(|word| *word != b"-").nth(1)?.to_vec()).ok()?;
    Some(Mount { path, device, fstype })
}

/// Blanks, newlines and backslashes are written `\ooo`.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        match tail.get(..3).and_then(octal) {
            Some(byte) if first == b'\\' => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn mountinfo_lines_are_read() {
        let line = br"36 35 0:41 / /mnt/a\040b rw,noatime shared:5 master:1 - fuse.vellum vellum rw,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!(
            (mount.path.as_os_str().as_bytes(), &*mount.device, &*mount.fstype),
            (&b"/mnt/a b"[..], "0:41", "fuse.vellum")
        );
        assert!(parse(b"").is_none() && parse(b"36 35 0:41 / /mnt").is_none());
        assert_eq!(unescape(br"a\\b\12"), br"a\\b\12", "what is no octal number stays");
    }

    #[test]
    fn unusable_mount_points_are_refused_with_their_reason() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(check(&dir.path().join("none")), Err(MountError::Absent(_))));
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(matches!(check(&file), Err(MountError::NotADirectory(_))));
        assert_eq!(check(dir.path()).unwrap(), dir.path().canonicalize().unwrap());
    }
}
