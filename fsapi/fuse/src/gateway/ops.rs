//! Each request of the kernel as one call of the vfs.

use std::time::Duration;

use vellum_vfs::{FileHandle, FileLockMode, FileLockSpace, OpenFlags, VfsError, XattrMode, is_acl};

use super::ENDPOINT_XATTR;
use super::cache::Gateway;
use super::convert::{allocate, attr, caller, rename_mode, seek, set_attr, statfs};
use super::locks;
use crate::context::Context;
use crate::dirents::Dirents;
use crate::filesystem::{Created, Filesystem, Result};
use crate::init::{SessionInfo, Wants};
use crate::name::Name;
use crate::notify::Notifier;
use crate::types::{
    Attr, CopyRequest, Entry, Errno, FileLockRange, LockRequest, OpenRequest, Opened, Payload, ReadRequest,
    ReleaseRequest, SetAttr, Statfs, WriteRequest,
};

/// An average name, to guess how many entries a listing has room for.
const NAME_LEN_GUESS: usize = 16;

impl Filesystem for Gateway {
    fn wants(&self) -> Wants {
        Wants { posix_locks: true, flock_locks: true, posix_acl: true, dont_mask: true, ..Wants::default() }
    }

    fn started(&self, session: &SessionInfo, notifier: &Notifier) {
        self.begun(session, notifier);
    }

    fn ended(&self) {
        self.gone();
    }

    fn forget(&self, ino: u64, lookups: u64) {
        self.known.forget(self.ino(ino), lookups);
    }

    async fn lookup(&self, _ctx: &Context, parent: u64, name: &Name) -> Result<Entry> {
        match self.stale.lookup(&self.vfs, self.ino(parent), name).await {
            Ok(found) => Ok(self.entry(&found)),
            Err(VfsError::NOENT) => self.negative().ok_or(Errno::ENOENT),
            Err(error) => Err(error.into()),
        }
    }

    async fn getattr(&self, _ctx: &Context, ino: u64, _fh: Option<u64>) -> Result<(Attr, Duration)> {
        let found = self.stale.note(self.vfs.getattr(self.ino(ino)).await)?;
        Ok((attr(&found), self.attr_ttl()))
    }

    async fn setattr(&self, _ctx: &Context, ino: u64, set: &SetAttr) -> Result<(Attr, Duration)> {
        let found = self.stale.note(self.vfs.setattr(self.ino(ino), set_attr(set)).await)?;
        Ok((attr(&found), self.attr_ttl()))
    }

    async fn readlink(&self, _ctx: &Context, ino: u64) -> Result<Payload> {
        Ok(Payload::Bytes(self.stale.note(self.vfs.readlink(self.ino(ino)).await)?.to_vec()))
    }

    async fn symlink(&self, ctx: &Context, parent: u64, name: &Name, target: &[u8]) -> Result<Entry> {
        let made = self.vfs.symlink(caller(ctx, 0), self.ino(parent), name, target).await?;
        Ok(self.entry(&made))
    }

    async fn mknod(&self, ctx: &Context, dir: u64, name: &Name, mode: u32, rdev: u32, umask: u32) -> Result<Entry> {
        let made = self.vfs.mknod(caller(ctx, umask), self.ino(dir), name, mode, rdev).await?;
        Ok(self.entry(&made))
    }

    async fn mkdir(&self, ctx: &Context, parent: u64, name: &Name, mode: u32, umask: u32) -> Result<Entry> {
        let made = self.vfs.mkdir(caller(ctx, umask), self.ino(parent), name, mode).await?;
        Ok(self.entry(&made))
    }

    async fn unlink(&self, _ctx: &Context, parent: u64, name: &Name) -> Result<()> {
        Ok(self.vfs.unlink(self.ino(parent), name).await?)
    }

    async fn rmdir(&self, _ctx: &Context, parent: u64, name: &Name) -> Result<()> {
        Ok(self.vfs.rmdir(self.ino(parent), name).await?)
    }

    async fn rename(&self, _ctx: &Context, from: u64, name: &Name, to: u64, new: &Name, flags: u32) -> Result<()> {
        let mode = rename_mode(flags)?;
        Ok(self.vfs.rename(self.ino(from), name, self.ino(to), new, mode).await?)
    }

