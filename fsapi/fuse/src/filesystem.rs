//! What a filesystem must be to be mounted: one method per request, plain structs in and out, no wire layout.
//!
//! Every request's future is polled once where the request was read; only when it waits does it become a task of its
//! own. It is dropped when the caller is killed (see `interrupt`), so a method must keep its state consistent at every
//! await, as against a crash. Node ids (`ino` and `parent` here) are chosen by the filesystem, in [`Entry::nodeid`]; 1 is the
//! root.
//!
//! A default answers ENOSYS where that makes the kernel stop asking and do the right thing itself (ACCESS, FLUSH, POLL,
//! FALLOCATE, LSEEK, COPY_FILE_RANGE, xattrs, TMPFILE, RENAME2 flags), and EOPNOTSUPP or EROFS where the request is
//! only refused. FSYNC has no default: ENOSYS there would make the kernel answer every later fsync with success.
#![allow(async_fn_in_trait)] // futures are local to a reactor by design; no Send bound is wanted

use std::time::Duration;

use crate::context::Context;
use crate::dirents::Dirents;
use crate::init::{SessionInfo, Wants};
use crate::name::Name;
use crate::notify::Notifier;
use crate::types::{
    Attr, CopyRequest, Entry, Errno, FileLockRange, LockRequest, OpenRequest, Opened, Payload, ReadRequest,
    ReleaseRequest, SetAttr, Statfs, WriteRequest,
};

pub type Result<T> = std::result::Result<T, Errno>;

