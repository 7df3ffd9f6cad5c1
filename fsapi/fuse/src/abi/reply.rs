//! What the kernel is told: the header of replies and notifications, and their fixed parts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{FileLock, sizes};

macro_rules! reply {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty,)* })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $ty,)* }
    )* };
}

reply! {
    /// Before every reply; `error` is 0 or a negative errno. In a notification `unique` is 0 and `error` is its code.
    OutHeader { len: u32, error: i32, unique: u64, }
    AttrWire {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// `nodeid` 0 is a negative entry, cached for `entry_valid`.
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: AttrWire,
    }
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: AttrWire, }
    SxTime { secs: i64, nanos: u32, reserved: i32, }
    /// `mask`: the STATX_* bits of what is valid.
    StatxWire {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare: u16, ino: u64,
        size: u64, blocks: u64, attributes_mask: u64, atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    StatxOut { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: StatxWire, }
    OpenOut { fh: u64, open_flags: u32, padding: u32, }
    WriteOut { size: u32, padding: u32, }
    /// `spare` pads to the size that the kernel expects.
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    GetxattrOut { size: u32, padding: u32, }
    LkOut { lk: FileLock, }
    LseekOut { offset: u64, }
    CopyFileRangeOut { bytes_copied: u64, }
    /// `max_stack_depth` since 7.40, `request_timeout` (seconds) since 7.43; zeros before.
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    /// A directory entry, followed by the name and padding to 8 bytes.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32, }
    NotifyInvalInodeOut { ino: u64, off: i64, len: i64, }
    /// Followed by the name and one NUL.
    NotifyInvalEntryOut { parent: u64, namelen: u32, flags: u32, }
    /// Followed by the name and one NUL.
    NotifyDeleteOut { parent: u64, child: u64, namelen: u32, padding: u32, }
    /// Followed by `count` node ids.
    NotifyPruneOut { count: u32, padding: u32, spare: u64, }
}

sizes! {
    OutHeader = 16, AttrWire = 88, EntryOut = 128, AttrOut = 104, SxTime = 16, StatxWire = 256, StatxOut = 288, OpenOut = 16, WriteOut = 8, StatfsOut = 80,
    GetxattrOut = 8, LkOut = 24, LseekOut = 8, CopyFileRangeOut = 8, InitOut = 64, Dirent = 24,
    NotifyInvalInodeOut = 24, NotifyInvalEntryOut = 16, NotifyDeleteOut = 24, NotifyPruneOut = 16,
}
