//! Extents of file data, with the checksum of every block beside the place of it.

use bytes::{BufMut, Bytes, BytesMut};
use vellum_base::{BlockAddr, BlockRange, Ino, Key};

use super::{ItemError, ItemKind};

/// Most blocks one extent item describes: 1 MiB, the largest data frame.
pub const MAX_EXTENT_BLOCKS: u32 = 256;
const _: () = assert!(Extent::HEADER + 4 * MAX_EXTENT_BLOCKS as usize <= super::MAX_VALUE);

/// What an extent says besides its checksums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtentHeader {
    /// First block on the device; none when offline.
    pub start: BlockAddr,
    pub len_blocks: u32,
    /// The content is in the archive only.
    pub offline: bool,
}

impl ExtentHeader {
    /// The device blocks that this extent holds; `None` when offline.
    pub fn blocks(&self) -> Option<BlockRange> {
        (!self.offline).then_some(BlockRange { start: self.start, len_blocks: self.len_blocks })
    }
}

/// ```text
///  0        8          12      16
///  | start  | len      | flags | crc32c of block 0 | of block 1 ...    integers LE
/// ```
/// Offline extents have no checksums. A block's checksum covers all 4,096 bytes, zeros past the file's end included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    pub header: ExtentHeader,
    pub checksums: Vec<u32>,
}

/// The extent's content is in the archive only.
pub const FLAG_OFFLINE: u32 = 1;

impl Extent {
    pub const HEADER: usize = 16;

    /// Key of the extent that covers `len_blocks` logical blocks of the file from `first_block`.
    pub fn key(ino: Ino, first_block: u64, len_blocks: u32) -> Key {
        Key::fs(ino, ItemKind::Extent as u8, first_block + u64::from(len_blocks) - 1, 0, 0)
    }

    /// Where to begin a scan for the extent that covers `block`.
    pub fn seek_key(ino: Ino, block: u64) -> Key {
        Key::fs(ino, ItemKind::Extent as u8, block, 0, 0)
    }

    /// First logical block, from the key and the length. `None` when the two contradict each other.
    pub fn first_block(key: &Key, len_blocks: u32) -> Option<u64> {
        key.second().checked_add(1)?.checked_sub(u64::from(len_blocks))
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(Self::HEADER + 4 * self.checksums.len());
        out.put_u64_le(self.header.start.0);
        out.put_u32_le(self.header.len_blocks);
        out.put_u32_le(if self.header.offline { FLAG_OFFLINE } else { 0 });
        for c in &self.checksums {
            out.put_u32_le(*c);
        }
        out.freeze()
    }

    pub fn decode(value: &[u8]) -> Result<Extent, ItemError> {
        let header = Self::decode_header(value)?;
        let checksums = value[Self::HEADER..].chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        Ok(Extent { header, checksums: checksums.collect() })
    }

    /// The header alone, with the value's length checked against it.
    pub fn decode_header(value: &[u8]) -> Result<ExtentHeader, ItemError> {
        let short = ItemError::Length { what: "extent", expected: Self::HEADER, found: value.len() };
        let (Some(start), Some(len), Some(flags)) = (value.first_chunk::<8>(), value.get(8..12), value.get(12..16))
        else {
            return Err(short);
        };
        let u32_of = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let (start, len_blocks, flags) = (u64::from_le_bytes(*start), u32_of(len), u32_of(flags));
        if flags > FLAG_OFFLINE {
            return Err(ItemError::Value { what: "extent flags", found: flags.into() });
        }
        let offline = flags & FLAG_OFFLINE != 0;
        if len_blocks == 0 || (!offline && len_blocks > MAX_EXTENT_BLOCKS) {
            return Err(ItemError::Value { what: "extent length", found: len_blocks.into() });
        }
        if (start == 0) != offline {
            return Err(ItemError::Value { what: "extent start", found: start });
        }
        // Not by the bound of addresses: in clients, content that has no place yet has addresses beyond it.
        if start.checked_add(u64::from(len_blocks)).is_none() {
            return Err(ItemError::Value { what: "extent start", found: start });
        }
        let expected = Self::HEADER + if offline { 0 } else { 4 * len_blocks as usize };
        if value.len() != expected {
            return Err(ItemError::Length { what: "extent", expected, found: value.len() });
        }
        Ok(ExtentHeader { start: BlockAddr(start), len_blocks, offline })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_survives_its_encoding_and_its_key_gives_its_place() {
        let e = Extent {
            header: ExtentHeader { start: BlockAddr(9), len_blocks: 3, offline: false },
            checksums: vec![1, 2, 3],
        };
        assert_eq!(Extent::decode(&e.encode()), Ok(e));
        let key = Extent::key(Ino(5), 10, 3);
        assert!(Extent::seek_key(Ino(5), 12) <= key && Extent::seek_key(Ino(5), 13) > key);
        assert_eq!(Extent::first_block(&key, 3), Some(10));
        assert_eq!(Extent::first_block(&key, 14), None);
    }

    #[test]
    fn contradictions_are_refused() {
        let good =
            Extent { header: ExtentHeader { start: BlockAddr(9), len_blocks: 1, offline: false }, checksums: vec![1] };
        let with = |at: usize, byte: u8| {
            let mut v = good.encode().to_vec();
            v[at] = byte;
            Extent::decode(&v)
        };
        assert!(with(8, 2).is_err() && with(8, 0).is_err() && with(12, 1).is_err() && with(12, 2).is_err());
        assert!(with(0, 0).is_err());
        assert!(Extent::decode(&[1; 15]).is_err());
    }
}
