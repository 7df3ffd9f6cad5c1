//! Seals: one block that makes an epoch whole.
//!
//! ```text
//!  0        8       16          24               32      36     40
//!  | number | epoch | prev hash | durable number | parts | runs | part ... | run of new data ...      integers LE
//!  part: | log id u64 | place u64 | addr u64 | len_blocks u32 | crc u32 |
//!  run:  | addr u64 | len_blocks u32 |
//! ```
//! Seals are numbered densely within a filesystem's life; an epoch without changes has none. `prev hash` is the
//! [`crate::block::chain_hash`] of the seal before, so a gap never looks like an empty epoch.
//!
//! A seal may be on the medium before the file data that its epoch refers to, when it lists the runs of blocks which that
//! data is in: the epoch is whole when they hold what its extents say. Version 1 lists none, and has no count of them.

use bytes::BufMut;
use vellum_base::{BLOCK_SIZE, BlockAddr, BlockRange, Epoch, Fsid, LogId, Term};

use crate::block::{self, BLOCK_HEADER, BlockError, BlockKind};
use crate::codec::{CodecError, Reader, Writer, put_count};

pub const SEAL_VERSION: u16 = 2;
/// Seals without runs of new data.
const VERSION_1: u16 = 1;
/// Most parts that one seal names, and so most reactors of a node.
pub const MAX_PARTS: usize = 64;
/// Most runs of new data that one seal lists.
pub const MAX_NEW_DATA: usize = 128;
/// Bytes of a seal's body before its part references, of one of them, and of a run of new data.
pub const SEAL_HEADER: usize = 40;
pub const PART_REF: usize = 32;
pub const DATA_RUN: usize = 12;
const _: () = assert!(BLOCK_HEADER + SEAL_HEADER + MAX_PARTS * PART_REF + MAX_NEW_DATA * DATA_RUN <= BLOCK_SIZE);

/// Where a part of the sealed epoch lies, and its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartRef {
    pub log: LogId,
    /// Logical position in the log, in blocks.
    pub place: u64,
    pub addr: BlockAddr,
    pub len_blocks: u32,
    pub crc: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seal {
    pub term: Term,
    /// Dense from 1 over the filesystem's life.
    pub number: u64,
    pub epoch: Epoch,
    pub prev_hash: u64,
    /// Number of the last seal that was durable when this one was written.
    pub durable_number: u64,
    pub parts: Vec<PartRef>,
    /// Blocks with file data that no flush had covered when the seal was written.
    pub new_data: Vec<BlockRange>,
}

impl Seal {
    /// The seal's block, and its hash for the next one.
    pub fn encode(&self, addr: BlockAddr, fsid: &Fsid) -> ([u8; BLOCK_SIZE], u64) {
        assert!(self.parts.len() <= MAX_PARTS, "a node has at most {MAX_PARTS} reactors");
        assert!(self.new_data.len() <= MAX_NEW_DATA, "more data is flushed before its seal");
        let mut body = Writer::new();
        body.put_u64_le(self.number);
        body.put_u64_le(self.epoch.0);
        body.put_u64_le(self.prev_hash);
        body.put_u64_le(self.durable_number);
        put_count(&mut body, self.parts.len());
        put_count(&mut body, self.new_data.len());
        for p in &self.parts {
            body.put_u64_le(p.log.0);
            body.put_u64_le(p.place);
            body.put_u64_le(p.addr.0);
            body.put_u32_le(p.len_blocks);
            body.put_u32_le(p.crc);
        }
        for run in &self.new_data {
            body.put_u64_le(run.start.0);
            body.put_u32_le(run.len_blocks);
        }
        let mut out = [0u8; BLOCK_SIZE];
        out[BLOCK_HEADER..BLOCK_HEADER + body.len()].copy_from_slice(&body);
        block::finish(&mut out, BlockKind::Seal, SEAL_VERSION, addr, fsid, self.term.0, body.len());
        let hash = block::chain_hash(&out);
        (out, hash)
    }

