//! From a request's bytes to the future that answers it: one allocation, exactly as large as that method needs.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use vellum_base::DmaSlice;

use crate::abi::{self, InHeader, LseekOut, Opcode, WriteOut, setattr};
use crate::context::Context;
use crate::decode::Args;
use crate::dirents::Dirents;
use crate::filesystem::Filesystem;
use crate::reply::Reply;
use crate::types::{
    CopyRequest, Errno, FileLockRange, LockRequest, OpenRequest, Payload, ReadRequest, ReleaseRequest, SetAttr,
    SetTime, Time, WriteRequest,
};

/// A request's future. It owns all that it needs.
pub type Answering = Pin<Box<dyn Future<Output = Result<Reply, Errno>>>>;

/// The largest listing that one READDIR is answered with.
const READDIR_MAX: usize = 1 << 20;
/// The largest attribute value, and list of attribute names.
const XATTR_MAX: usize = 65_536;

/// Session facts that decide how a request is laid out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Layout {
    pub setxattr_ext: bool,
    pub max_read: usize,
}

/// Begins WRITE; its data lies apart from the arguments.
pub fn begin_write<F: Filesystem>(fs: &Rc<F>, ctx: Context, ino: u64, a: &abi::WriteIn, data: DmaSlice) -> Answering {
    let fs = fs.clone();
    let request = WriteRequest {
        fh: a.fh,
        offset: a.offset,
        data,
        flags: a.flags,
        from_cache: a.write_flags & abi::WRITE_CACHE != 0,
        kill_suidgid: a.write_flags & abi::WRITE_KILL_SUIDGID != 0,
        lock_owner: (a.write_flags & abi::WRITE_LOCKOWNER != 0).then_some(a.lock_owner),
    };
    Box::pin(async move { written(fs.write(&ctx, ino, request).await?) })
}

