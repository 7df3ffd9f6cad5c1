//! POSIX access control lists.
//!
//! They are kept as extended attributes in the kernel's own layout (`system.posix_acl_access`, `system.posix_acl_default`),
//! and checked by the kernel. What is done here is what the kernel leaves to a filesystem: mode bits and ACL say the same
//! after each change of one of them, and what is made in a directory inherits its default ACL. Source: IEEE 1003.1e draft
//! 17, sections 5 and 23; Linux `fs/posix_acl.c`.
//!
//! ```text
//!  0           4       6        8     12
//!  | version 2 | tag 0 | perm 0 | id 0 | tag 1 ...      integers LE; id is u32::MAX where the tag has none
//! ```

use vellum_base::Ino;
use vellum_client::{LockGuard, Txn};
use vellum_format::{FileKind, Inode};

use crate::attr::S_ISGID;
use crate::error::{Result, VfsError};
use crate::vfs::Vfs;
use crate::xattr::{OldXattr, delete_xattr, put_xattr};

pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;
/// Longest ACL in bytes: what the kernel's FUSE client takes (one page).
const MAX_LEN: usize = 4096;
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// Invariant: entries in the order of their tags; one owner, one owning group, one of all others; a mask when there are
/// named users or groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Acl(Vec<Entry>);

/// True for the two attributes that are access control lists.
pub fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

impl Acl {
    pub fn decode(value: &[u8]) -> Result<Acl> {
        if value.len() > MAX_LEN {
            return Err(VfsError::TOOBIG);
        }
        let version = value.first_chunk::<HEADER>().map(|b| u32::from_le_bytes(*b));
        if version.is_some_and(|v| v != VERSION) {
            return Err(VfsError::NOTSUP);
        }
        let body = value.get(HEADER..).filter(|b| b.len().is_multiple_of(ENTRY)).ok_or(VfsError::INVAL)?;
        let entries = body.chunks_exact(ENTRY).map(|e| Entry {
            tag: u16::from_le_bytes([e[0], e[1]]),
            perm: u16::from_le_bytes([e[2], e[3]]),
            id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
        });
        let acl = Acl(entries.collect());
        if acl.is_valid() { Ok(acl) } else { Err(VfsError::INVAL) }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for e in &self.0 {
            let id = if matches!(e.tag, USER | GROUP) { e.id } else { NO_ID };
            out.extend([e.tag.to_le_bytes(), e.perm.to_le_bytes()].as_flattened());
            out.extend(id.to_le_bytes());
        }
        out
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|e| e.tag == tag).count();
        let known = self.0.iter().all(|e| [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(&e.tag));
        let named = count(USER) + count(GROUP) > 0;
        known
            && self.0.is_sorted_by_key(|e| e.tag)
            && self.0.iter().all(|e| e.perm <= 7 && (e.id != NO_ID || !matches!(e.tag, USER | GROUP)))
            && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1)
            && count(MASK) <= 1
            && (!named || count(MASK) == 1)
    }

    fn perm(&self, tag: u16) -> Option<u32> {
        self.0.iter().find(|e| e.tag == tag).map(|e| u32::from(e.perm))
    }

    fn perm_mut(&mut self, tag: u16) -> Option<&mut u16> {
        self.0.iter_mut().find(|e| e.tag == tag).map(|e| &mut e.perm)
    }

    /// The permission bits of a mode: the group's are the mask's when there is one.
    pub fn mode_bits(&self) -> u32 {
        let perm = |tag| self.perm(tag).unwrap_or_default();
        perm(USER_OBJ) << 6 | self.perm(MASK).unwrap_or_else(|| perm(GROUP_OBJ)) << 3 | perm(OTHER)
    }

    /// It says no more than a mode can.
    pub fn is_mode(&self) -> bool {
        self.0.len() == 3
    }

    /// After a chmod.
    pub fn set_mode(&mut self, mode: u32) {
        let group = if self.perm(MASK).is_some() { MASK } else { GROUP_OBJ };
        for (tag, shift) in [(USER_OBJ, 6), (group, 3), (OTHER, 0)] {
            if let Some(perm) = self.perm_mut(tag) {
                *perm = (mode >> shift & 7) as u16;
            }
        }
    }

    /// The access ACL of something made with `mode` under this default ACL: what both allow.
    pub fn inherited(&self, mode: u32) -> Acl {
        let mut acl = self.clone();
        acl.set_mode(self.mode_bits() & mode);
        acl
    }
}

/// What something new gets from its directory besides the mode.
#[derive(Default)]
pub(crate) struct Inherited {
    pub access: Option<Acl>,
    pub default: Option<Acl>,
}

impl Inherited {
    /// The extended attributes of a new inode.
    pub fn put(&self, txn: &mut Txn<'_>, ino: Ino, inode: &mut Inode) {
        for (name, acl) in [(ACCESS, &self.access), (DEFAULT, &self.default)] {
            if let Some(acl) = acl {
                put_xattr(txn, ino, inode, &None, name, &acl.encode());
            }
        }
    }
}

impl Vfs {
    /// What an inode of `kind` made in a directory inherits, and its mode: `mode` without what the default ACL does not
    /// allow, or without the umask's bits when there is none.
    pub(crate) async fn inherit_acl(
        &self,
        guard: &LockGuard,
        (dir_ino, dir): (Ino, &Inode),
        mode: u32,
        umask: u32,
    ) -> Result<(u32, Inherited)> {
        let kind = FileKind::from_mode(mode);
        if kind == Some(FileKind::Symlink) {
            return Ok((mode, Inherited::default()));
        }
        let Some(value) = self.xattr_value(guard, dir_ino, dir, DEFAULT).await? else {
            return Ok((mode & !(umask & 0o777), Inherited::default()));
        };
        let default = Acl::decode(&value)?;
        let access = default.inherited(mode);
        let mode = mode & !0o777 | access.mode_bits();
        let access = (!access.is_mode()).then_some(access);
        Ok((mode, Inherited { access, default: (kind == Some(FileKind::Directory)).then_some(default) }))
    }

