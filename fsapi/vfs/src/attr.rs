//! Attributes, and what a change does to them by itself.

use vellum_base::Ino;
use vellum_format::{FileKind, Inode, Timestamp};

use crate::error::Result;
use crate::types::Attr;
use crate::vfs::Vfs;

pub(crate) const S_ISUID: u32 = 0o4000;
pub(crate) const S_ISGID: u32 = 0o2000;
pub(crate) const S_IXGRP: u32 = 0o010;
/// Most names of one inode.
pub(crate) const MAX_NLINK: u32 = i32::MAX as u32;

/// The mode after a change of content or owner: setuid goes, setgid goes where it means "run as this group".
pub(crate) fn without_privileges(mode: u32) -> u32 {
    if FileKind::from_mode(mode) != Some(FileKind::Regular) {
        return mode;
    }
    let sgid = if mode & S_IXGRP != 0 { S_ISGID } else { 0 };
    mode & !(S_ISUID | sgid)
}

/// The entries of a directory changed.
pub(crate) fn touch_directory(dir: &mut Inode, now: Timestamp) {
    dir.mtime = now;
    dir.ctime = now;
}

impl Vfs {
    pub async fn getattr(&self, ino: Ino) -> Result<Attr> {
        let held = self.lock_shared(ino).await?;
        let inode = self.inode(&held.guard, ino).await?;
        Ok(self.attr_of(ino, inode))
    }

    /// Committed attributes, with those on top that wait for their data to be written back. The inode's lock is held.
    pub(crate) fn attr_of(&self, ino: Ino, mut inode: Inode) -> Attr {
        let dirty_blocks = self.files.get(ino).map_or(0, |file| file.buffer.borrow().overlay(&mut inode));
        Attr::of(ino, &inode, dirty_blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_go_where_they_are_some() {
        assert_eq!(without_privileges(0o106755), 0o100755);
        assert_eq!(without_privileges(0o102644), 0o102644, "without group execution it is no privilege");
        assert_eq!(without_privileges(0o042755), 0o042755, "a directory's setgid is inheritance");
    }
}
