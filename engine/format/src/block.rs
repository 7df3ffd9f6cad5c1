//! The header in front of every structure that the store writes as whole blocks (superblock, manifest record, log part,
//! seal), and its verification.
//!
//! ```text
//!  0      4       8      10        12         16      24     32           40
//!  | crc  | magic | kind | version | body_len | addr  | fsid | generation | body ... zeros to the block's end
//! ```
//! The crc is seeded with the structure's own address and the fsid's first half, and covers everything after itself,
//! padding included: a block of another filesystem, at another place, or with one flipped bit does not verify.
//! `generation` is the structure's term (log, seal) or generation (manifest, superblock).

use thiserror::Error;
use vellum_base::{BLOCK_SIZE, BlockAddr, Fsid, crc32c_seeded};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "VLLM", little-endian.
pub const MAGIC: u32 = 0x4d4c_4c56;

/// What a block belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u16)]
pub enum BlockKind {
    Superblock = 1,
    Manifest = 2,
    Part = 3,
    Seal = 4,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskHeader {
    crc: U32,
    magic: U32,
    kind: U16,
    version: U16,
    body_len: U32,
    addr: U64,
    fsid: U64,
    generation: U64,
}
const _: () = assert!(size_of::<DiskHeader>() == BLOCK_HEADER);

/// Bytes of the header.
pub const BLOCK_HEADER: usize = 40;

/// What a verified header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHeader {
    pub body_len: usize,
    pub generation: u64,
}

/// Why a block is not what was expected at its place.
#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum BlockError {
    #[error("{kind:?} at {addr}: magic is {found:#x}")]
    Magic { kind: BlockKind, addr: BlockAddr, found: u32 },
    #[error("{kind:?} at {addr}: block kind is {found}")]
    Kind { kind: BlockKind, addr: BlockAddr, found: u16 },
    #[error("{kind:?} at {addr}: version {found} is not {expected}; a newer vellum wrote it?")]
    Version { kind: BlockKind, addr: BlockAddr, expected: u16, found: u16 },
    #[error("{kind:?} at {addr}: it says that it lies at block {found}")]
    Address { kind: BlockKind, addr: BlockAddr, found: u64 },
    #[error("{kind:?} at {addr}: it belongs to another filesystem")]
    Fsid { kind: BlockKind, addr: BlockAddr },
    #[error("{kind:?} at {addr}: {found} bytes of body do not fit")]
    Length { kind: BlockKind, addr: BlockAddr, found: usize },
    #[error("{kind:?} at {addr}: checksum is {found:#010x}, expected {expected:#010x}")]
    Checksum { kind: BlockKind, addr: BlockAddr, expected: u32, found: u32 },
    #[error("{kind:?} at {addr}: {what}")]
    Content { kind: BlockKind, addr: BlockAddr, what: String },
}

/// The half of the fsid that blocks carry.
pub fn fsid_tag(fsid: &Fsid) -> u64 {
    let mut half = [0u8; 8];
    half.copy_from_slice(&fsid.0[..8]);
    u64::from_le_bytes(half)
}

/// Bytes that a structure with `body_len` bytes of body takes on the device.
pub fn padded_len(body_len: usize) -> usize {
    (BLOCK_HEADER + body_len).next_multiple_of(BLOCK_SIZE)
}

/// Completes a structure in place: `buf` is whole blocks, its body stands after the header, the rest is zero.
pub fn finish(
    buf: &mut [u8],
    kind: BlockKind,
    version: u16,
    addr: BlockAddr,
    fsid: &Fsid,
    generation: u64,
    body_len: usize,
) -> u32 {
    assert!(buf.len() == padded_len(body_len), "a structure fills whole blocks");
    let tag = fsid_tag(fsid);
    let mut header = DiskHeader {
        crc: U32::new(0),
        magic: U32::new(MAGIC),
        kind: U16::new(kind as u16),
        version: U16::new(version),
        body_len: U32::new(body_len as u32),
        addr: U64::new(addr.0),
        fsid: U64::new(tag),
        generation: U64::new(generation),
    };
    buf[..BLOCK_HEADER].copy_from_slice(header.as_bytes());
    let crc = crc32c_seeded(addr.0, tag, &buf[4..]);
    header.crc = U32::new(crc);
    buf[..BLOCK_HEADER].copy_from_slice(header.as_bytes());
    crc
}

