//! Symbolic links.

use bytes::{Bytes, BytesMut};
use vellum_base::Ino;
use vellum_format::FileKind;
use vellum_format::item::{MAX_SYMLINK, PART_BYTES};

use crate::create::symlink_key;
use crate::error::{Result, VfsError, broken};
use crate::types::{Attr, Caller};
use crate::vfs::Vfs;

impl Vfs {
    pub async fn symlink(&self, caller: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        match target.len() {
            0 => Err(VfsError::NOENT),
            // PATH_MAX counts the terminating zero.
            MAX_SYMLINK.. => Err(VfsError::NAMETOOLONG),
            _ => self.make_symlink(caller, parent, name, target).await,
        }
    }

    pub async fn readlink(&self, ino: Ino) -> Result<Bytes> {
        let held = self.lock_shared(ino).await?;
        let inode = self.inode(&held.guard, ino).await?;
        if inode.kind() != Some(FileKind::Symlink) {
            return Err(VfsError::INVAL);
        }
        let parts = inode.size.min(MAX_SYMLINK as u64).div_ceil(PART_BYTES as u64) as u8;
        let keys: Vec<_> = (0..parts).map(|part| symlink_key(ino, part)).collect();
        let values = self.client.get_many(&held.guard, &keys).await?;
        let mut target = BytesMut::with_capacity(inode.size as usize);
        values.iter().flatten().for_each(|part| target.extend_from_slice(part));
        if target.len() as u64 != inode.size {
            return Err(broken(ino, "a symlink lacks a part of its target"));
        }
        Ok(target.freeze())
    }
}