    /// Sets an ACL (`None` takes it away), and the mode with it. `kill_sgid`: the caller may not keep the setgid bit.
    pub async fn set_acl(&self, ino: Ino, name: &[u8], value: Option<&[u8]>, kill_sgid: bool) -> Result<()> {
        let acl = value.map(Acl::decode).transpose()?;
        self.client.reserve(160).await?;
        let held = self.lock_exclusive(ino).await?;
        let mut inode = self.inode(&held.guard, ino).await?;
        match inode.kind() {
            Some(FileKind::Symlink) | None => return Err(VfsError::NOTSUP),
            Some(FileKind::Directory) => {}
            Some(_) if name == DEFAULT => return if acl.is_some() { Err(VfsError::ACCES) } else { Ok(()) },
            Some(_) => {}
        }
        let old = self.find_xattr(&held.guard, ino, &inode, name).await?;
        let mut kept = acl;
        if name == ACCESS
            && let Some(acl) = &kept
        {
            inode.mode = inode.mode & !0o777 | acl.mode_bits();
            if kill_sgid {
                inode.mode &= !S_ISGID;
            }
            if acl.is_mode() {
                kept = None;
            }
        }
        inode.ctime = Vfs::now();
        let mut txn = self.client.begin(&held.guard);
        self.write_acl(&mut txn, ino, &mut inode, name, &old, kept.as_ref());
        txn.put(Inode::key(ino), inode.encode());
        txn.commit()?;
        Ok(())
    }

    fn write_acl(
        &self,
        txn: &mut Txn<'_>,
        ino: Ino,
        inode: &mut Inode,
        name: &[u8],
        old: &OldXattr,
        acl: Option<&Acl>,
    ) {
        match (acl, old) {
            (Some(acl), _) => put_xattr(txn, ino, inode, old, name, &acl.encode()),
            (None, Some(old)) => delete_xattr(txn, ino, name, old),
            (None, None) => {}
        }
    }

    /// The access ACL as it must be after the inode's mode was set; `None` when there is none.
    pub(crate) async fn acl_after_chmod(
        &self,
        guard: &LockGuard,
        ino: Ino,
        inode: &Inode,
        mode: u32,
    ) -> Result<Option<(OldXattr, Acl)>> {
        let Some(value) = self.xattr_value(guard, ino, inode, ACCESS).await? else { return Ok(None) };
        let mut acl = Acl::decode(&value)?;
        acl.set_mode(mode);
        Ok(Some((self.find_xattr(guard, ino, inode, ACCESS).await?, acl)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect())
    }

    fn named() -> Acl {
        acl(&[(USER_OBJ, 7, NO_ID), (USER, 6, 1000), (GROUP_OBJ, 5, NO_ID), (MASK, 6, NO_ID), (OTHER, 4, NO_ID)])
    }

    #[test]
    fn an_acl_survives_its_encoding() {
        assert_eq!(Acl::decode(&named().encode()), Ok(named()));
        assert_eq!(named().mode_bits(), 0o764);
        assert!(!named().is_mode());
    }

    #[test]
    fn what_is_no_acl_is_refused() {
        let owner = (USER_OBJ, 7, NO_ID);
        let (group, other) = ((GROUP_OBJ, 5, NO_ID), (OTHER, 4, NO_ID));
        let bad = [
            acl(&[owner, group]),
            acl(&[owner, owner, group, other]),
            acl(&[owner, (USER, 6, 1000), group, other]),
            acl(&[owner, other, group]),
            acl(&[(USER_OBJ, 8, NO_ID), group, other]),
            acl(&[owner, group, (3, 0, NO_ID), other]),
        ];
        for acl in bad {
            assert_eq!(Acl::decode(&acl.encode()), Err(VfsError::INVAL), "{acl:?}");
        }
        assert_eq!(Acl::decode(&[1, 0, 0, 0]), Err(VfsError::NOTSUP));
        assert_eq!(Acl::decode(&[2, 0, 0]), Err(VfsError::INVAL));
        assert_eq!(Acl::decode(&[2, 0, 0, 0, 1]), Err(VfsError::INVAL));
    }

    #[test]
    fn any_bytes_are_an_acl_or_refused() {
        let mut prng = vellum_base::prng::Prng::new(1);
        let (mut accepted, legal) = (0, named().encode());
        for _ in 0..50_000 {
            let mut bytes = legal.clone();
            for _ in 0..=prng.below(2) {
                let at = prng.below(bytes.len() as u64) as usize;
                let most = if prng.one_in(2) { 9 } else { 256 };
                bytes[at] = prng.below(most) as u8;
            }
            bytes.truncate(legal.len() - prng.below(3) as usize * prng.below(9) as usize);
            if let Ok(acl) = Acl::decode(&bytes) {
                assert_eq!(Acl::decode(&acl.encode()).unwrap().mode_bits(), acl.mode_bits());
                accepted += 1;
            }
        }
        assert!((500..45_000).contains(&accepted), "{accepted}");
    }

    #[test]
    fn the_mask_stands_for_the_group() {
        let mut changed = named();
        changed.set_mode(0o710);
        assert_eq!(changed.perm(MASK), Some(1));
        assert_eq!(changed.perm(GROUP_OBJ), Some(5));
        assert_eq!(changed.mode_bits(), 0o710);
        let made = named().inherited(0o640);
        assert_eq!((made.mode_bits(), made.perm(GROUP_OBJ)), (0o640, Some(5)));
    }
}
