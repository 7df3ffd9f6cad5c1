//! Taking names away, and what becomes of an inode that has none left.
//!
//! The last name takes a file that nobody has open along in the same transaction, when its extents fit one. Otherwise the
//! inode becomes an orphan (`nlink` 0 and an orphan record), and is deleted later: see [`crate::orphan`].

use vellum_base::{Ino, Key};
use vellum_client::{LockGuard, Txn};
use vellum_format::{FileKind, Inode, Orphan, Timestamp};

use crate::attr::touch_directory;
use crate::create::remove_name;
use crate::data::truncate::DELETE_STEP;
use crate::data::writeback::HoldFlights;
use crate::error::{Result, VfsError, restarted};
use crate::lookup::check_name;
use crate::vfs::Vfs;

/// How an inode without names ends.
pub(crate) enum Death {
    /// With these extents, in the same transaction.
    Now { ino: Ino, extents: Vec<Key>, hold: Option<HoldFlights> },
    /// It is open, here or perhaps elsewhere, or too large for one transaction.
    Later { ino: Ino, open: bool },
}

impl Vfs {
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        check_name(name)?;
        if matches!(name, b"." | b"..") {
            return Err(VfsError::ISDIR);
        }
        restarted(async || self.unlink_once(parent, name).await).await
    }

    async fn unlink_once(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.client.reserve(DELETE_STEP + 16).await?;
        let (held, dirent) = self.lock_named(parent, name).await?;
        if dirent.kind == FileKind::Directory {
            return Err(VfsError::ISDIR);
        }
        let mut inode = self.inode(&held.guard, dirent.ino).await?;
        let death = if inode.nlink <= 1 { Some(self.prepare_death(&held.guard, dirent.ino).await?) } else { None };
        if death.is_some() {
            inode = self.inode(&held.guard, dirent.ino).await?; // flights may have landed
        }
        let mut dir = self.directory(&held.guard, parent).await?;
        let now = Vfs::now();
        dir.size = dir.size.saturating_sub(1);
        touch_directory(&mut dir, now);
        let mut txn = self.client.begin(&held.guard);
        remove_name(&mut txn, parent, &dirent);
        txn.put(Inode::key(parent), dir.encode());
        match &death {
            Some(death) => self.write_death(&mut txn, death, &mut inode, now),
            None => {
                inode.nlink -= 1;
                inode.ctime = now;
                txn.put(Inode::key(dirent.ino), inode.encode());
            }
        }
        txn.commit()?;
        drop(held);
        if let Some(death) = death {
            self.finish_death(death);
        }
        Ok(())
    }

    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        check_name(name)?;
        match name {
            b"." => return Err(VfsError::INVAL),
            b".." => return Err(VfsError::NOTEMPTY),
            _ => {}
        }
        self.client.reserve(16).await?;
        let (held, dirent) = self.lock_named(parent, name).await?;
        if dirent.kind != FileKind::Directory {
            return Err(VfsError::NOTDIR);
        }
        let inode = self.inode(&held.guard, dirent.ino).await?;
        if inode.size > 0 {
            return Err(VfsError::NOTEMPTY);
        }
        let mut dir = self.directory(&held.guard, parent).await?;
        dir.size = dir.size.saturating_sub(1);
        dir.nlink = dir.nlink.saturating_sub(1);
        touch_directory(&mut dir, Vfs::now());
        let mut txn = self.client.begin(&held.guard);
        remove_name(&mut txn, parent, &dirent);
        txn.put(Inode::key(parent), dir.encode());
        txn.delete_inode(dirent.ino);
        txn.commit()?;
        Ok(())
    }

    /// Decides how the inode will end. Its exclusive lock is held until [`Vfs::write_death`] is committed.
    pub(crate) async fn prepare_death(&self, guard: &LockGuard, ino: Ino) -> Result<Death> {
        let mut hold = None;
        if let Some(file) = self.files.get(ino) {
            if file.opens.get() > 0 {
                return Ok(Death::Later { ino, open: true });
            }
            // What flies is committed first: only blocks that an extent had are freed.
            hold = Some(self.quiesce(guard, &file).await);
        }
        if self.client.may_be_open_elsewhere(guard, ino) {
            return Ok(Death::Later { ino, open: false });
        }
        let inode = self.inode(guard, ino).await?;
        if inode.online_blocks + inode.offline_blocks == 0 {
            return Ok(Death::Now { ino, extents: Vec::new(), hold });
        }
        let extents: Vec<Key> = self.extent_page(guard, ino, 0).await?.iter().map(|m| m.key(ino)).collect();
        if extents.len() >= DELETE_STEP {
            return Ok(Death::Later { ino, open: false });
        }
        Ok(Death::Now { ino, extents, hold })
    }

    pub(crate) fn write_death(&self, txn: &mut Txn<'_>, death: &Death, inode: &mut Inode, now: Timestamp) {
        match death {
            Death::Now { ino, extents, .. } => {
                extents.iter().for_each(|key| txn.delete(*key));
                txn.delete_inode(*ino);
            }
            Death::Later { ino, .. } => {
                inode.nlink = 0;
                inode.ctime = now;
                txn.put(Inode::key(*ino), inode.encode());
                txn.put(Orphan::key(*ino), self.orphan_record());
            }
        }
    }

    /// After the commit.
    pub(crate) fn finish_death(&self, death: Death) {
        match death {
            Death::Now { hold, .. } => {
                if let Some(hold) = hold {
                    let file = hold.0.clone();
                    self.drop_dirty_from(&file, 0);
                    drop(hold);
                    self.files.forget_if_idle(&file);
                }
            }
            Death::Later { ino, open } => {
                if open && let Some(file) = self.files.get(ino).filter(|f| f.opens.get() > 0) {
                    file.unlinked.set(true);
                } else {
                    self.reap_later(ino);
                }
            }
        }
    }
}
