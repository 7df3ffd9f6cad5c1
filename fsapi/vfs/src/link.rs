//! Hard links.

use vellum_base::Ino;
use vellum_format::{Inode, Orphan};

use crate::attr::MAX_NLINK;
use crate::create::add_name;
use crate::error::{Result, VfsError};
use crate::ino_locks::Mode;
use crate::lookup::check_new_name;
use crate::types::Attr;
use crate::vfs::Vfs;

impl Vfs {
    /// One more name for a file; the first one for a file of [`Vfs::tmpfile`] that is open here.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        check_new_name(name)?;
        if ino == parent {
            return Err(VfsError::PERM);
        }
        self.client.reserve(16).await?;
        let held = self.lock(&[(ino, Mode::Exclusive), (parent, Mode::Exclusive)]).await?;
        let mut dir = self.live_directory(&held.guard, parent).await?;
        if self.find(&held.guard, parent, name).await?.is_some() {
            return Err(VfsError::EXIST);
        }
        let mut inode = self.inode(&held.guard, ino).await?;
        if inode.is_dir() {
            return Err(VfsError::PERM);
        }
        let nameless = self.files.get(ino).filter(|file| inode.nlink == 0 && file.linkable.get());
        if inode.nlink == 0 && nameless.is_none() {
            return Err(VfsError::NOENT);
        }
        if inode.nlink >= MAX_NLINK {
            return Err(VfsError::MLINK);
        }
        let kind = inode.kind().ok_or(VfsError::IO)?;
        let now = Vfs::now();
        inode.nlink += 1;
        inode.ctime = now;
        let mut txn = self.client.begin(&held.guard);
        add_name(&mut txn, parent, &mut dir, ino, kind, name, now);
        txn.put(Inode::key(ino), inode.encode());
        txn.put(Inode::key(parent), dir.encode());
        if nameless.is_some() {
            txn.delete(Orphan::key(ino));
        }
        txn.commit()?;
        if let Some(file) = nameless {
            file.unlinked.set(false);
            file.linkable.set(false);
        }
        Ok(self.attr_of(ino, inode))
    }
}
