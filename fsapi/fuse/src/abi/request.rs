//! What the kernel sends: the header, and one struct per opcode that has one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::sizes;

macro_rules! request {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty,)* })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $ty,)* }
    )* };
}

request! {
    /// Before every request. `len` counts the header; `pid` is the calling thread's id, 0 when it is in no namespace of ours.
    InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
    }
    /// The first 16 bytes of INIT; kernels before 7.36 send no more.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// The rest of INIT, when `init::INIT_EXT` is offered.
    InitExtIn { flags2: u32, unused: [u32; 11], }
    ForgetIn { nlookup: u64, }
    BatchForgetIn { count: u32, dummy: u32, }
    ForgetOne { nodeid: u64, nlookup: u64, }
    GetattrIn { getattr_flags: u32, dummy: u32, fh: u64, }
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32, }
    MkdirIn { mode: u32, umask: u32, }
    RenameIn { newdir: u64, }
    Rename2In { newdir: u64, flags: u32, padding: u32, }
    LinkIn { oldnodeid: u64, }
    OpenIn { flags: u32, open_flags: u32, }
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32, }
    /// With `init::SETXATTR_EXT`; without it only the first 8 bytes are sent.
    SetxattrIn { size: u32, flags: u32, setxattr_flags: u32, padding: u32, }
    SetxattrCompatIn { size: u32, flags: u32, }
    GetxattrIn { size: u32, padding: u32, }
    LkIn { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32, }
    /// Also the reply's content.
    FileLock { start: u64, end: u64, kind: u32, pid: u32, }
    AccessIn { mask: u32, padding: u32, }
    InterruptIn { unique: u64, }
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32, }
    CopyFileRangeIn { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64, }
    SyncfsIn { padding: u64, }
    StatxIn { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32, }
}

sizes! {
    InHeader = 40, InitIn = 16, InitExtIn = 48, ForgetIn = 8, BatchForgetIn = 8, ForgetOne = 16, GetattrIn = 16,
    SetattrIn = 88, MknodIn = 16, MkdirIn = 8, RenameIn = 8, Rename2In = 16, LinkIn = 8, OpenIn = 8, CreateIn = 16,
    ReleaseIn = 24, FlushIn = 24, ReadIn = 40, WriteIn = 40, FsyncIn = 16, SetxattrIn = 16, SetxattrCompatIn = 8,
    GetxattrIn = 8, LkIn = 48, FileLock = 24, AccessIn = 8, InterruptIn = 8, FallocateIn = 32, LseekIn = 24,
    CopyFileRangeIn = 56, SyncfsIn = 8, StatxIn = 24,
}
