//! Plain structs that a [`crate::Filesystem`] is asked with and answers with. No wire layout here.

use std::fmt;
use std::time::Duration;

use vellum_base::DmaSlice;

/// A positive errno.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident),*) => {
        impl Errno { $(pub const $name: Errno = Errno(libc::$name);)* }
        impl fmt::Debug for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self { $(Errno::$name => f.write_str(stringify!($name)),)* Errno(n) => write!(f, "errno {n}") }
            }
        }
    };
}
errnos!(
    EPERM,
    ENOENT,
    EINTR,
    EIO,
    ENXIO,
    EBADF,
    EAGAIN,
    ENOMEM,
    EACCES,
    EBUSY,
    EEXIST,
    EXDEV,
    ENODEV,
    ENOTDIR,
    EISDIR,
    EINVAL,
    EFBIG,
    ENOSPC,
    EROFS,
    EMLINK,
    ERANGE,
    ENAMETOOLONG,
    ENOSYS,
    ENOTEMPTY,
    ELOOP,
    ENODATA,
    EPROTO,
    EOVERFLOW,
    EOPNOTSUPP,
    ENOTTY,
    ESTALE,
    EDQUOT,
    E2BIG,
    ENOTCONN,
    ECONNABORTED
);

/// Seconds (since 1970) and nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time {
    pub secs: i64,
    pub nanos: u32,
}

/// `mode` holds the type bits; `blocks` counts 512-byte units; `rdev` is the kernel's 32-bit encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    /// When it was made, if the filesystem knows.
    pub crtime: Option<Time>,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
}

/// An answered name. The kernel counts one lookup for it and gives it back by `forget`, unless `nodeid` is 0: that is
/// a negative entry, remembered for `entry_ttl`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// What the kernel calls the inode in requests, and is told of it by; applications see `attr.ino`.
    pub nodeid: u64,
    pub attr: Attr,
    pub generation: u64,
    pub entry_ttl: Duration,
    pub attr_ttl: Duration,
}

/// A time to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    Now,
    At(Time),
}

/// What to change. `kill_suidgid`: clear setuid, and setgid when group-executable, and file capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub ctime: Option<Time>,
    pub fh: Option<u64>,
    pub lock_owner: Option<u64>,
    pub kill_suidgid: bool,
}

/// `flags` of open(2); `kill_suidgid` comes with O_TRUNC when the session negotiated atomic truncation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenRequest {
    pub flags: u32,
    pub kill_suidgid: bool,
}

/// How the kernel shall treat an open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Opened {
    pub fh: u64,
    pub direct_io: bool,
    /// Keep what the page cache holds of this file from before.
    pub keep_cache: bool,
    /// Directories: the kernel may cache the listing.
    pub cache_dir: bool,
    /// No FLUSH at close.
    pub no_flush: bool,
    pub parallel_direct_writes: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadRequest {
    pub fh: u64,
    pub offset: u64,
    pub size: u32,
    /// Current flags of the open file.
    pub flags: u32,
    pub lock_owner: Option<u64>,
}

/// `data` starts at a block boundary of its buffer, so whole blocks of it can go to a device as they are.
#[derive(Clone, Debug)]
pub struct WriteRequest {
    pub fh: u64,
    pub offset: u64,
    pub data: DmaSlice,
    /// Current flags of the open file.
    pub flags: u32,
    /// From the kernel's page cache (writeback or mmap): `fh` is a guess and the writer is unknown.
    pub from_cache: bool,
    pub kill_suidgid: bool,
    pub lock_owner: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReleaseRequest {
    pub fh: u64,
    pub flags: u32,
    pub flush: bool,
    pub flock_unlock: bool,
    pub lock_owner: u64,
}

/// `end` is inclusive; `kind` is F_RDLCK, F_WRLCK or F_UNLCK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileLockRange {
    pub start: u64,
    pub end: u64,
    pub kind: i32,
    pub pid: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockRequest {
    pub fh: u64,
    pub owner: u64,
    pub lock: FileLockRange,
    /// flock(2), not fcntl(2).
    pub flock: bool,
    /// SETLKW: wait for it.
    pub wait: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyRequest {
    pub fh_in: u64,
    pub offset_in: u64,
    pub ino_out: u64,
    pub fh_out: u64,
    pub offset_out: u64,
    pub len: u64,
    pub flags: u64,
}

/// Sizes in blocks of `bsize` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statfs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
}

/// Bytes of a reply behind its fixed part; never copied on the way to the kernel.
#[derive(Clone, Debug, Default)]
pub enum Payload {
    #[default]
    None,
    Bytes(Vec<u8>),
    Slice(DmaSlice),
    Slices(Vec<DmaSlice>),
}

impl Payload {
    pub fn len(&self) -> usize {
        match self {
            Payload::None => 0,
            Payload::Bytes(bytes) => bytes.len(),
            Payload::Slice(slice) => slice.len(),
            Payload::Slices(slices) => slices.iter().map(|s| s.len()).sum(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
