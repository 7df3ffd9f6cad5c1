//! Directory entries, kept three ways: by name hash, by position, and as a backref at the inode that they name.

use bytes::{BufMut, Bytes, BytesMut};
use vellum_base::{Ino, Key, crc32c, crc32c_seeded};

use super::{FileKind, ItemError, ItemKind};

/// Longest name in bytes.
pub const MAX_NAME: usize = 255;

/// 64-bit hash under which an entry is found by name. Names that collide are told apart by position and comparison.
pub fn name_hash(name: &[u8]) -> u64 {
    (u64::from(crc32c(name)) << 32) | u64::from(crc32c_seeded(0x7665_6c6c_756d, name.len() as u64, name))
}

/// One name. In a backref `ino` is the directory's.
///
/// ```text
///  0       8       16     17
///  | ino   | pos   | kind | name ...        integers LE
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dirent {
    pub ino: Ino,
    /// Position in readdir order: grows with creation, never reused within the directory.
    pub pos: u64,
    pub kind: FileKind,
    pub name: Bytes,
}

impl Dirent {
    const HEADER: usize = 17;

    pub fn key_by_name(dir: Ino, name: &[u8], pos: u64) -> Key {
        Key::fs(dir, ItemKind::Dirent as u8, name_hash(name), pos, 0)
    }

    pub fn key_by_pos(dir: Ino, pos: u64) -> Key {
        Key::fs(dir, ItemKind::Readdir as u8, pos, 0, 0)
    }

    pub fn key_backref(ino: Ino, dir: Ino, pos: u64) -> Key {
        Key::fs(ino, ItemKind::Backref as u8, dir.0, pos, 0)
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(Self::HEADER + self.name.len());
        out.put_u64_le(self.ino.0);
        out.put_u64_le(self.pos);
        out.put_u8(self.kind as u8);
        out.put_slice(&self.name);
        out.freeze()
    }

    /// Shares the value's memory for the name.
    pub fn decode(value: &Bytes) -> Result<Dirent, ItemError> {
        let name_len = value.len().wrapping_sub(Self::HEADER);
        if name_len == 0 || name_len > MAX_NAME {
            return Err(ItemError::Length { what: "dirent", expected: Self::HEADER + 1, found: value.len() });
        }
        let u64_at = |at: usize| value[at..at + 8].iter().rev().fold(0u64, |acc, b| (acc << 8) | u64::from(*b));
        let kind =
            FileKind::from_dtype(value[16]).ok_or(ItemError::Value { what: "dirent kind", found: value[16].into() })?;
        Ok(Dirent { ino: Ino(u64_at(0)), pos: u64_at(8), kind, name: value.slice(Self::HEADER..) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dirent_survives_its_encoding() {
        let d = Dirent { ino: Ino(77), pos: 1 << 40, kind: FileKind::Regular, name: Bytes::from_static(b"name") };
        assert_eq!(Dirent::decode(&d.encode()), Ok(d));
    }

    #[test]
    fn short_long_and_typeless_values_are_refused() {
        for len in [0, 17, 17 + 256] {
            assert!(Dirent::decode(&Bytes::from(vec![8; len])).is_err(), "{len}");
        }
        assert!(Dirent::decode(&Bytes::from(vec![3; 30])).is_err());
    }
}
