//! The inode item.

use bytes::Bytes;
use vellum_base::{Ino, Key};
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ItemError, ItemKind};

/// Nanosecond time since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Timestamp {
    pub secs: i64,
    pub nanos: u32,
}

/// The type bits of a mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum FileKind {
    Fifo = 1,
    CharDevice = 2,
    Directory = 4,
    BlockDevice = 6,
    Regular = 8,
    Symlink = 10,
    Socket = 12,
}

impl FileKind {
    /// From `st_mode`, whose bits 12..16 are the `DT_*` values of readdir(3).
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        FileKind::from_dtype((mode >> 12) as u8 & 0xf)
    }

    pub fn from_dtype(value: u8) -> Option<FileKind> {
        Some(match value {
            1 => FileKind::Fifo,
            2 => FileKind::CharDevice,
            4 => FileKind::Directory,
            6 => FileKind::BlockDevice,
            8 => FileKind::Regular,
            10 => FileKind::Symlink,
            12 => FileKind::Socket,
            _ => return None,
        })
    }

    /// The type bits for `st_mode`.
    pub fn mode_bits(self) -> u32 {
        u32::from(self as u8) << 12
    }
}

/// An inode in memory. `meta_seq` and `data_seq` are stamped by the engine whatever a client puts there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inode {
    /// Bytes; for a directory the number of its entries.
    pub size: u64,
    /// `st_mode`: type and permission bits.
    pub mode: u32,
    /// Names of it; for a directory 2 + its subdirectories. 0 means orphan.
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding.
    pub rdev: u32,
    pub flags: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub crtime: Timestamp,
    /// Epoch of the last change of metadata or data.
    pub meta_seq: u64,
    /// Epoch of the last change of content.
    pub data_seq: u64,
    /// Grows with every change of content or size; the client counts it.
    pub data_version: u64,
    /// Blocks of 4 KiB that hold content on the device.
    pub online_blocks: u64,
    /// Blocks of 4 KiB whose content an archive holds.
    pub offline_blocks: u64,
    /// A directory's next readdir position, never reused; an inode's next xattr id.
    pub next_pos: u64,
    pub next_xattr_id: u64,
    pub project: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskTime {
    secs: I64,
    nanos: U32,
}

/// Version of the durable inode.
pub const INODE_VERSION: u32 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskInode {
    version: U32,
    mode: U32,
    nlink: U32,
    uid: U32,
    gid: U32,
    rdev: U32,
    flags: U32,
    atime: DiskTime,
    mtime: DiskTime,
    ctime: DiskTime,
    crtime: DiskTime,
    reserved: U32,
    size: U64,
    meta_seq: U64,
    data_seq: U64,
    data_version: U64,
    online_blocks: U64,
    offline_blocks: U64,
    next_pos: U64,
    next_xattr_id: U64,
    project: U64,
}
const _: () = assert!(size_of::<DiskInode>() == Inode::LEN);

/// Offsets of the two stamped fields within the value, so that the engine stamps without decoding the rest.
const META_SEQ_AT: usize = std::mem::offset_of!(DiskInode, meta_seq);
const DATA_SEQ_AT: usize = std::mem::offset_of!(DiskInode, data_seq);

impl From<Timestamp> for DiskTime {
    fn from(t: Timestamp) -> Self {
        DiskTime { secs: I64::new(t.secs), nanos: U32::new(t.nanos) }
    }
}

impl From<DiskTime> for Timestamp {
    fn from(t: DiskTime) -> Self {
        Timestamp { secs: t.secs.get(), nanos: t.nanos.get() }
    }
}

impl Inode {
    pub const LEN: usize = 152;

    pub fn key(ino: Ino) -> Key {
        Key::fs(ino, ItemKind::Inode as u8, 0, 0, 0)
    }

    pub fn kind(&self) -> Option<FileKind> {
        FileKind::from_mode(self.mode)
    }

    pub fn is_dir(&self) -> bool {
        self.kind() == Some(FileKind::Directory)
    }