    /// The seal and its hash for the next one.
    pub fn decode(buf: &[u8], addr: BlockAddr, fsid: &Fsid) -> Result<(Seal, u64), BlockError> {
        let buf = buf.get(..BLOCK_SIZE).unwrap_or(buf);
        let verified = |version| block::verify(buf, BlockKind::Seal, version, addr, Some(fsid));
        let (lists_data, (header, body)) = match verified(SEAL_VERSION) {
            Err(BlockError::Version { found: VERSION_1, .. }) => (false, verified(VERSION_1)?),
            found => (true, found?),
        };
        let seal = Seal::decode_body(body, Term(header.generation), lists_data).map_err(|e| BlockError::Content {
            kind: BlockKind::Seal,
            addr,
            what: e.to_string(),
        })?;
        Ok((seal, block::chain_hash(buf)))
    }

    fn decode_body(body: &[u8], term: Term, lists_data: bool) -> Result<Seal, CodecError> {
        let mut r = Reader::new(body, "seal");
        let (number, epoch) = (r.counted()?, Epoch(r.counted()?));
        let (prev_hash, durable_number) = (r.u64()?, r.counted()?);
        let count = r.count(PART_REF)?;
        let runs = if lists_data { r.count(DATA_RUN)? } else { 0 };
        for (found, most) in [(count, MAX_PARTS), (runs, MAX_NEW_DATA)] {
            if found > most {
                return r.illegal(found as u64);
            }
        }
        let part = |r: &mut Reader<'_>| {
            Ok(PartRef {
                log: LogId(r.counted()?),
                place: r.counted()?,
                addr: BlockAddr(r.u64()?),
                len_blocks: r.u32()?,
                crc: r.u32()?,
            })
        };
        let run = |r: &mut Reader<'_>| Ok(BlockRange::new(r.u64()?, r.u32()?));
        let parts = (0..count).map(|_| part(&mut r)).collect::<Result<_, _>>()?;
        let new_data = (0..runs).map(|_| run(&mut r)).collect::<Result<_, _>>()?;
        Ok(Seal { term, number, epoch, prev_hash, durable_number, parts, new_data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_survives_its_encoding_and_its_hash_depends_on_all_of_it() {
        let part = PartRef { log: LogId(1), place: 2, addr: BlockAddr(3), len_blocks: 4, crc: 5 };
        let seal = Seal {
            term: Term(6),
            number: 7,
            epoch: Epoch(8),
            prev_hash: 9,
            durable_number: 10,
            parts: vec![part; MAX_PARTS],
            new_data: vec![BlockRange::new(11, 12); MAX_NEW_DATA],
        };
        let fsid = Fsid([3; 16]);
        let (block, hash) = seal.encode(BlockAddr(11), &fsid);
        assert_eq!(Seal::decode(&block, BlockAddr(11), &fsid), Ok((seal.clone(), hash)));
        assert!(Seal::decode(&block, BlockAddr(12), &fsid).is_err());
        let other = Seal { prev_hash: 0, ..seal };
        assert_ne!(other.encode(BlockAddr(11), &fsid).1, hash);
    }

    /// Found by fuzzing: it was read, and could not have been written.
    #[test]
    fn a_seal_of_more_parts_than_a_node_has_reactors_is_none() {
        let refused = |parts: u32, runs: u32| {
            let mut body = Writer::new();
            body.put_bytes(0, SEAL_HEADER - 8);
            body.put_u32_le(parts);
            body.put_u32_le(runs);
            body.put_bytes(0, parts as usize * PART_REF + runs as usize * DATA_RUN);
            Seal::decode_body(&body, Term(1), true).is_err()
        };
        assert!(!refused(MAX_PARTS as u32, MAX_NEW_DATA as u32));
        assert!(refused(MAX_PARTS as u32 + 1, 0) && refused(0, MAX_NEW_DATA as u32 + 1));
    }
}