/// Reads the header of a structure whose first block is `first_block`, without the checksum: for its length, which is
/// bounded by `max_len` before it is believed.
pub fn peek(
    first_block: &[u8],
    kind: BlockKind,
    version: u16,
    addr: BlockAddr,
    fsid: Option<&Fsid>,
    max_len: usize,
) -> Result<BlockHeader, BlockError> {
    let Ok((h, _)) = DiskHeader::read_from_prefix(first_block) else {
        return Err(BlockError::Length { kind, addr, found: first_block.len() });
    };
    if h.magic.get() != MAGIC {
        return Err(BlockError::Magic { kind, addr, found: h.magic.get() });
    }
    if h.kind.get() != kind as u16 {
        return Err(BlockError::Kind { kind, addr, found: h.kind.get() });
    }
    if fsid.is_some_and(|fsid| fsid_tag(fsid) != h.fsid.get()) {
        return Err(BlockError::Fsid { kind, addr });
    }
    if h.addr.get() != addr.0 {
        return Err(BlockError::Address { kind, addr, found: h.addr.get() });
    }
    if h.version.get() != version {
        return Err(BlockError::Version { kind, addr, expected: version, found: h.version.get() });
    }
    let body_len = h.body_len.get() as usize;
    if padded_len(body_len) > max_len {
        return Err(BlockError::Length { kind, addr, found: body_len });
    }
    Ok(BlockHeader { body_len, generation: h.generation.get() })
}

/// Verifies a whole structure and gives its header and body. `buf` may be longer than the structure.
pub fn verify<'a>(
    buf: &'a [u8],
    kind: BlockKind,
    version: u16,
    addr: BlockAddr,
    fsid: Option<&Fsid>,
) -> Result<(BlockHeader, &'a [u8]), BlockError> {
    let header = peek(buf, kind, version, addr, fsid, buf.len())?;
    let Ok((h, _)) = DiskHeader::read_from_prefix(buf) else {
        return Err(BlockError::Length { kind, addr, found: buf.len() });
    };
    let whole = &buf[..padded_len(header.body_len)];
    let (expected, found) = (crc32c_seeded(addr.0, h.fsid.get(), &whole[4..]), h.crc.get());
    if expected != found {
        return Err(BlockError::Checksum { kind, addr, expected, found });
    }
    Ok((header, &whole[BLOCK_HEADER..BLOCK_HEADER + header.body_len]))
}

/// A 64-bit hash for chains of blocks (multiply and fold per word). It is not the crc of the same bytes in disguise, as
/// a second crc with another seed would be, so a chain link adds evidence of its own.
pub fn chain_hash(data: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut h = K ^ data.len() as u64;
    for chunk in data.chunks(8) {
        let mut word = [0u8; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let m = u128::from(h ^ u64::from_le_bytes(word)) * u128::from(K | 1);
        h = (m as u64) ^ ((m >> 64) as u64).rotate_left(23);
    }
    h
}

#[cfg(test)]
mod tests {
    use super::*;

    const FSID: Fsid = Fsid([7; 16]);

    fn block() -> Vec<u8> {
        let mut buf = vec![0u8; BLOCK_SIZE];
        buf[BLOCK_HEADER..BLOCK_HEADER + 5].copy_from_slice(b"hello");
        finish(&mut buf, BlockKind::Seal, 1, BlockAddr(9), &FSID, 3, 5);
        buf
    }

    #[test]
    fn a_finished_block_verifies_and_any_flipped_bit_does_not() {
        let good = block();
        let (header, body) = verify(&good, BlockKind::Seal, 1, BlockAddr(9), Some(&FSID)).unwrap();
        assert_eq!((header.generation, body), (3, &b"hello"[..]));
        for bit in (0..BLOCK_SIZE * 8).step_by(7) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&bad, BlockKind::Seal, 1, BlockAddr(9), Some(&FSID)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_block_at_a_wrong_place_or_of_a_wrong_owner_is_refused() {
        let good = block();
        assert!(matches!(
            verify(&good, BlockKind::Seal, 1, BlockAddr(8), Some(&FSID)),
            Err(BlockError::Address { found: 9, .. })
        ));
        assert!(matches!(
            verify(&good, BlockKind::Seal, 1, BlockAddr(9), Some(&Fsid([8; 16]))),
            Err(BlockError::Fsid { .. })
        ));
        assert!(matches!(
            verify(&good, BlockKind::Part, 1, BlockAddr(9), Some(&FSID)),
            Err(BlockError::Kind { found: 4, .. })
        ));
        assert!(matches!(
            verify(&good, BlockKind::Seal, 2, BlockAddr(9), Some(&FSID)),
            Err(BlockError::Version { found: 1, .. })
        ));
    }

    #[test]
    fn a_chain_hash_sees_order_and_length() {
        assert_ne!(chain_hash(b"12345678abcdefgh"), chain_hash(b"abcdefgh12345678"));
        assert_ne!(chain_hash(&[0; 8]), chain_hash(&[0; 16]));
        assert_ne!(chain_hash(b"a"), chain_hash(b"a\0"));
    }
}
