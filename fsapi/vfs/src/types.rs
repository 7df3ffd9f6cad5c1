//! The words of the API: who calls, what an inode looks like from outside, what can be asked for.

use std::time::Duration;

use bytes::Bytes;
use vellum_base::{BLOCK_SIZE, Ino};
use vellum_format::{FileKind, Inode, Timestamp};

/// Who asks. Permission checks are done before (by the kernel); this decides ownership of what is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    /// Bits removed from the mode of what is made; 0 when the kernel did it.
    pub umask: u32,
}

/// What stat(2) shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attr {
    pub ino: Ino,
    /// Bytes; of a directory the number of its entries.
    pub size: u64,
    /// Units of 512 bytes. An inline file counts one block of 4 KiB: tools take 0 for "nothing but holes".
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub crtime: Timestamp,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub data_version: u64,
    /// Blocks of content that only an archive holds.
    pub offline_blocks: u64,
}

impl Attr {
    pub const BLKSIZE: u32 = BLOCK_SIZE as u32;

    /// `dirty_blocks`: blocks in memory that may not be on the device yet.
    pub(crate) fn of(ino: Ino, inode: &Inode, dirty_blocks: u64) -> Attr {
        let stored = inode.online_blocks + inode.offline_blocks;
        let whole_size = inode.size.div_ceil(BLOCK_SIZE as u64);
        let inline = u64::from(inode.kind() == Some(FileKind::Regular) && stored == 0 && inode.size > 0)
            * u64::from(inode.size <= vellum_format::item::MAX_INLINE as u64);
        let blocks = stored.max((stored + dirty_blocks).min(whole_size)).max(inline);
        Attr {
            ino,
            size: inode.size,
            blocks: blocks * (BLOCK_SIZE / 512) as u64,
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            crtime: inode.crtime,
            mode: inode.mode,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            data_version: inode.data_version,
            offline_blocks: inode.offline_blocks,
        }
    }

    pub fn kind(&self) -> Option<FileKind> {
        FileKind::from_mode(self.mode)
    }
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    Now,
    To(Timestamp),
}

/// What setattr changes; `None` leaves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// The caller may not keep setuid and setgid bits over a truncation.
    pub kill_privileges: bool,
}

/// How a file is opened. The access mode itself is checked by the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenFlags {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub truncate: bool,
    /// With create: fail when the name exists.
    pub exclusive: bool,
    /// Every write waits until it is durable (O_SYNC, O_DSYNC).
    pub sync: bool,
}

impl OpenFlags {
    /// From open(2)'s flags.
    pub fn from_bits(flags: i32) -> OpenFlags {
        let access = flags & libc::O_ACCMODE;
        OpenFlags {
            read: access != libc::O_WRONLY,
            write: access != libc::O_RDONLY,
            append: flags & libc::O_APPEND != 0,
            truncate: flags & libc::O_TRUNC != 0,
            exclusive: flags & libc::O_EXCL != 0,
            sync: flags & libc::O_DSYNC != 0,
        }
    }
}

/// What fallocate(2) does to a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocate {
    /// Looks whether there is room for it now. Content is never overwritten in place, so that no block can be set aside
    /// for it; without `keep_size` the file grows up to the range's end.
    Room { keep_size: bool },
    /// Whole blocks are freed, parts of blocks become zeros; the size stays.
    PunchHole,
    /// As a hole, and without `keep_size` the file grows up to the range's end.
    Zero { keep_size: bool },
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    Data,
    Hole,
}

/// How a rename treats an existing target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RenameMode {
    #[default]
    Replace,
    NoReplace,
    Exchange,
}

/// An open file or directory of this gateway.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FileHandle(pub u64);

/// One name of a directory listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    pub ino: Ino,
    pub kind: FileKind,
    pub name: Bytes,
    /// Where a listing goes on after this entry.
    pub next_pos: u64,
    /// With readdirplus, when it could be had without a lock that was not held.
    pub attr: Option<Attr>,
}

/// What statfs(2) shows, in blocks of [`BLOCK_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FsStat {
    pub total_blocks: u64,
    pub free_blocks: u64,
    pub available_blocks: u64,
    pub inodes: u64,
    pub max_name: u32,
}

/// When reading changes the access time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AtimePolicy {
    /// When it is not newer than mtime and ctime, or older than a day; written after the last read, not during it.
    #[default]
    Relative,
    Never,
}

#[derive(Clone, Debug)]
pub struct VfsOptions {
    pub atime: AtimePolicy,
    /// Dirty file data in memory over all files; writers wait above it.
    pub max_dirty_bytes: usize,
    /// Dirty data older than this is written back.
    pub dirty_age: Duration,
    /// Data frames on their way to the engine at once.
    pub max_frames: usize,
    /// Orphans of dead clients are looked for this often.
    pub orphan_scan: Duration,
    /// How far a sequential reader is read ahead of, in bytes; 0 turns it off. An open file keeps at most 1 MiB more.
    pub read_ahead_bytes: usize,
    /// What all open files have of it together.
    pub read_ahead_total: usize,
}

impl Default for VfsOptions {
    fn default() -> Self {
        VfsOptions {
            atime: AtimePolicy::default(),
            max_dirty_bytes: 32 << 20,
            dirty_age: Duration::from_secs(1),
            max_frames: 8,
            orphan_scan: Duration::from_secs(10),
            read_ahead_bytes: 4 << 20,
            read_ahead_total: 64 << 20,
        }
    }
}