    pub fn encode(&self) -> Bytes {
        let disk = DiskInode {
            version: U32::new(INODE_VERSION),
            mode: U32::new(self.mode),
            nlink: U32::new(self.nlink),
            uid: U32::new(self.uid),
            gid: U32::new(self.gid),
            rdev: U32::new(self.rdev),
            flags: U32::new(self.flags),
            atime: self.atime.into(),
            mtime: self.mtime.into(),
            ctime: self.ctime.into(),
            crtime: self.crtime.into(),
            reserved: U32::new(0),
            size: U64::new(self.size),
            meta_seq: U64::new(self.meta_seq),
            data_seq: U64::new(self.data_seq),
            data_version: U64::new(self.data_version),
            online_blocks: U64::new(self.online_blocks),
            offline_blocks: U64::new(self.offline_blocks),
            next_pos: U64::new(self.next_pos),
            next_xattr_id: U64::new(self.next_xattr_id),
            project: U64::new(self.project),
        };
        Bytes::copy_from_slice(disk.as_bytes())
    }

    pub fn decode(value: &[u8]) -> Result<Inode, ItemError> {
        let d = DiskInode::ref_from_bytes(value).map_err(|_| ItemError::Length {
            what: "inode",
            expected: Inode::LEN,
            found: value.len(),
        })?;
        if d.version.get() != INODE_VERSION {
            return Err(ItemError::Value { what: "inode version", found: d.version.get().into() });
        }
        if FileKind::from_mode(d.mode.get()).is_none() {
            return Err(ItemError::Value { what: "inode mode", found: d.mode.get().into() });
        }
        Ok(Inode {
            size: d.size.get(),
            mode: d.mode.get(),
            nlink: d.nlink.get(),
            uid: d.uid.get(),
            gid: d.gid.get(),
            rdev: d.rdev.get(),
            flags: d.flags.get(),
            atime: d.atime.into(),
            mtime: d.mtime.into(),
            ctime: d.ctime.into(),
            crtime: d.crtime.into(),
            meta_seq: d.meta_seq.get(),
            data_seq: d.data_seq.get(),
            data_version: d.data_version.get(),
            online_blocks: d.online_blocks.get(),
            offline_blocks: d.offline_blocks.get(),
            next_pos: d.next_pos.get(),
            next_xattr_id: d.next_xattr_id.get(),
            project: d.project.get(),
        })
    }

    /// Writes the engine's sequences into an encoded inode. `value` must be one (checked by [`Inode::decode`] before).
    pub fn stamp(value: &mut [u8], meta_seq: u64, data_seq: u64) {
        value[META_SEQ_AT..META_SEQ_AT + 8].copy_from_slice(&meta_seq.to_le_bytes());
        value[DATA_SEQ_AT..DATA_SEQ_AT + 8].copy_from_slice(&data_seq.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Inode {
        Inode {
            size: 1,
            mode: 0o100644,
            nlink: 2,
            uid: 3,
            gid: 4,
            rdev: 5,
            flags: 6,
            atime: Timestamp { secs: -7, nanos: 8 },
            mtime: Timestamp { secs: 9, nanos: 10 },
            ctime: Timestamp { secs: 11, nanos: 12 },
            crtime: Timestamp { secs: 13, nanos: 14 },
            meta_seq: 15,
            data_seq: 16,
            data_version: 17,
            online_blocks: 18,
            offline_blocks: 19,
            next_pos: 20,
            next_xattr_id: 21,
            project: 22,
        }
    }

    #[test]
    fn an_inode_survives_its_encoding_and_is_stamped_in_place() {
        let mut value = sample().encode().to_vec();
        assert_eq!(Inode::decode(&value), Ok(sample()));
        Inode::stamp(&mut value, 100, 200);
        assert_eq!(Inode::decode(&value), Ok(Inode { meta_seq: 100, data_seq: 200, ..sample() }));
    }

    #[test]
    fn bytes_that_are_no_inode_are_refused() {
        assert!(matches!(Inode::decode(&[0; 3]), Err(ItemError::Length { .. })));
        let mut value = sample().encode().to_vec();
        value[0] = 9;
        assert!(matches!(Inode::decode(&value), Err(ItemError::Value { what: "inode version", .. })));
        let no_kind = Inode { mode: 0o644, ..sample() }.encode();
        assert!(matches!(Inode::decode(&no_kind), Err(ItemError::Value { what: "inode mode", .. })));
    }
}