/// Begins any request but WRITE and those that the session answers itself (INIT, INTERRUPT, the FORGETs, DESTROY).
pub fn begin<F: Filesystem>(
    fs: &Rc<F>,
    ctx: Context,
    opcode: Opcode,
    header: &InHeader,
    body: &[u8],
    layout: Layout,
) -> Result<Answering, Errno> {
    let fs = fs.clone();
    let ino = header.nodeid;
    let mut args = Args::new(body);
    macro_rules! answer {
        ($($body:tt)*) => { Ok(Box::pin(async move { $($body)* })) };
    }
    match opcode {
        Opcode::Lookup => {
            let name = args.name_or_dots()?;
            answer!(Ok(Reply::entry(&fs.lookup(&ctx, ino, &name).await?)))
        }
        Opcode::Getattr => {
            let a: abi::GetattrIn = args.take()?;
            let fh = (a.getattr_flags & abi::GETATTR_FH != 0).then_some(a.fh);
            answer!(fs.getattr(&ctx, ino, fh).await.map(|(attr, ttl)| Reply::attr(&attr, ttl)))
        }
        Opcode::Statx => {
            let a: abi::StatxIn = args.take()?;
            let fh = (a.getattr_flags & abi::GETATTR_FH != 0).then_some(a.fh);
            answer!(
                let (attr, ttl) = fs.getattr(&ctx, ino, fh).await?;
                // It is only asked for the birth time; without one the kernel must not ask each time.
                if attr.crtime.is_some() { Ok(Reply::statx(&attr, ttl)) } else { Err(Errno::ENOSYS) }
            )
        }
        Opcode::Setattr => {
            let set = set_attr(&args.take()?);
            answer!(fs.setattr(&ctx, ino, &set).await.map(|(attr, ttl)| Reply::attr(&attr, ttl)))
        }
        Opcode::Readlink => answer!(fs.readlink(&ctx, ino).await.map(Reply::payload)),
        Opcode::Symlink => {
            let name = args.name()?;
            let target = args.cstr()?.to_vec();
            answer!(Ok(Reply::entry(&fs.symlink(&ctx, ino, &name, &target).await?)))
        }
        Opcode::Mknod => {
            let a: abi::MknodIn = args.take()?;
            let name = args.name()?;
            answer!(Ok(Reply::entry(&fs.mknod(&ctx, ino, &name, a.mode, a.rdev, a.umask).await?)))
        }
        Opcode::Mkdir => {
            let a: abi::MkdirIn = args.take()?;
            let name = args.name()?;
            answer!(Ok(Reply::entry(&fs.mkdir(&ctx, ino, &name, a.mode, a.umask).await?)))
        }
        Opcode::Unlink => {
            let name = args.name()?;
            answer!(done(fs.unlink(&ctx, ino, &name).await))
        }
        Opcode::Rmdir => {
            let name = args.name()?;
            answer!(done(fs.rmdir(&ctx, ino, &name).await))
        }
        Opcode::Rename | Opcode::Rename2 => {
            let (newdir, flags) = if opcode == Opcode::Rename {
                (args.take::<abi::RenameIn>()?.newdir, 0)
            } else {
                let a: abi::Rename2In = args.take()?;
                (a.newdir, a.flags)
            };
            let (name, new_name) = (args.name()?, args.name()?);
            answer!(done(fs.rename(&ctx, ino, &name, newdir, &new_name, flags).await))
        }
        Opcode::Link => {
            let a: abi::LinkIn = args.take()?;
            let name = args.name()?;
            answer!(Ok(Reply::entry(&fs.link(&ctx, a.oldnodeid, ino, &name).await?)))
        }
        Opcode::Open => {
            let a: abi::OpenIn = args.take()?;
            let request = open_request(a.flags, a.open_flags);
            answer!(Ok(Reply::opened(&fs.open(&ctx, ino, &request).await?)))
        }
        Opcode::Create => {
            let a: abi::CreateIn = args.take()?;
            let name = args.name()?;
            let request = open_request(a.flags, a.open_flags);
            answer!(
                let (entry, opened) = fs.create(&ctx, ino, &name, a.mode, a.umask, &request).await?;
                Ok(Reply::created(&entry, &opened))
            )
        }
        Opcode::Tmpfile => {
            let a: abi::CreateIn = args.take()?; // the name behind it is no name
            let request = open_request(a.flags, a.open_flags);
            answer!(
                let (entry, opened) = fs.tmpfile(&ctx, ino, a.mode, a.umask, &request).await?;
                Ok(Reply::created(&entry, &opened))
            )
        }
        Opcode::Read => {
            let a: abi::ReadIn = args.take()?;
            let lock_owner = (a.read_flags & abi::READ_LOCKOWNER != 0).then_some(a.lock_owner);
            let size = a.size.min(layout.max_read as u32);
            let request = ReadRequest { fh: a.fh, offset: a.offset, size, flags: a.flags, lock_owner };
            answer!(fs.read(&ctx, ino, &request).await.and_then(|data| at_most(data, size as usize)))
        }
        Opcode::Flush => {
            let a: abi::FlushIn = args.take()?;
            answer!(done(fs.flush(&ctx, ino, a.fh, a.lock_owner).await))
        }
        Opcode::Release => {
            let request = release_request(&args.take()?);
            answer!(done(fs.release(&ctx, ino, &request).await))
        }
        Opcode::Fsync | Opcode::Fsyncdir => {
            let a: abi::FsyncIn = args.take()?;
            let data_only = a.fsync_flags & abi::FSYNC_FDATASYNC != 0;
            if opcode == Opcode::Fsync {
                answer!(never_enosys(fs.fsync(&ctx, ino, a.fh, data_only).await))
            } else {
                answer!(never_enosys(fs.fsyncdir(&ctx, ino, a.fh, data_only).await))
            }
        }
        Opcode::Syncfs => answer!(never_enosys(fs.syncfs(&ctx).await)),
        Opcode::Fallocate => {
            let a: abi::FallocateIn = args.take()?;
            answer!(done(fs.fallocate(&ctx, ino, a.fh, a.offset, a.length, a.mode).await))
        }
        Opcode::Lseek => {
            let a: abi::LseekIn = args.take()?;
            answer!(
                let offset = fs.lseek(&ctx, ino, a.fh, a.offset, a.whence).await?;
                Ok(Reply::of(&LseekOut { offset }))
            )
        }
        Opcode::CopyFileRange | Opcode::CopyFileRange64 => {
            let request = copy_request(&args.take()?, opcode);
            answer!(copied(fs.copy_file_range(&ctx, ino, &request).await?, opcode))
        }
        Opcode::Opendir => {
            let a: abi::OpenIn = args.take()?;
            answer!(Ok(Reply::opened(&fs.opendir(&ctx, ino, a.flags).await?)))
        }
        Opcode::Readdir | Opcode::Readdirplus => {
            let a: abi::ReadIn = args.take()?;
            let mut list = Dirents::new((a.size as usize).min(READDIR_MAX), opcode == Opcode::Readdirplus);
            answer!(
                fs.readdir(&ctx, ino, a.fh, a.offset, &mut list).await?;
                Ok(Reply::payload(list.into_payload()))
            )
        }
        Opcode::Releasedir => {
            let a: abi::ReleaseIn = args.take()?;
            answer!(done(fs.releasedir(&ctx, ino, a.fh).await))
        }
        Opcode::Statfs => answer!(fs.statfs(&ctx, ino).await.map(|st| Reply::statfs(&st))),
        Opcode::Access => {
            let a: abi::AccessIn = args.take()?;
            answer!(done(fs.access(&ctx, ino, a.mask).await))
        }
        Opcode::Getxattr => {
            let a: abi::GetxattrIn = args.take()?;
            let name = args.name_or_dots()?;
            answer!(sized(fs.getxattr(&ctx, ino, &name).await?, a.size as usize))
        }
        Opcode::Listxattr => {
            let a: abi::GetxattrIn = args.take()?;
            answer!(sized(fs.listxattr(&ctx, ino).await?, a.size as usize))
        }
        Opcode::Setxattr => {
            let (size, flags, more) = if layout.setxattr_ext {
                let a: abi::SetxattrIn = args.take()?;
                (a.size as usize, a.flags, a.setxattr_flags)
            } else {
                let a: abi::SetxattrCompatIn = args.take()?;
                (a.size as usize, a.flags, 0)
            };
            let name = args.name_or_dots()?;
            if size > XATTR_MAX {
                return Err(Errno::E2BIG);
            }
            let value = args.bytes(size)?.to_vec();
            let kill_sgid = more & abi::SETXATTR_ACL_KILL_SGID != 0;
            answer!(done(fs.setxattr(&ctx, ino, &name, &value, flags, kill_sgid).await))
        }
        Opcode::Removexattr => {
            let name = args.name_or_dots()?;
            answer!(done(fs.removexattr(&ctx, ino, &name).await))
        }
        Opcode::Getlk => {
            let request = lock_request(&args.take()?, false);
            answer!(
                let lk = file_lock(&fs.getlk(&ctx, ino, &request).await?);
                Ok(Reply::of(&abi::LkOut { lk }))
            )
        }
        Opcode::Setlk | Opcode::Setlkw => {
            let request = lock_request(&args.take()?, opcode == Opcode::Setlkw);
            answer!(done(fs.setlk(&ctx, ino, &request).await))
        }
        Opcode::Ioctl => Err(Errno::ENOTTY),
        // Not built; ENOSYS makes the kernel do without: POLL says ready.
        Opcode::Bmap | Opcode::Poll | Opcode::NotifyReply => Err(Errno::ENOSYS),
        Opcode::Write | Opcode::Init | Opcode::Interrupt | Opcode::Forget | Opcode::BatchForget | Opcode::Destroy => {
            Err(Errno::EINVAL)
        }
    }
}

