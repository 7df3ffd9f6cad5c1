//! Extended attributes.

use bytes::{Bytes, BytesMut};
use vellum_base::{Ino, Key, KeyRange};
use vellum_client::{LockGuard, Txn};
use vellum_format::item::MAX_NAME;
use vellum_format::item::xattr::{self, FirstPart, MAX_XATTR};
use vellum_format::{Inode, ItemKind};

use crate::acl::is_acl;
use crate::error::{Result, VfsError, broken, corrupt};
use crate::vfs::Vfs;

const CAPABILITY: &[u8] = b"security.capability";
const PAGE: usize = 64;

/// What setxattr expects of an attribute of that name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XattrMode {
    #[default]
    Set,
    /// EEXIST when it is there.
    Create,
    /// ENODATA when it is not.
    Replace,
}

/// An attribute as it is: its id and its first part.
pub(crate) type OldXattr = Option<(u64, FirstPart)>;

/// Puts the parts of a value, and deletes those of the old one that it does not need. The inode is the caller's to put.
pub(crate) fn put_xattr(txn: &mut Txn<'_>, ino: Ino, inode: &mut Inode, old: &OldXattr, name: &[u8], value: &[u8]) {
    let id = old.as_ref().map_or(inode.next_xattr_id, |(id, _)| *id);
    let parts = xattr::encode(name, value);
    for part in parts.len()..old.as_ref().map_or(0, |(_, first)| first.parts()) {
        txn.delete(xattr::key(ino, name, id, part as u8));
    }
    for (part, bytes) in parts.into_iter().enumerate() {
        txn.put(xattr::key(ino, name, id, part as u8), bytes);
    }
    inode.next_xattr_id += u64::from(old.is_none());
}

pub(crate) fn delete_xattr(txn: &mut Txn<'_>, ino: Ino, name: &[u8], (id, first): &(u64, FirstPart)) {
    for part in 0..first.parts() {
        txn.delete(xattr::key(ino, name, *id, part as u8));
    }
}

fn check_xattr_name(name: &[u8]) -> Result<()> {
    match name.len() {
        0 => Err(VfsError::INVAL),
        1..=MAX_NAME => Ok(()),
        _ => Err(VfsError::RANGE),
    }
}

impl Vfs {
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes> {
        check_xattr_name(name)?;
        let held = self.lock_shared(ino).await?;
        let inode = self.inode(&held.guard, ino).await?;
        self.xattr_value(&held.guard, ino, &inode, name).await?.ok_or(VfsError::NODATA)
    }

    pub(crate) async fn xattr_value(
        &self,
        guard: &LockGuard,
        ino: Ino,
        inode: &Inode,
        name: &[u8],
    ) -> Result<Option<Bytes>> {
        let Some((id, first)) = self.find_xattr(guard, ino, inode, name).await? else { return Ok(None) };
        if first.parts() == 1 {
            return Ok(Some(first.value));
        }
        let keys: Vec<_> = (1..first.parts()).map(|part| xattr::key(ino, name, id, part as u8)).collect();
        let parts = self.client.get_many(guard, &keys).await?;
        let mut value = BytesMut::with_capacity(first.value_len);
        value.extend_from_slice(&first.value);
        parts.iter().flatten().for_each(|part| value.extend_from_slice(part));
        if value.len() != first.value_len {
            return Err(broken(ino, "an extended attribute lacks a part of its value"));
        }
        Ok(Some(value.freeze()))
    }

    pub async fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        check_xattr_name(name)?;
        if value.len() > MAX_XATTR {
            return Err(VfsError::TOOBIG);
        }
        if is_acl(name) {
            return self.set_acl(ino, name, Some(value), false).await;
        }
        self.client.reserve(160).await?;
        let held = self.lock_exclusive(ino).await?;
        let mut inode = self.inode(&held.guard, ino).await?;
        let old = self.find_xattr(&held.guard, ino, &inode, name).await?;
        match (&old, mode) {
            (Some(_), XattrMode::Create) => return Err(VfsError::EXIST),
            (None, XattrMode::Replace) => return Err(VfsError::NODATA),
            _ => {}
        }
        let mut txn = self.client.begin(&held.guard);
        put_xattr(&mut txn, ino, &mut inode, &old, name, value);
        inode.ctime = Vfs::now();
        txn.put(Inode::key(ino), inode.encode());
        txn.commit()?;
        Ok(())
    }

    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        check_xattr_name(name)?;
        if is_acl(name) {
            return self.set_acl(ino, name, None, false).await;
        }
        self.client.reserve(80).await?;
        let held = self.lock_exclusive(ino).await?;
        let mut inode = self.inode(&held.guard, ino).await?;
        let old = self.find_xattr(&held.guard, ino, &inode, name).await?.ok_or(VfsError::NODATA)?;
        let mut txn = self.client.begin(&held.guard);
        delete_xattr(&mut txn, ino, name, &old);
        inode.ctime = Vfs::now();
        txn.put(Inode::key(ino), inode.encode());
        txn.commit()?;
        Ok(())
    }

    /// The names, in no particular order.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>> {
        let held = self.lock_shared(ino).await?;
        let inode = self.inode(&held.guard, ino).await?;
        if inode.next_xattr_id == 0 {
            return Ok(Vec::new());
        }
        let mut range = KeyRange {
            first: Key::fs(ino, ItemKind::Xattr as u8, 0, 0, 0),
            last: Key::fs(ino, ItemKind::Xattr as u8, u64::MAX, u64::MAX, u8::MAX),
        };
        let mut names = Vec::new();
        loop {
            let page = self.client.scan(&held.guard, range, PAGE).await?;
            for (_, value) in page.items.iter().filter(|(key, _)| key.fourth() == 0) {
                names.push(xattr::decode_first(value).map_err(|e| corrupt(ino, e))?.name);
            }
            match page.next {
                Some(next) => range.first = next,
                None => return Ok(names),
            }
        }
    }

    pub(crate) async fn find_xattr(&self, guard: &LockGuard, ino: Ino, inode: &Inode, name: &[u8]) -> Result<OldXattr> {
        if inode.next_xattr_id == 0 {
            return Ok(None); // it never had one
        }
        let mut range = KeyRange { first: xattr::key(ino, name, 0, 0), last: xattr::key(ino, name, u64::MAX, u8::MAX) };
        loop {
            let page = self.client.scan(guard, range, PAGE).await?;
            for (key, value) in page.items.iter().filter(|(key, _)| key.fourth() == 0) {
                let first = xattr::decode_first(value).map_err(|e| corrupt(ino, e))?;
                if first.name == name {
                    return Ok(Some((key.third(), first)));
                }
            }
            match page.next {
                Some(next) => range.first = next,
                None => return Ok(None),
            }
        }
    }

    /// The items of the file's capabilities; none when it has none.
    pub(crate) async fn capability_keys(&self, guard: &LockGuard, ino: Ino, inode: &Inode) -> Result<Vec<Key>> {
        let found = self.find_xattr(guard, ino, inode, CAPABILITY).await?;
        let keys = |(id, first): (u64, FirstPart)| {
            (0..first.parts()).map(|part| xattr::key(ino, CAPABILITY, id, part as u8)).collect()
        };
        Ok(found.map_or_else(Vec::new, keys))
    }
}
