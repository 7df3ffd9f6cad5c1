//! Files that are made without a name (O_TMPFILE), and may get one by a link later.
//!
//! Such a file is an orphan from the beginning: when its maker dies, the cleaner takes it away. A link takes the orphan
//! record back, in the transaction that makes the name.

use vellum_base::Ino;
use vellum_format::{FileKind, Inode, Orphan};

use crate::error::Result;
use crate::ino_locks::Mode;
use crate::types::{Attr, Caller, FileHandle, OpenFlags};
use crate::vfs::Vfs;

impl Vfs {
    /// A new regular file without a name, open; group, mode and ACL as of one made in `dir`. It may be linked while it is
    /// open here.
    pub async fn tmpfile(&self, caller: Caller, dir: Ino, mode: u32, flags: OpenFlags) -> Result<(Attr, FileHandle)> {
        self.client.reserve(16).await?;
        let ino = self.client.alloc_ino(dir, false).await?;
        let held = self.lock(&[(dir, Mode::Shared), (ino, Mode::Exclusive)]).await?;
        let parent = self.live_directory(&held.guard, dir).await?;
        let mode = FileKind::Regular.mode_bits() | (mode & 0o7777);
        let (mut inode, acls) = self.new_inode(&held.guard, (dir, &parent), caller, mode).await?;
        inode.nlink = 0;
        let mut txn = self.client.begin(&held.guard);
        acls.put(&mut txn, ino, &mut inode);
        txn.put(Inode::key(ino), inode.encode());
        txn.put(Orphan::key(ino), self.orphan_record());
        txn.commit()?;
        let file = self.files.get_or_new(ino);
        file.unlinked.set(true);
        file.linkable.set(true);
        self.client.inode_opened(&held.guard, ino);
        let handle = self.handles.add(file, flags);
        Ok((Attr::of(ino, &inode, 0), handle))
    }
}