fn done(result: Result<(), Errno>) -> Result<Reply, Errno> {
    result.map(|()| Reply::empty())
}

/// ENOSYS here would make the kernel answer every later sync with success.
fn never_enosys(result: Result<(), Errno>) -> Result<Reply, Errno> {
    done(result.map_err(|errno| if errno == Errno::ENOSYS { Errno::EIO } else { errno }))
}

fn written(size: u32) -> Result<Reply, Errno> {
    Ok(Reply::of(&WriteOut { size, padding: 0 }))
}

fn copied(bytes: u64, opcode: Opcode) -> Result<Reply, Errno> {
    match opcode {
        Opcode::CopyFileRange64 => Ok(Reply::of(&abi::CopyFileRangeOut { bytes_copied: bytes })),
        _ => written(u32::try_from(bytes).map_err(|_| Errno::EOVERFLOW)?),
    }
}

/// More than was asked for would be refused by the kernel with the request left hanging.
fn at_most(data: Payload, len: usize) -> Result<Reply, Errno> {
    if data.len() > len { Err(Errno::EIO) } else { Ok(Reply::payload(data)) }
}

/// xattr convention: room 0 asks for the size; too little room is ERANGE.
fn sized(value: Payload, room: usize) -> Result<Reply, Errno> {
    if room == 0 {
        return Ok(Reply::of(&abi::GetxattrOut { size: value.len() as u32, padding: 0 }));
    }
    if value.len() > room { Err(Errno::ERANGE) } else { Ok(Reply::payload(value)) }
}

