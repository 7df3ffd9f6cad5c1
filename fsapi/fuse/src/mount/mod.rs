//! Attaching a FUSE connection to a mount point, and taking it away.
//!
//! As root by mount(2) itself, otherwise through the set-uid helper fusermount3. A mount point that is absent, no
//! directory, or not writable is refused before anything is tried; what a dead gateway left behind is cleared away.

mod helper;
mod options;
mod point;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

pub use options::MountOptions;
pub use point::mounts_below;

use crate::device;

/// Why a mount failed, in words that say what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("mount point {} does not exist: create the directory first", .0.display())]
    Absent(PathBuf),
    #[error("mount point {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("mount point {} is not writable by this user", .0.display())]
    NotWritable(PathBuf),
    #[error("a Vellum filesystem is already mounted at {}: unmount it first", .0.display())]
    AlreadyMounted(PathBuf),
    #[error("mount point {}: {error}", .path.display())]
    Unusable { path: PathBuf, error: io::Error },
    #[error("cannot open /dev/fuse: {0} (is the kernel module `fuse` loaded, and may this user open the device?)")]
    NoDevice(io::Error),
    #[error("fusermount3 is not installed; install fuse3, or mount as root")]
    NoHelper,
    #[error("fusermount3 refused to mount: {0}")]
    Helper(String),
    #[error("mount on {} failed: {error}", .path.display())]
    Mount { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How to take a mount away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmount {
    /// Only when nothing uses it: EBUSY otherwise.
    WhenIdle,
    /// Out of the tree at once; it ends when the last user has gone.
    Lazy,
    /// Requests in flight are aborted; users get ENOTCONN. What they had not written is lost.
    Force,
}

/// A place where our filesystem is mounted. Dropping it unmounts nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    path: PathBuf,
}

/// Mounts, and answers the connection. The mount is usable when INIT has been answered on it.
pub fn mount(path: &Path, options: &MountOptions) -> Result<(OwnedFd, Mounted), MountError> {
    let path = point::check(path)?;
    let device = if is_root() { mount_directly(&path, options) } else { helper::mount(&path, options) }?;
    Ok((device, Mounted { path }))
}

fn mount_directly(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = device::open().map_err(MountError::NoDevice)?;
    let data = options.kernel_data(device.as_raw_fd());
    let failed = |error: io::Error| MountError::Mount { path: path.to_path_buf(), error };
    let data = CString::new(data).map_err(|e| failed(e.into()))?;
    let fstype = format!("fuse.{}", options.subtype);
    rustix::mount::mount(&options.fsname, path, &fstype, options.flags(), Some(data.as_c_str()))
        .map_err(|errno| failed(errno.into()))?;
    Ok(device)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Takes away a mount that this user made, by whatever process.
pub fn unmount(path: &Path, how: Unmount) -> io::Result<()> {
    if !is_root() {
        return helper::unmount(path, how);
    }
    let flags = match how {
        Unmount::WhenIdle => UnmountFlags::NOFOLLOW,
        Unmount::Lazy => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        Unmount::Force => UnmountFlags::NOFOLLOW | UnmountFlags::FORCE | UnmountFlags::DETACH,
    };
    Ok(rustix::mount::unmount(path, flags)?)
}

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Blocks, and may need answers of the filesystem meanwhile: never call it on the reactor that serves the mount.
    pub fn unmount(&self, how: Unmount) -> io::Result<()> {
        unmount(&self.path, how)
    }

    /// Lets the kernel read `kib` ahead. INIT cannot raise it above the kernel's default of 128 KiB, so this must come
    /// after INIT. Best effort: only root may.
    pub fn set_readahead(&self, kib: u32) -> io::Result<()> {
        let found = point::mounts_at(&self.path)?.pop().ok_or(io::ErrorKind::NotFound)?;
        std::fs::write(format!("/sys/class/bdi/{}/read_ahead_kb", found.device), kib.to_string())
    }
}

impl MountOptions {
    fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::NOSUID, !self.allow_suid);
        flags.set(MountFlags::NODEV, !self.allow_dev);
        flags.set(MountFlags::RDONLY, self.read_only);
        flags.set(MountFlags::NOATIME, self.no_atime);
        flags
    }
}
