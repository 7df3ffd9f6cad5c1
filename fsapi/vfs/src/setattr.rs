//! chmod, chown, utimens, truncate.

use vellum_base::Ino;
use vellum_format::{FileKind, Inode, Timestamp};

use crate::acl::ACCESS;
use crate::attr::without_privileges;
use crate::error::{Result, VfsError, restarted};
use crate::types::{Attr, SetAttr, SetTime};
use crate::vfs::Vfs;
use crate::xattr::put_xattr;

/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

impl Vfs {
    /// Changes all that is asked for at once; answers the attributes afterwards.
    pub async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr> {
        restarted(async || self.setattr_once(ino, &set).await).await
    }

    async fn setattr_once(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.client.reserve(crate::data::truncate::DELETE_STEP * 2).await?;
        let held = self.lock_exclusive(ino).await?;
        let inode = self.inode(&held.guard, ino).await?;
        let now = Vfs::now();
        if let Some(size) = set.size {
            match inode.kind() {
                Some(FileKind::Regular) => {}
                Some(FileKind::Directory) => return Err(VfsError::ISDIR),
                _ => return Err(VfsError::INVAL),
            }
            self.resize(&held.guard, ino, |inode| apply(inode, set, now), size, now).await?;
        }
        let chowned = set.uid.is_some() || set.gid.is_some();
        let mut inode = self.inode(&held.guard, ino).await?;
        let capability = if chowned || set.kill_privileges {
            self.capability_keys(&held.guard, ino, &inode).await?
        } else {
            Vec::new()
        };
        let acl = match set.mode {
            Some(mode) => self.acl_after_chmod(&held.guard, ino, &inode, mode).await?,
            None => None,
        };
        let times = set.atime.is_some() || set.mtime.is_some();
        if set.size.is_none() || times || !capability.is_empty() || acl.is_some() {
            apply(&mut inode, set, now);
            let mtime = set.mtime.map(|t| resolve(t, now));
            inode.mtime = mtime.unwrap_or(inode.mtime);
            inode.ctime = now;
            let mut txn = self.client.begin(&held.guard);
            capability.into_iter().for_each(|key| txn.delete(key));
            if let Some((old, acl)) = acl {
                put_xattr(&mut txn, ino, &mut inode, &old, ACCESS, &acl.encode());
            }
            txn.put(Inode::key(ino), inode.encode());
            txn.commit()?;
            if let (Some(file), Some(mtime)) = (self.files.get(ino), mtime) {
                file.buffer.borrow_mut().set_mtime(mtime);
            }
        }
        Ok(self.attr_of(ino, inode))
    }
}

fn resolve(time: SetTime, now: Timestamp) -> Timestamp {
    match time {
        SetTime::Now => now,
        SetTime::To(time) => time,
    }
}

/// Everything but size and mtime.
fn apply(inode: &mut Inode, set: &SetAttr, now: Timestamp) {
    if set.uid.is_some() || set.gid.is_some() || set.kill_privileges {
        inode.mode = without_privileges(inode.mode);
    }
    if let Some(mode) = set.mode {
        inode.mode = (inode.mode & !PERMISSIONS) | (mode & PERMISSIONS);
    }
    inode.uid = set.uid.unwrap_or(inode.uid);
    inode.gid = set.gid.unwrap_or(inode.gid);
    inode.atime = set.atime.map_or(inode.atime, |t| resolve(t, now));
}
