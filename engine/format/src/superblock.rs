//! The superblock: where a filesystem begins. Block 0 and a copy; each is verified alone.
//!
//! Feature bits come in three classes. A reader that does not know a bit of `incompatible` refuses the device, one that
//! does not know a bit of `read_only` opens it for reading alone, and `compatible` bits may be ignored.

use bytes::BufMut;
use vellum_base::{BLOCK_SIZE, BlockAddr, BlockRange, Fsid};

use crate::block::{self, BLOCK_HEADER, BlockError, BlockKind};
use crate::codec::{CodecError, MAX_COUNTED, Reader, Writer};

pub const SUPERBLOCK_VERSION: u16 = 1;
/// Version of the whole format. A node writes a newer one only after an operator has finalised it.
pub const FORMAT_VERSION: u32 = 2;
/// From this version on a block may belong to several extents ([`crate::Owners`]).
pub const SHARED_BLOCKS: u32 = 2;
/// Quorum members that a filesystem can have.
pub const MAX_SLOTS: usize = vellum_base::Slot::COUNT;
/// Bytes of one slot's address in the superblock.
pub const SLOT_BYTES: usize = 64;

/// Feature bits by class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    pub incompatible: u64,
    pub read_only: u64,
    pub compatible: u64,
}

/// Incompatible: shards are split. The manifest has `Split` edits, and two shards may name one segment.
pub const SPLIT_SHARDS: u64 = 1;
/// Bits that this version knows.
pub const KNOWN: Features = Features { incompatible: SPLIT_SHARDS, read_only: 0, compatible: 0 };

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    pub fsid: Fsid,
    /// Grows with every write of the superblock; the copy with the greater one wins.
    pub generation: u64,
    pub format_version: u32,
    pub features: Features,
    /// Blocks of the device that belong to the filesystem: whole chunks.
    pub blocks: u64,
    pub chunk_blocks: u32,
    /// Where the second superblock lies.
    pub copy: BlockAddr,
    /// The quorum members' own blocks: one per slot.
    pub slots_area: BlockRange,
    /// `[area][copy]`: the manifest alternates between two areas, each kept twice.
    pub manifest: [[BlockRange; 2]; 2],
    /// No manifest older than this may be believed.
    pub manifest_generation: u64,
    /// Copies of every segment: 1 or 2.
    pub metadata_copies: u8,
    /// Seconds since 1970 at mkfs.
    pub created: u64,
    /// Addresses of quorum members as text, empty when unused.
    pub slots: Vec<Vec<u8>>,
}

impl Superblock {
    pub fn chunks(&self) -> u32 {
        (self.blocks / u64::from(self.chunk_blocks.max(1))) as u32
    }

    pub fn chunk_bytes(&self) -> u64 {
        u64::from(self.chunk_blocks) * BLOCK_SIZE as u64
    }

    pub fn encode(&self, addr: BlockAddr) -> [u8; BLOCK_SIZE] {
        let mut b = Writer::new();
        b.put_slice(&self.fsid.0);
        b.put_u32_le(self.format_version);
        b.put_u64_le(self.features.incompatible);
        b.put_u64_le(self.features.read_only);
        b.put_u64_le(self.features.compatible);
        b.put_u64_le(self.blocks);
        b.put_u32_le(self.chunk_blocks);
        b.put_u64_le(self.copy.0);
        put_range(&mut b, &self.slots_area);
        self.manifest.iter().flatten().for_each(|r| put_range(&mut b, r));
        b.put_u64_le(self.manifest_generation);
        b.put_u8(self.metadata_copies);
        b.put_u64_le(self.created);
        for i in 0..MAX_SLOTS {
            let text = self.slots.get(i).map_or(&[][..], |s| &s[..s.len().min(SLOT_BYTES - 1)]);
            b.put_u8(text.len() as u8);
            b.put_slice(text);
            b.put_bytes(0, SLOT_BYTES - 1 - text.len());
        }
        let mut out = [0u8; BLOCK_SIZE];
        out[BLOCK_HEADER..BLOCK_HEADER + b.len()].copy_from_slice(&b);
        block::finish(&mut out, BlockKind::Superblock, SUPERBLOCK_VERSION, addr, &self.fsid, self.generation, b.len());
        out
    }

    pub fn decode(buf: &[u8], addr: BlockAddr) -> Result<Superblock, BlockError> {
        let (header, body) = block::verify(buf, BlockKind::Superblock, SUPERBLOCK_VERSION, addr, None)?;
        let content = |what: String| BlockError::Content { kind: BlockKind::Superblock, addr, what };
        let sb = Self::decode_body(body, header.generation).map_err(|e| content(e.to_string()))?;
        sb.check().map_err(|what| content(what.into()))?;
        Ok(sb)
    }

