//! POSIX over items.
//!
//! A [`Vfs`] turns file operations, named by inode number as FUSE and NFS do, into reads and atomic changes of items
//! under the client's leases. It holds no copy of metadata: items are read through the client's cache each time. What
//! it does hold: open files, and file data that is not written back yet (with the size and times that belong to it).
//!
//! Invariants:
//! - One operation is one transaction, unless it says that it is done in restartable steps (deletion and truncation of
//!   files with very many extents).
//! - Leases are taken first, in ascending order, then the inode locks of this gateway ([`ino_locks`]), in ascending
//!   order; when a lookup under locks shows that others are needed, all are dropped and the operation starts again.
//! - A file's committed size never lies before its extents, and the bytes past its end in its last block are zeros.
//!
//! Not here: permission checks (the kernel does them, or the NFS gateway), the kernel's caches, data waiters.

mod access;
mod acl;
mod attr;
mod create;
mod data;
mod error;
mod file;
mod file_lock;
mod gate;
mod handle;
mod ino_locks;
mod link;
mod lookup;
mod open;
mod orphan;
mod readdir;
mod rename;
mod setattr;
mod statfs;
mod symlink;
mod tmpfile;
mod types;
mod unlink;
mod vfs;
mod xattr;

pub use acl::is_acl;
pub use error::{Result, VfsError};
pub use types::{
    Allocate, AtimePolicy, Attr, Caller, DirEntry, FileHandle, FsStat, OpenFlags, RenameMode, Seek, SetAttr, SetTime,
    VfsOptions,
};
pub use vellum_client::{FILE_LOCK_MAX, FileLock, FileLockMode, FileLockSpace};
pub use vfs::{ReleaseListener, Vfs};
pub use xattr::XattrMode;
