//! Between the vfs's words and the kernel's.

use vellum_format::Timestamp;
use vellum_vfs as vfs;

use crate::context::Context;
use crate::types::{Attr, Errno, SetAttr, SetTime, Statfs, Time};

impl From<vfs::VfsError> for Errno {
    fn from(error: vfs::VfsError) -> Errno {
        // Anything else would be read as a reply of another kind.
        if (1..=4095).contains(&error.errno) { Errno(error.errno) } else { Errno::EIO }
    }
}

/// `umask`: of the caller. It is ours to apply (DONT_MASK), as a default ACL takes its place.
pub fn caller(ctx: &Context, umask: u32) -> vfs::Caller {
    vfs::Caller { uid: ctx.uid, gid: ctx.gid, pid: ctx.pid, umask }
}

fn time(t: Timestamp) -> Time {
    Time { secs: t.secs, nanos: t.nanos }
}

pub fn attr(a: &vfs::Attr) -> Attr {
    Attr {
        ino: a.ino.0,
        size: a.size,
        blocks: a.blocks,
        atime: time(a.atime),
        mtime: time(a.mtime),
        ctime: time(a.ctime),
        crtime: Some(time(a.crtime)),
        mode: a.mode,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: vfs::Attr::BLKSIZE,
    }
}

pub fn set_attr(set: &SetAttr) -> vfs::SetAttr {
    let time = |t: SetTime| match t {
        SetTime::Now => vfs::SetTime::Now,
        SetTime::At(t) => vfs::SetTime::To(Timestamp { secs: t.secs, nanos: t.nanos }),
    };
    vfs::SetAttr {
        mode: set.mode,
        uid: set.uid,
        gid: set.gid,
        size: set.size,
        atime: set.atime.map(time),
        mtime: set.mtime.map(time),
        kill_privileges: set.kill_suidgid,
    }
}

pub fn statfs(st: &vfs::FsStat) -> Statfs {
    Statfs {
        blocks: st.total_blocks,
        bfree: st.free_blocks,
        bavail: st.available_blocks,
        // No fixed number of inodes: as many as there is room for.
        files: st.inodes.saturating_add(st.free_blocks),
        ffree: st.free_blocks,
        bsize: vfs::Attr::BLKSIZE,
        namelen: st.max_name,
    }
}

pub fn rename_mode(flags: u32) -> Result<vfs::RenameMode, Errno> {
    match flags {
        0 => Ok(vfs::RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(vfs::RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(vfs::RenameMode::Exchange),
        _ => Err(Errno::EINVAL), // RENAME_WHITEOUT, or both at once
    }
}

/// `mode` of fallocate(2).
pub fn allocate(mode: u32) -> Result<vfs::Allocate, Errno> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE as u32 != 0;
    match (mode & !(libc::FALLOC_FL_KEEP_SIZE as u32)) as i32 {
        0 => Ok(vfs::Allocate::Room { keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Ok(vfs::Allocate::PunchHole),
        libc::FALLOC_FL_ZERO_RANGE => Ok(vfs::Allocate::Zero { keep_size }),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

pub fn seek(whence: u32) -> Result<vfs::Seek, Errno> {
    match whence as i32 {
        libc::SEEK_DATA => Ok(vfs::Seek::Data),
        libc::SEEK_HOLE => Ok(vfs::Seek::Hole),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errnos_leave_as_errnos() {
        assert_eq!(Errno::from(vfs::VfsError::NOENT), Errno::ENOENT);
        assert_eq!(Errno::from(vfs::VfsError { errno: 0 }), Errno::EIO);
        assert_eq!(Errno::from(vfs::VfsError { errno: -5 }), Errno::EIO);
        assert_eq!(Errno::from(vfs::VfsError { errno: 5000 }), Errno::EIO);
    }

    #[test]
    fn rename_flags_are_one_of_three() {
        assert_eq!(rename_mode(0), Ok(vfs::RenameMode::Replace));
        assert_eq!(rename_mode(libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE), Err(Errno::EINVAL));
        assert_eq!(rename_mode(libc::RENAME_WHITEOUT), Err(Errno::EINVAL));
    }
}