    fn decode_body(body: &[u8], generation: u64) -> Result<Superblock, CodecError> {
        let mut r = Reader::new(body, "superblock");
        Ok(Superblock {
            fsid: Fsid(r.array()?),
            generation,
            format_version: r.u32()?,
            features: Features { incompatible: r.u64()?, read_only: r.u64()?, compatible: r.u64()? },
            blocks: r.u64()?,
            chunk_blocks: r.u32()?,
            copy: BlockAddr(r.u64()?),
            slots_area: read_range(&mut r)?,
            manifest: [[read_range(&mut r)?, read_range(&mut r)?], [read_range(&mut r)?, read_range(&mut r)?]],
            manifest_generation: r.u64()?,
            metadata_copies: r.u8()?,
            created: r.u64()?,
            slots: {
                let mut slots = Vec::new();
                for _ in 0..MAX_SLOTS {
                    let field = r.array::<SLOT_BYTES>()?;
                    let len = usize::from(field[0]);
                    match field.get(1..1 + len) {
                        Some(text) => slots.push(text.to_vec()),
                        None => return r.illegal(len as u64),
                    }
                }
                slots
            },
        })
    }

    /// True when an area lies on another, or on a superblock: whoever writes one would destroy the other.
    pub fn areas_overlap(&self) -> bool {
        let block = |start| BlockRange { start, len_blocks: 1 };
        let [[a0, a1], [b0, b1]] = self.manifest;
        let mut fixed = [block(BlockAddr(0)), block(self.copy), self.slots_area, a0, a1, b0, b1];
        fixed.sort_unstable_by_key(|range| range.start);
        fixed.windows(2).any(|pair| pair[0].end().is_none_or(|end| end > pair[1].start))
    }

    /// Relations that every use of the geometry relies on.
    fn check(&self) -> Result<(), &'static str> {
        let inside = |r: &BlockRange| r.len_blocks > 0 && r.end().is_some_and(|end| end.0 <= self.blocks);
        if self.chunk_blocks == 0 || !self.blocks.is_multiple_of(u64::from(self.chunk_blocks)) {
            return Err("the filesystem is not whole chunks");
        }
        if self.blocks / u64::from(self.chunk_blocks) > u64::from(u32::MAX) {
            return Err("too many chunks");
        }
        if self.blocks > BlockAddr::LIMIT.0 {
            return Err("no device is so large");
        }
        if self.generation > MAX_COUNTED || self.manifest_generation > MAX_COUNTED {
            return Err("no generation is so great");
        }
        if !self.manifest.iter().flatten().all(inside) || !inside(&self.slots_area) || self.copy.0 >= self.blocks {
            return Err("an area lies outside of the filesystem");
        }
        Ok(())
    }
}

pub(crate) fn put_range(b: &mut Writer, r: &BlockRange) {
    b.put_u64_le(r.start.0);
    b.put_u32_le(r.len_blocks);
}

pub(crate) fn read_range(r: &mut Reader<'_>) -> Result<BlockRange, CodecError> {
    Ok(BlockRange { start: BlockAddr(r.u64()?), len_blocks: r.u32()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_survives_its_encoding_and_senseless_geometry_is_refused() {
        let r = |n| BlockRange::new(n, 16);
        let sb = Superblock {
            fsid: Fsid([5; 16]),
            generation: 2,
            format_version: FORMAT_VERSION,
            features: Features { incompatible: 1, read_only: 2, compatible: 4 },
            blocks: 1024,
            chunk_blocks: 256,
            copy: BlockAddr(1023),
            slots_area: r(1),
            manifest: [[r(17), r(512)], [r(33), r(528)]],
            manifest_generation: 77,
            metadata_copies: 1,
            created: 1,
            slots: (0..MAX_SLOTS).map(|i| vec![b'a'; i]).collect(),
        };
        let block = sb.encode(BlockAddr(0));
        assert_eq!(Superblock::decode(&block, BlockAddr(0)), Ok(sb.clone()));
        assert!(Superblock::decode(&block, BlockAddr(1023)).is_err(), "a copy knows its place");
        for bad in [
            Superblock { chunk_blocks: 0, ..sb.clone() },
            Superblock { blocks: 1000, ..sb.clone() },
            Superblock { slots_area: r(1020), ..sb.clone() },
            Superblock { slots_area: r(u64::MAX - 3), ..sb.clone() },
            Superblock { copy: BlockAddr(1024), ..sb.clone() },
            Superblock { blocks: 1 << 53, chunk_blocks: 1 << 22, ..sb.clone() },
            Superblock { manifest_generation: u64::MAX, ..sb.clone() },
        ] {
            assert!(Superblock::decode(&bad.encode(BlockAddr(0)), BlockAddr(0)).is_err());
        }
        assert!(!sb.areas_overlap());
        for bad in [
            Superblock { manifest: [[r(0), r(512)], [r(33), r(528)]], ..sb.clone() },
            Superblock { manifest: [[r(17), r(512)], [r(32), r(528)]], ..sb.clone() },
            Superblock { copy: BlockAddr(543), ..sb.clone() },
            Superblock { slots_area: r(700), copy: BlockAddr(700), ..sb },
        ] {
            assert!(bad.areas_overlap(), "{bad:?}");
        }
    }
}
