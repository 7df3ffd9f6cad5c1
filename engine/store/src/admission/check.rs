//! Is a client's operation well formed? Clients are trusted for user ids, never for structure. Pure.

use bytes::Bytes;
use vellum_base::{Ino, ItemOp, Key, Zone};
use vellum_format::item::{MAX_INLINE, MAX_SYMLINK, PART_BYTES, xattr};
use vellum_format::{Dirent, Extent, ExtentHeader, Inode, ItemError, ItemKind, Orphan};

/// What an operation touches.
#[derive(Debug, PartialEq)]
pub(crate) enum Checked {
    Inode(Ino),
    Extent(Ino, Option<ExtentHeader>),
    Other(Ino),
    Death(Ino),
}

impl Checked {
    pub fn ino(&self) -> Ino {
        match self {
            Checked::Inode(ino) | Checked::Extent(ino, _) | Checked::Other(ino) | Checked::Death(ino) => *ino,
        }
    }
}

/// Keys that an operation names, for the authority: the one it writes, or the inode's.
pub(crate) fn key_of(op: &ItemOp) -> Key {
    match op {
        ItemOp::Put { key, .. } | ItemOp::Delete { key } => *key,
        ItemOp::DeleteInode { ino } => Inode::key(*ino),
    }
}

pub(crate) fn check(op: &ItemOp) -> Result<Checked, String> {
    let (key, value) = match op {
        ItemOp::DeleteInode { ino } if *ino == Ino::NONE => return Err("inode 0 is none".into()),
        ItemOp::DeleteInode { ino } => return Ok(Checked::Death(*ino)),
        ItemOp::Put { key, value } => (key, Some(value)),
        ItemOp::Delete { key } => (key, None),
    };
    let ino = Ino(key.first());
    if ino == Ino::NONE || key.bucket().0 != ino.bucket() {
        return Err("the bucket is not the inode's".into());
    }
    match key.zone() {
        Some(Zone::Orphan) => {
            if key.kind() != ItemKind::Inode as u8 || (key.second(), key.third(), key.fourth()) != (0, 0, 0) {
                return Err("no orphan key".into());
            }
            if let Some(value) = value {
                Orphan::decode(value).map_err(|e| e.to_string())?;
            }
            Ok(Checked::Other(ino))
        }
        Some(Zone::Fs) => check_fs(key, ino, value),
        _ => Err("clients write no such zone".into()),
    }
}

fn check_fs(key: &Key, ino: Ino, value: Option<&Bytes>) -> Result<Checked, String> {
    let kind = ItemKind::from_u8(key.kind()).ok_or("no such kind of item")?;
    let bad = |e: ItemError| e.to_string();
    match (kind, value) {
        (ItemKind::Inode, _) if *key != Inode::key(ino) => return Err("no inode key".into()),
        (ItemKind::Inode, Some(v)) => {
            Inode::decode(v).map_err(bad)?;
        }
        (ItemKind::Inode, None) => return Err("an inode dies as a whole (DeleteInode)".into()),
        (ItemKind::Extent, Some(v)) => {
            let header = Extent::decode_header(v).map_err(bad)?;
            Extent::first_block(key, header.len_blocks).ok_or("the extent begins before the file")?;
            if (key.third(), key.fourth()) != (0, 0) {
                return Err("no extent key".into());
            }
            return Ok(Checked::Extent(ino, Some(header)));
        }
        (ItemKind::Extent, None) => return Ok(Checked::Extent(ino, None)),
        (_, None) => {}
        (ItemKind::Dirent | ItemKind::Readdir | ItemKind::Backref, Some(v)) => {
            Dirent::decode(v).map_err(bad)?;
        }
        (ItemKind::Xattr, Some(v)) if key.fourth() == 0 => {
            xattr::decode_first(v).map_err(bad)?;
        }
        (ItemKind::Xattr, Some(v)) if v.is_empty() || v.len() > PART_BYTES => return Err("no part of an xattr".into()),
        (ItemKind::Symlink, Some(v))
            if v.is_empty() || v.len() > PART_BYTES || usize::from(key.fourth()) >= MAX_SYMLINK / PART_BYTES =>
        {
            return Err("no part of a symlink".into());
        }
        (ItemKind::Inline, Some(v)) if v.len() > MAX_INLINE => return Err("too long for content in an item".into()),
        (ItemKind::Xattr | ItemKind::Symlink | ItemKind::Inline, Some(_)) => {}
    }
    Ok(if kind == ItemKind::Inode { Checked::Inode(ino) } else { Checked::Other(ino) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::{BlockAddr, Bucket};

    fn put(key: Key, value: &[u8]) -> ItemOp {
        ItemOp::Put { key, value: Bytes::copy_from_slice(value) }
    }

    #[test]
    fn only_well_formed_items_of_clients_zones_pass() {
        let ino = Ino(5);
        let inode = Inode { mode: 0o100644, nlink: 1, ..Inode::default() }.encode();
        assert_eq!(check(&put(Inode::key(ino), &inode)), Ok(Checked::Inode(ino)));
        assert!(check(&put(Inode::key(ino), b"x")).is_err());
        assert!(check(&ItemOp::Delete { key: Inode::key(ino) }).is_err());
        for zone in [Zone::Index, Zone::Space, Zone::System] {
            assert!(check(&put(Key::new(Bucket(0), zone, 5, 1, 0, 0, 0), b"")).is_err(), "{zone:?}");
        }
        let strayed = Key::new(Bucket(9), Zone::Fs, 5, ItemKind::Inline as u8, 0, 0, 0);
        assert!(check(&put(strayed, b"")).is_err(), "an item in another inode's bucket");
        let header = ExtentHeader { start: BlockAddr(9), len_blocks: 2, offline: false };
        let extent = Extent { header, checksums: vec![1, 2] }.encode();
        assert_eq!(check(&put(Extent::key(ino, 0, 2), &extent)), Ok(Checked::Extent(ino, Some(header))));
        assert!(check(&put(Extent::key(ino, 0, 1), &extent)).is_err(), "it would begin at block -1");
    }
}