    async fn link(&self, _ctx: &Context, ino: u64, parent: u64, name: &Name) -> Result<Entry> {
        let linked = self.stale.note(self.vfs.link(self.ino(ino), self.ino(parent), name).await)?;
        Ok(self.entry(&linked))
    }

    async fn open(&self, _ctx: &Context, ino: u64, request: &OpenRequest) -> Result<Opened> {
        let flags = open_flags(request);
        let (handle, found) = self.stale.note(self.vfs.open(self.ino(ino), flags).await)?;
        Ok(self.opened(found.ino, handle.0, flags, found.offline_blocks > 0))
    }

    async fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &Name,
        mode: u32,
        umask: u32,
        request: &OpenRequest,
    ) -> Result<Created> {
        let flags = open_flags(request);
        let (made, handle) = self.vfs.create(caller(ctx, umask), self.ino(parent), name, mode, flags).await?;
        Ok((self.entry(&made), self.opened(made.ino, handle.0, flags, made.offline_blocks > 0)))
    }

    async fn tmpfile(&self, ctx: &Context, dir: u64, mode: u32, umask: u32, request: &OpenRequest) -> Result<Created> {
        let flags = open_flags(request);
        let (made, handle) = self.vfs.tmpfile(caller(ctx, umask), self.ino(dir), mode, flags).await?;
        Ok((self.entry(&made), self.opened(made.ino, handle.0, flags, false)))
    }

    async fn read(&self, _ctx: &Context, _ino: u64, request: &ReadRequest) -> Result<Payload> {
        let _transfer = self.transfer();
        let data = self.vfs.read(FileHandle(request.fh), request.offset, request.size as usize).await?;
        Ok(Payload::Slices(data))
    }

    async fn write(&self, _ctx: &Context, _ino: u64, request: WriteRequest) -> Result<u32> {
        // A kernel without HANDLE_KILLPRIV_V2 changes the mode itself, before it writes.
        let (handle, _transfer) = (FileHandle(request.fh), self.transfer());
        let written = self.vfs.write(handle, request.offset, &request.data, request.kill_suidgid).await?;
        u32::try_from(written).map_err(|_| Errno::EIO)
    }

    /// A close of a descriptor: the process loses its fcntl locks of the file, also those through other descriptors.
    async fn flush(&self, _ctx: &Context, ino: u64, fh: u64, lock_owner: u64) -> Result<()> {
        let ino = self.ino(ino);
        self.lock_owners.flushed(ino, lock_owner);
        let dropped = self.vfs.drop_file_locks(ino, FileLockSpace::Posix, lock_owner).await;
        self.vfs.flush(FileHandle(fh)).await?;
        Ok(dropped?)
    }

    async fn release(&self, _ctx: &Context, ino: u64, request: &ReleaseRequest) -> Result<()> {
        let ino = self.ino(ino);
        let descriptions = self.lock_owners.released(ino, request.fh);
        let released = self.vfs.release(FileHandle(request.fh)).await;
        for owner in descriptions {
            self.vfs.drop_file_locks(ino, FileLockSpace::Posix, owner).await?;
        }
        if request.flock_unlock {
            self.vfs.drop_file_locks(ino, FileLockSpace::Flock, request.lock_owner).await?;
        }
        Ok(released?)
    }

    async fn getlk(&self, _ctx: &Context, ino: u64, request: &LockRequest) -> Result<FileLockRange> {
        let lock = locks::wanted(request)?;
        let found = self.vfs.get_file_lock(self.ino(ino), lock).await?;
        Ok(locks::found(request, found))
    }

    /// Waiting ends with any signal: the lock is then taken back at the engine before the caller hears of it.
    async fn setlk(&self, ctx: &Context, ino: u64, request: &LockRequest) -> Result<()> {
        let (ino, lock) = (self.ino(ino), locks::wanted(request)?);
        if lock.space == FileLockSpace::Posix && lock.mode != FileLockMode::Unlocked {
            self.lock_owners.note(ino, request.fh, request.owner);
        }
        Ok(self.vfs.set_file_lock(ino, lock, request.wait, ctx.until_interrupted()).await?)
    }

    async fn fsync(&self, _ctx: &Context, _ino: u64, fh: u64, _data_only: bool) -> Result<()> {
        Ok(self.vfs.fsync(FileHandle(fh)).await?)
    }

    /// The list is filled in one go, without waiting: what is counted as looked up is then answered.
    async fn readdir(&self, _ctx: &Context, ino: u64, _fh: u64, offset: u64, list: &mut Dirents) -> Result<()> {
        let max = list.room_for(NAME_LEN_GUESS);
        let entries = self.vfs.readdir(self.ino(ino), offset, max, list.plus()).await?;
        for entry in entries {
            let fitted = match &entry.attr {
                Some(found) if list.plus() && !matches!(&entry.name[..], b"." | b"..") => {
                    let answered = self.entry(found);
                    let fitted = list.push_entry(&answered, entry.next_pos, &entry.name);
                    if !fitted {
                        self.known.forget(found.ino, 1);
                    }
                    fitted
                }
                _ => list.push(entry.ino.0, entry.next_pos, entry.kind as u32, &entry.name),
            };
            if !fitted {
                break;
            }
        }
        Ok(())
    }

    async fn fsyncdir(&self, _ctx: &Context, _ino: u64, _fh: u64, _data_only: bool) -> Result<()> {
        Ok(self.vfs.syncfs().await?)
    }

    async fn statfs(&self, _ctx: &Context, _ino: u64) -> Result<Statfs> {
        Ok(statfs(&self.vfs.statfs().await?))
    }

    async fn syncfs(&self, _ctx: &Context) -> Result<()> {
        Ok(self.vfs.syncfs().await?)
    }

    /// The kernel does not say whether the caller may keep setuid and setgid: root may.
    async fn fallocate(&self, ctx: &Context, _ino: u64, fh: u64, offset: u64, len: u64, mode: u32) -> Result<()> {
        let what = allocate(mode)?;
        Ok(self.vfs.fallocate(FileHandle(fh), what, offset, len, ctx.uid != 0).await?)
    }

    async fn lseek(&self, _ctx: &Context, _ino: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        Ok(self.vfs.seek(FileHandle(fh), offset, seek(whence)?).await?)
    }

    async fn copy_file_range(&self, ctx: &Context, _ino: u64, r: &CopyRequest) -> Result<u64> {
        if r.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let (from, to) = ((FileHandle(r.fh_in), r.offset_in), (FileHandle(r.fh_out), r.offset_out));
        Ok(self.vfs.copy_range(from, to, r.len, ctx.uid != 0).await?)
    }

    async fn getxattr(&self, _ctx: &Context, ino: u64, name: &Name) -> Result<Payload> {
        self.served(name)?;
        if let (ENDPOINT_XATTR, Some(endpoint)) = (&name[..], &self.endpoint) {
            return Ok(Payload::Bytes(endpoint.clone().into_bytes()));
        }
        Ok(Payload::Bytes(self.stale.note(self.vfs.getxattr(self.ino(ino), name).await)?.to_vec()))
    }

    async fn listxattr(&self, _ctx: &Context, ino: u64) -> Result<Payload> {
        let names = self.stale.note(self.vfs.listxattr(self.ino(ino)).await)?;
        Ok(Payload::Bytes(names.iter().flat_map(|name| [&name[..], b"\0"].concat()).collect()))
    }

    async fn setxattr(&self, _c: &Context, ino: u64, name: &Name, value: &[u8], flags: u32, kill: bool) -> Result<()> {
        self.served(name)?;
        if is_acl(name) {
            return Ok(self.stale.note(self.vfs.set_acl(self.ino(ino), name, Some(value), kill).await)?);
        }
        let mode = match flags as i32 {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        Ok(self.stale.note(self.vfs.setxattr(self.ino(ino), name, value, mode).await)?)
    }

    async fn removexattr(&self, _ctx: &Context, ino: u64, name: &Name) -> Result<()> {
        self.served(name)?;
        Ok(self.stale.note(self.vfs.removexattr(self.ino(ino), name).await)?)
    }
}

/// Truncation comes as a SETATTR of its own (no atomic O_TRUNC), with its privileges to kill.
fn open_flags(request: &OpenRequest) -> OpenFlags {
    OpenFlags { truncate: false, ..OpenFlags::from_bits(request.flags as i32) }
}
