//! From a name to an inode.

use vellum_base::Ino;
use vellum_format::{Dirent, item::MAX_NAME};

use crate::access::Held;
use crate::error::{Result, VfsError, broken};
use crate::ino_locks::Mode;
use crate::types::Attr;
use crate::vfs::Vfs;

/// A name that vanishes between two looks is looked for again this often; then something is broken.
const RETRIES: usize = 100;

/// What a name must be to stand in a directory.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    match name {
        [] => Err(VfsError::NOENT),
        _ if name.len() > MAX_NAME => Err(VfsError::NAMETOOLONG),
        _ if name.contains(&b'/') || name.contains(&0) => Err(VfsError::INVAL),
        _ => Ok(()),
    }
}

/// As [`check_name`], for a name that is to be made.
pub(crate) fn check_new_name(name: &[u8]) -> Result<()> {
    check_name(name)?;
    if name == b"." || name == b".." { Err(VfsError::EXIST) } else { Ok(()) }
}

impl Vfs {
    /// The inode of `name` in `dir`. The directory's lock is given up before the inode's is taken, as the two may be
    /// leased to different clients; an inode that dies in between is looked for again by its name.
    pub async fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        for _ in 0..RETRIES {
            let held = self.lock_shared(dir).await?;
            self.directory(&held.guard, dir).await?;
            let ino = match name {
                b"." => dir,
                b".." => self.parent_of(&held.guard, dir).await?,
                _ => self.find(&held.guard, dir, name).await?.ok_or(VfsError::NOENT)?.ino,
            };
            drop(held);
            match self.getattr(ino).await {
                Err(VfsError::STALE) => continue,
                other => return other,
            }
        }
        Err(broken(dir, "an entry names an inode that does not exist"))
    }

    /// Locks a directory and the inode that `name` names in it, exclusively, besides `others`.
    pub(crate) async fn lock_named(&self, dir: Ino, name: &[u8]) -> Result<(Held, Dirent)> {
        let mut child = Ino::NONE;
        loop {
            let held = self.lock(&[(dir, Mode::Exclusive), (child, Mode::Exclusive)]).await?;
            self.directory(&held.guard, dir).await?;
            let dirent = self.find(&held.guard, dir, name).await?.ok_or(VfsError::NOENT)?;
            if dirent.ino == child {
                return Ok((held, dirent));
            }
            child = dirent.ino;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(check_name(b""), Err(VfsError::NOENT));
        assert_eq!(check_name(&[b'a'; 255]), Ok(()));
        assert_eq!(check_name(&[b'a'; 256]), Err(VfsError::NAMETOOLONG));
        assert_eq!(check_name(b"a/b"), Err(VfsError::INVAL));
        assert_eq!(check_new_name(b".."), Err(VfsError::EXIST));
    }
}