/// A filesystem of one reactor. See the module's text for what holds for all methods.
pub trait Filesystem: 'static {
    /// Asked once before INIT is answered: what the kernel shall leave to the filesystem.
    fn wants(&self) -> Wants {
        Wants::default()
    }
    /// INIT was answered.
    fn started(&self, _session: &SessionInfo, _notifier: &Notifier) {}
    /// The mount is gone; nothing more will come. Open files were not released if the mount was forced away.
    fn ended(&self) {}
    /// The kernel dropped `lookups` of its references to `ino`: exactly as many as entries were answered.
    fn forget(&self, ino: u64, lookups: u64);

    async fn lookup(&self, ctx: &Context, parent: u64, name: &Name) -> Result<Entry>;
    /// `fh` when the kernel asks about an open file. Answers the attributes and how long they may be kept.
    async fn getattr(&self, ctx: &Context, ino: u64, fh: Option<u64>) -> Result<(Attr, Duration)>;
    async fn setattr(&self, _ctx: &Context, _ino: u64, _set: &SetAttr) -> Result<(Attr, Duration)> {
        Err(Errno::EROFS)
    }
    async fn readlink(&self, _ctx: &Context, _ino: u64) -> Result<Payload> {
        Err(Errno::EINVAL)
    }
    async fn symlink(&self, _ctx: &Context, _parent: u64, _name: &Name, _target: &[u8]) -> Result<Entry> {
        Err(Errno::EROFS)
    }
    async fn mknod(&self, _c: &Context, _parent: u64, _name: &Name, _mode: u32, _rdev: u32, _um: u32) -> Result<Entry> {
        Err(Errno::EROFS)
    }
    async fn mkdir(&self, _ctx: &Context, _parent: u64, _name: &Name, _mode: u32, _umask: u32) -> Result<Entry> {
        Err(Errno::EROFS)
    }
    async fn unlink(&self, _ctx: &Context, _parent: u64, _name: &Name) -> Result<()> {
        Err(Errno::EROFS)
    }
    async fn rmdir(&self, _ctx: &Context, _parent: u64, _name: &Name) -> Result<()> {
        Err(Errno::EROFS)
    }
    /// `flags`: RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT; EINVAL for what is not supported.
    async fn rename(&self, _c: &Context, _from: u64, _name: &Name, _to: u64, _new: &Name, _flags: u32) -> Result<()> {
        Err(Errno::EROFS)
    }
    async fn link(&self, _ctx: &Context, _ino: u64, _parent: u64, _name: &Name) -> Result<Entry> {
        Err(Errno::EROFS)
    }

    async fn open(&self, _ctx: &Context, _ino: u64, _request: &OpenRequest) -> Result<Opened> {
        Ok(Opened::default())
    }
    async fn create(
        &self,
        _c: &Context,
        _p: u64,
        _n: &Name,
        _mode: u32,
        _um: u32,
        _f: &OpenRequest,
    ) -> Result<Created> {
        Err(Errno::EROFS)
    }
    /// O_TMPFILE: a file without a name. ENOSYS makes the kernel answer EOPNOTSUPP.
    async fn tmpfile(&self, _c: &Context, _dir: u64, _mode: u32, _umask: u32, _f: &OpenRequest) -> Result<Created> {
        Err(Errno::ENOSYS)
    }
    /// Fewer bytes than asked for mean the end of the file.
    async fn read(&self, ctx: &Context, ino: u64, request: &ReadRequest) -> Result<Payload>;
    /// Answers the number of bytes taken.
    async fn write(&self, _ctx: &Context, _ino: u64, _request: WriteRequest) -> Result<u32> {
        Err(Errno::EROFS)
    }
    /// At each close(2) of a descriptor: drops the owner's POSIX locks, reports a write error once. It is not fsync.
    async fn flush(&self, _ctx: &Context, _ino: u64, _fh: u64, _lock_owner: u64) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    async fn release(&self, _ctx: &Context, _ino: u64, _request: &ReleaseRequest) -> Result<()> {
        Ok(())
    }
    async fn fsync(&self, ctx: &Context, ino: u64, fh: u64, data_only: bool) -> Result<()>;
    async fn fallocate(&self, _c: &Context, _ino: u64, _fh: u64, _off: u64, _len: u64, _mode: u32) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    async fn lseek(&self, _ctx: &Context, _ino: u64, _fh: u64, _offset: u64, _whence: u32) -> Result<u64> {
        Err(Errno::ENOSYS)
    }
    async fn copy_file_range(&self, _ctx: &Context, _ino: u64, _request: &CopyRequest) -> Result<u64> {
        Err(Errno::ENOSYS)
    }

    async fn opendir(&self, _ctx: &Context, _ino: u64, _flags: u32) -> Result<Opened> {
        Ok(Opened::default())
    }
    /// Fills `list` with what follows position `offset` (0: the beginning).
    async fn readdir(&self, ctx: &Context, ino: u64, fh: u64, offset: u64, list: &mut Dirents) -> Result<()>;
    async fn releasedir(&self, _ctx: &Context, _ino: u64, _fh: u64) -> Result<()> {
        Ok(())
    }
    async fn fsyncdir(&self, ctx: &Context, ino: u64, fh: u64, data_only: bool) -> Result<()>;

    async fn statfs(&self, ctx: &Context, ino: u64) -> Result<Statfs>;
    async fn syncfs(&self, ctx: &Context) -> Result<()>;
    async fn access(&self, _ctx: &Context, _ino: u64, _mask: u32) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// The whole value: the transport compares it with the caller's room.
    async fn getxattr(&self, _ctx: &Context, _ino: u64, _name: &Name) -> Result<Payload> {
        Err(Errno::ENOSYS)
    }
    /// All names, each ended by a NUL.
    async fn listxattr(&self, _ctx: &Context, _ino: u64) -> Result<Payload> {
        Err(Errno::ENOSYS)
    }
    /// `flags`: XATTR_CREATE, XATTR_REPLACE. `kill_sgid`: a new access ACL clears the setgid bit.
    async fn setxattr(
        &self,
        _c: &Context,
        _i: u64,
        _n: &Name,
        _value: &[u8],
        _flags: u32,
        _kill_sgid: bool,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    async fn removexattr(&self, _ctx: &Context, _ino: u64, _name: &Name) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Only asked when [`Wants::posix_locks`] or [`Wants::flock_locks`].
    async fn getlk(&self, _ctx: &Context, _ino: u64, _request: &LockRequest) -> Result<FileLockRange> {
        Err(Errno::ENOSYS)
    }
    /// With `wait` it must look at [`Context::until_interrupted`]: no other signal than a deadly one drops it.
    async fn setlk(&self, _ctx: &Context, _ino: u64, _request: &LockRequest) -> Result<()> {
        Err(Errno::ENOSYS)
    }
}

/// CREATE's answer.
pub type Created = (Entry, Opened);
