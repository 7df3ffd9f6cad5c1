//! What applications hold of files: advisory locks, and open inodes that outlive their names.

mod locks;
mod opens;

pub(crate) use locks::FileLocks;
pub(crate) use opens::OpenInodes;
