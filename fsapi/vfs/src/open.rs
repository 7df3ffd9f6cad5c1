//! Opening and closing.

use vellum_base::Ino;
use vellum_format::{FileKind, Inode, Timestamp};

use crate::error::{Result, VfsError, restarted};
use crate::handle::Handle;
use crate::ino_locks::Mode;
use crate::types::{AtimePolicy, Attr, FileHandle, OpenFlags};
use crate::vfs::Vfs;

const DAY_SECS: i64 = 24 * 60 * 60;

impl Vfs {
    pub async fn open(&self, ino: Ino, flags: OpenFlags) -> Result<(FileHandle, Attr)> {
        restarted(async || self.open_once(ino, flags).await).await
    }

    async fn open_once(&self, ino: Ino, flags: OpenFlags) -> Result<(FileHandle, Attr)> {
        let truncate = flags.truncate && flags.write;
        if truncate {
            self.client.reserve(crate::data::truncate::DELETE_STEP * 2).await?;
        }
        let mode = if truncate { Mode::Exclusive } else { Mode::Shared };
        let held = self.lock(&[(ino, mode)]).await?;
        let inode = self.inode(&held.guard, ino).await?;
        match inode.kind() {
            Some(FileKind::Regular) => {}
            Some(FileKind::Directory) => return Err(VfsError::ISDIR),
            Some(FileKind::Symlink) => return Err(VfsError::LOOP),
            _ => return Err(VfsError::NXIO), // the kernel opens pipes and devices itself
        }
        if truncate {
            self.resize(&held.guard, ino, |_| (), 0, Vfs::now()).await?;
        }
        let inode = self.inode(&held.guard, ino).await?;
        let file = self.files.get_or_new(ino);
        self.client.inode_opened(&held.guard, ino);
        if inode.nlink == 0 {
            file.unlinked.set(true);
        }
        let handle = self.handles.add(file, flags);
        Ok((handle, self.attr_of(ino, inode)))
    }

    /// Keeps an inode alive until [`Vfs::release`], as an open descriptor would: for a caller that is about to use what it
    /// has just looked up. Not for directories.
    pub async fn pin(&self, ino: Ino) -> Result<FileHandle> {
        let held = self.lock_shared(ino).await?;
        if self.inode(&held.guard, ino).await?.is_dir() {
            return Err(VfsError::ISDIR);
        }
        let file = self.files.get_or_new(ino);
        self.client.inode_opened(&held.guard, ino);
        Ok(self.handles.add(file, OpenFlags::default()))
    }

    /// The last use of a handle. What was written stays in memory until its turn comes.
    pub async fn release(&self, handle: FileHandle) -> Result<()> {
        self.handles.get(handle)?.read_ahead.stop().await;
        let handle = self.handles.remove(handle)?;
        let file = handle.file.clone();
        if file.opens.get() == 0 {
            self.last_closed(&file);
        }
        let tells = self.options.atime == AtimePolicy::Relative && !self.client.is_read_only();
        if tells && !file.unlinked.get() && handle.was_read.get() {
            self.update_atime(&handle).await;
        }
        self.files.forget_if_idle(&file);
        Ok(())
    }

    /// Errors are nobody's: the reader has what it came for.
    async fn update_atime(&self, handle: &Handle) {
        let now = Vfs::now();
        let done = async {
            {
                let held = self.lock_shared(handle.ino).await?;
                let mut inode = self.inode(&held.guard, handle.ino).await?;
                handle.file.buffer.borrow().overlay(&mut inode);
                if !is_due(&inode, now) {
                    return Ok(());
                }
            }
            self.client.reserve(2).await?;
            let held = self.lock_exclusive(handle.ino).await?;
            let mut inode = self.inode(&held.guard, handle.ino).await?;
            inode.atime = inode.atime.max(now);
            let mut txn = self.client.begin(&held.guard);
            txn.put(Inode::key(handle.ino), inode.encode());
            txn.commit()?;
            Ok::<(), VfsError>(())
        };
        if let Err(error) = done.await
            && error != VfsError::STALE
        {
            tracing::debug!(ino = %handle.ino, %error, "access time");
        }
    }

    /// Whether a handle of this inode is open here, or content of it is not written back.
    pub fn is_open(&self, ino: Ino) -> bool {
        self.files.get(ino).is_some()
    }

    pub fn open_handles(&self) -> usize {
        self.handles.len()
    }

    /// Files that are open or have content in memory.
    pub fn known_files(&self) -> usize {
        self.files.len()
    }
}

/// Relative access times: not newer than the last change, or old.
fn is_due(inode: &Inode, now: Timestamp) -> bool {
    inode.atime <= inode.mtime || inode.atime <= inode.ctime || now.secs - inode.atime.secs > DAY_SECS
}
