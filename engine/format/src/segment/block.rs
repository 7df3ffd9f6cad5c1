//! The frame of every block in a segment: header, payload, padding to whole 4 KiB.

use thiserror::Error;
use vellum_base::{BLOCK_SIZE, SegmentId, crc32c_seeded};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "VSK1", little-endian.
pub const MAGIC: u32 = 0x314b_5356;
pub const VERSION: u8 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum BlockKind {
    Data = 1,
    Tombstones = 2,
    Filter = 3,
    Index = 4,
    Footer = 5,
}

impl BlockKind {
    fn from_u8(value: u8) -> Option<BlockKind> {
        Some(match value {
            1 => BlockKind::Data,
            2 => BlockKind::Tombstones,
            3 => BlockKind::Filter,
            4 => BlockKind::Index,
            5 => BlockKind::Footer,
            _ => return None,
        })
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskHeader {
    magic: U32,
    /// Of everything after this field to the end of the block, padding included; seeded with segment id and offset.
    crc: U32,
    kind: u8,
    version: u8,
    len_blocks: U16,
    payload_len: U32,
}

pub const HEADER_LEN: usize = size_of::<DiskHeader>();
const _: () = assert!(HEADER_LEN == 16);
/// The checksum begins here.
pub const CRC_FROM: usize = std::mem::offset_of!(DiskHeader, kind);
/// Longest block. An index of a large segment is the longest that occurs.
pub const MAX_BLOCK_BYTES: usize = u16::MAX as usize * BLOCK_SIZE;

/// Why a block is not what its parent says.
#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum BlockError {
    #[error("magic {found:#010x} where {expected:#010x} was expected")]
    Magic { expected: u32, found: u32 },
    #[error("checksum {found:#010x} where {expected:#010x} was expected")]
    Checksum { expected: u32, found: u32 },
    #[error("{what} {found} where {expected} was expected")]
    Field { what: &'static str, expected: u64, found: u64 },
    /// The checksum holds and the content makes no sense: written wrong.
    #[error("malformed entry at byte {at}")]
    Malformed { at: usize },
}

/// Block length, in bytes, for a payload.
pub fn block_len(payload_len: usize) -> usize {
    (HEADER_LEN + payload_len).next_multiple_of(BLOCK_SIZE)
}

/// Writes the header in front of a payload that stands at `block[HEADER_LEN..]` already; the rest must be zeros, and may be
/// longer than it has to be. Answers the checksum.
pub fn seal(block: &mut [u8], kind: BlockKind, payload_len: usize, segment: SegmentId, at_bytes: u64) -> u32 {
    assert!(block.len() >= block_len(payload_len) && block.len().is_multiple_of(BLOCK_SIZE));
    assert!(block.len() <= MAX_BLOCK_BYTES);
    let mut header = DiskHeader {
        magic: U32::new(MAGIC),
        crc: U32::new(0),
        kind: kind as u8,
        version: VERSION,
        len_blocks: U16::new((block.len() / BLOCK_SIZE) as u16),
        payload_len: U32::new(payload_len as u32),
    };
    block[..HEADER_LEN].copy_from_slice(header.as_bytes());
    let crc = crc32c_seeded(segment.0, at_bytes, &block[CRC_FROM..]);
    header.crc = U32::new(crc);
    block[..HEADER_LEN].copy_from_slice(header.as_bytes());
    crc
}

/// Length in bytes that the block at the start of `bytes` claims; not verified. For readers of a sequence of blocks.
pub fn claimed_len(bytes: &[u8]) -> Option<usize> {
    let (header, _) = DiskHeader::ref_from_prefix(bytes).ok()?;
    let len = usize::from(header.len_blocks.get()) * BLOCK_SIZE;
    (header.magic.get() == MAGIC && len > 0).then_some(len)
}

/// Verifies a whole block and answers its kind and payload.
pub fn open(block: &[u8], segment: SegmentId, at_bytes: u64) -> Result<(BlockKind, &[u8]), BlockError> {
    let field = |what, expected, found| BlockError::Field { what, expected, found };
    let (header, _) =
        DiskHeader::ref_from_prefix(block).map_err(|_| field("block length", HEADER_LEN as u64, block.len() as u64))?;
    if header.magic.get() != MAGIC {
        return Err(BlockError::Magic { expected: MAGIC, found: header.magic.get() });
    }
    let expected = header.crc.get();
    let found = crc32c_seeded(segment.0, at_bytes, block.get(CRC_FROM..).unwrap_or_default());
    if expected != found {
        return Err(BlockError::Checksum { expected, found });
    }
    if header.version != VERSION {
        return Err(field("block version", VERSION.into(), header.version.into()));
    }
    let len = usize::from(header.len_blocks.get()) * BLOCK_SIZE;
    if len != block.len() {
        return Err(field("block length", block.len() as u64, len as u64));
    }
    let payload_len = header.payload_len.get() as usize;
    let payload = block.get(HEADER_LEN..).and_then(|rest| rest.get(..payload_len)).ok_or(field(
        "payload length",
        block.len() as u64,
        payload_len as u64,
    ))?;
    let kind = BlockKind::from_u8(header.kind).ok_or(field("block kind", 0, header.kind.into()))?;
    Ok((kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_wrong_place_is_found() {
        let mut block = vec![0u8; block_len(100)];
        block[HEADER_LEN..HEADER_LEN + 100].fill(7);
        seal(&mut block, BlockKind::Data, 100, SegmentId(5), 8192);
        assert_eq!(open(&block, SegmentId(5), 8192).unwrap(), (BlockKind::Data, &[7u8; 100][..]));
        assert_eq!(claimed_len(&block), Some(4096));
        assert!(open(&block, SegmentId(6), 8192).is_err());
        assert!(open(&block, SegmentId(5), 4096).is_err());
        assert!(open(&[], SegmentId(5), 8192).is_err());
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&block, SegmentId(5), 8192).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
