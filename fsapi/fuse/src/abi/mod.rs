//! The FUSE kernel ABI, protocol 7.31 to 7.45, as the kernel's `include/uapi/linux/fuse.h` states it.
//!
//! Everything is host-endian: the other end is the kernel of the same machine. Structs of requests (`*In`) are in
//! [`request`], those of replies and notifications (`*Out`) in [`reply`]; each asserts its size at compile time.
//! Only what Vellum uses is here: no CUSE, no DAX mappings, no passthrough.

mod flags;
mod opcode;
mod reply;
mod request;

pub use flags::*;
pub use opcode::Opcode;
pub use reply::*;
pub use request::*;

/// Major protocol version; the kernel has spoken 7 since 2007.
pub const KERNEL_VERSION: u32 = 7;
/// The newest minor version whose structs are known here (Linux 6.18).
pub const KERNEL_MINOR_VERSION: u32 = 45;
/// The oldest minor version that is served (Linux 5.4): older ones have other struct sizes.
pub const OLDEST_MINOR_VERSION: u32 = 31;
/// Node id of the root directory.
pub const ROOT_ID: u64 = 1;
/// The kernel refuses reads of /dev/fuse into less than this.
pub const MIN_READ_BUFFER: usize = 8192;
/// Set in `unique` of an INTERRUPT's own header; the rest is the interrupted request's `unique`.
pub const INTERRUPT_REQUEST_BIT: u64 = 1;

/// Codes of unsolicited messages to the kernel (`unique` 0, the code in the `error` field).
pub mod notify {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
    pub const DELETE: i32 = 6;
    pub const INC_EPOCH: i32 = 8;
    /// First minor version with [`INC_EPOCH`].
    pub const INC_EPOCH_SINCE_MINOR: u32 = 44;
    pub const PRUNE: i32 = 9;
    /// First minor version with [`PRUNE`] (Linux 6.18).
    pub const PRUNE_SINCE_MINOR: u32 = 45;
}

/// Directory entries are padded to this.
pub const DIRENT_ALIGN: usize = 8;

macro_rules! sizes {
    ($($name:ty = $size:literal),* $(,)?) => { $(const _: () = assert!(size_of::<$name>() == $size);)* };
}
pub(crate) use sizes;