fn open_request(flags: u32, open_flags: u32) -> OpenRequest {
    OpenRequest { flags, kill_suidgid: open_flags & abi::OPEN_KILL_SUIDGID != 0 }
}

fn release_request(a: &abi::ReleaseIn) -> ReleaseRequest {
    ReleaseRequest {
        fh: a.fh,
        flags: a.flags,
        flush: a.release_flags & abi::RELEASE_FLUSH != 0,
        flock_unlock: a.release_flags & abi::RELEASE_FLOCK_UNLOCK != 0,
        lock_owner: a.lock_owner,
    }
}

fn copy_request(a: &abi::CopyFileRangeIn, opcode: Opcode) -> CopyRequest {
    // The 32-bit form cannot report more.
    let len = if opcode == Opcode::CopyFileRange { a.len.min(u32::MAX as u64 & !4095) } else { a.len };
    CopyRequest {
        fh_in: a.fh_in,
        offset_in: a.off_in,
        ino_out: a.nodeid_out,
        fh_out: a.fh_out,
        offset_out: a.off_out,
        len,
        flags: a.flags,
    }
}

fn lock_request(a: &abi::LkIn, wait: bool) -> LockRequest {
    let lock = FileLockRange { start: a.lk.start, end: a.lk.end, kind: a.lk.kind as i32, pid: a.lk.pid };
    LockRequest { fh: a.fh, owner: a.owner, lock, flock: a.lk_flags & abi::LK_FLOCK != 0, wait }
}

fn file_lock(lock: &FileLockRange) -> abi::FileLock {
    abi::FileLock { start: lock.start, end: lock.end, kind: lock.kind as u32, pid: lock.pid }
}

fn set_attr(a: &abi::SetattrIn) -> SetAttr {
    let has = |bit: u32| a.valid & bit != 0;
    let time = |bit: u32, now: u32, secs: u64, nanos: u32| match (has(now), has(bit)) {
        (true, _) => Some(SetTime::Now),
        (false, true) => Some(SetTime::At(Time { secs: secs as i64, nanos })),
        (false, false) => None,
    };
    SetAttr {
        mode: has(setattr::MODE).then_some(a.mode),
        uid: has(setattr::UID).then_some(a.uid),
        gid: has(setattr::GID).then_some(a.gid),
        size: has(setattr::SIZE).then_some(a.size),
        atime: time(setattr::ATIME, setattr::ATIME_NOW, a.atime, a.atimensec),
        mtime: time(setattr::MTIME, setattr::MTIME_NOW, a.mtime, a.mtimensec),
        ctime: has(setattr::CTIME).then_some(Time { secs: a.ctime as i64, nanos: a.ctimensec }),
        fh: has(setattr::FH).then_some(a.fh),
        lock_owner: has(setattr::LOCKOWNER).then_some(a.lock_owner),
        kill_suidgid: has(setattr::KILL_SUIDGID),
    }
}
