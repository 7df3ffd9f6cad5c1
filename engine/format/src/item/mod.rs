//! Items: what metadata is made of. The table says which key names what.
//!
//! | zone   | kind     | first | second             | third   | fourth | value                               |
//! |--------|----------|-------|--------------------|---------|--------|-------------------------------------|
//! | Fs     | Inode    | ino   | 0                  | 0       | 0      | [`Inode`]                           |
//! | Fs     | Dirent   | dir   | [`name_hash`]      | pos     | 0      | [`Dirent`] (found by name)          |
//! | Fs     | Readdir  | dir   | pos                | 0       | 0      | [`Dirent`] (in creation order)      |
//! | Fs     | Backref  | ino   | dir                | pos     | 0      | [`Dirent`] whose ino is the dir's   |
//! | Fs     | Xattr    | ino   | hash of name       | id      | part   | [`xattr`] parts                     |
//! | Fs     | Symlink  | ino   | 0                  | 0       | part   | target bytes, 1,024 a part          |
//! | Fs     | Inline   | ino   | 0                  | 0       | 0      | file content, up to [`MAX_INLINE`]  |
//! | Fs     | Extent   | ino   | last logical block | 0       | 0      | [`Extent`]                          |
//! | Orphan | Inode    | ino   | 0                  | 0       | 0      | [`Orphan`]                          |
//! | Index  | 0        | index | seq                | ino     | 0      | empty; the index is an [`IndexKind`] |
//! | Space  | Bitmap   | chunk | sub-bitmap index   | 0       | 0      | bitmap, bit set = block in use      |
//! | System | various  |       |                    |         |        | kept by the store                   |
//!
//! Extents are keyed by their last block so that the first key at or after a block is the extent that may cover it.

mod dirent;
mod extent;
mod index;
mod inode;
mod orphan;
pub mod xattr;

use bytes::Bytes;
use thiserror::Error;

pub use dirent::{Dirent, MAX_NAME, name_hash};
pub use extent::{Extent, ExtentHeader, FLAG_OFFLINE, MAX_EXTENT_BLOCKS};
pub use index::IndexKind;
pub use inode::{FileKind, INODE_VERSION, Inode, Timestamp};
pub use orphan::Orphan;

/// An item's value: cheap to clone, may share the memory of the block or the frame that it came in.
pub type Value = Bytes;

/// Longest value of an item in bytes. Whatever is longer is several items.
pub const MAX_VALUE: usize = 2048;
/// Longest file content kept as an item, in bytes.
pub const MAX_INLINE: usize = 1024;
/// Bytes of a symlink's target or an xattr's value in one item.
pub const PART_BYTES: usize = 1024;
/// Longest symlink target in bytes.
pub const MAX_SYMLINK: usize = 4096;
const _: () = assert!(MAX_INLINE <= MAX_VALUE && PART_BYTES + 512 <= MAX_VALUE);

/// Key kinds of [`vellum_base::Zone::Fs`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ItemKind {
    Inode = 1,
    Xattr = 2,
    Dirent = 3,
    Readdir = 4,
    Backref = 5,
    Symlink = 6,
    Inline = 7,
    Extent = 8,
}

impl ItemKind {
    pub fn from_u8(value: u8) -> Option<ItemKind> {
        Some(match value {
            1 => ItemKind::Inode,
            2 => ItemKind::Xattr,
            3 => ItemKind::Dirent,
            4 => ItemKind::Readdir,
            5 => ItemKind::Backref,
            6 => ItemKind::Symlink,
            7 => ItemKind::Inline,
            8 => ItemKind::Extent,
            _ => return None,
        })
    }
}

/// Why a value is not what its key says.
#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum ItemError {
    #[error("{what}: {found} bytes where {expected} were expected")]
    Length { what: &'static str, expected: usize, found: usize },
    #[error("{what}: {found} is no legal value")]
    Value { what: &'static str, found: u64 },
}
