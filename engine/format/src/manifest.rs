//! Manifest edits. A manifest record is one checksummed structure (see [`crate::block`]) whose generation is that of its
//! checkpoint; its body:
//! ```text
//!  0          8           16      20
//!  | sequence | prev hash | count | edit ...
//! ```
//! Sequence 0 is the checkpoint: the edits that build the whole state from nothing. Later records append edits. A
//! record is believed only when it follows the one before it by sequence and hash.

use bytes::BufMut;
use vellum_base::{BlockAddr, ChunkIndex, Epoch, Fsid, LogId, SegmentId, ShardId, Term};

use crate::block::{self, BLOCK_HEADER, BlockError, BlockKind};
use crate::codec::{CodecError, MAX_COUNTED, Reader, Writer, put_count};
use crate::segment::{SegmentError, SegmentMeta};

pub const MANIFEST_VERSION: u16 = 1;
/// Levels of a shard's segments, at most.
pub const MAX_LEVELS: u8 = 8;
/// Greatest id of a shard. A filesystem has 256 of them at most, and none ever goes.
const MAX_SHARD: u32 = 1 << 30;

/// What a chunk of the device is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum ChunkUse {
    #[default]
    Free,
    /// Superblock, slots, manifest.
    Fixed,
    Log,
    SealLog,
    Segment,
    /// File data of inodes; the bitmaps are items of this bucket.
    Data(u8),
}

impl ChunkUse {
    fn code(self) -> (u8, u8) {
        match self {
            ChunkUse::Free => (0, 0),
            ChunkUse::Fixed => (1, 0),
            ChunkUse::Log => (2, 0),
            ChunkUse::SealLog => (3, 0),
            ChunkUse::Segment => (4, 0),
            ChunkUse::Data(bucket) => (5, bucket),
        }
    }

    fn from_code(code: u8, bucket: u8) -> Option<ChunkUse> {
        Some(match code {
            0 => ChunkUse::Free,
            1 => ChunkUse::Fixed,
            2 => ChunkUse::Log,
            3 => ChunkUse::SealLog,
            4 => ChunkUse::Segment,
            5 => ChunkUse::Data(bucket),
            _ => return None,
        })
    }
}

/// A reactor's log in one run of the engine: a ring over its chunks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogMeta {
    pub id: LogId,
    pub chunks: Vec<ChunkIndex>,
    /// Parts that begin below this logical position (blocks) are flushed, and their place may be overwritten.
    pub floor: u64,
}

/// What one run of the engine (one term) wrote: the seals and the logs that are not yet flushed to segments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    pub term: Term,
    /// Number of the run's first seal; it lies at the first block of the first seal chunk.
    pub first_number: u64,
    /// No epoch of the run is below.
    pub first_epoch: Epoch,
    pub seal_chunks: Vec<ChunkIndex>,
    /// Seals up to this number are not needed any more.
    pub floor_number: u64,
    /// Hash of the seal `floor_number`.
    pub floor_hash: u64,
    /// Seals up to this number are known to be durable: a bad one among them is corruption.
    pub durable_number: u64,
    /// The last seal that counts, decided by the recovery after the run.
    pub cut: Option<u64>,
    pub logs: Vec<LogMeta>,
}

#[derive(Clone, PartialEq, Debug)]
pub enum ManifestEdit {
    Term(Term),
    NextIds {
        segment: SegmentId,
        log: LogId,
    },
    /// The last seal's number and hash and the greatest epoch of all runs that are over.
    Base {
        number: u64,
        hash: u64,
        epoch: Epoch,
    },
    Chunks {
        first: ChunkIndex,
        count: u32,
        used_for: ChunkUse,
    },
    Shard {
        id: ShardId,
        first_bucket: u8,
        last_bucket: u8,
        flushed_through: Epoch,
    },
    FlushedThrough {
        shard: ShardId,
        epoch: Epoch,
    },
    SegmentAdd {
        shard: ShardId,
        level: u8,
        meta: SegmentMeta,
    },
    SegmentRemove {
        shard: ShardId,
        segment: SegmentId,
    },
    Run(Run),
    SealFloor {
        term: Term,
        number: u64,
        hash: u64,
        durable_number: u64,
    },
    LogFloor {
        log: LogId,
        place: u64,
    },
    Cut {
        term: Term,
        number: u64,
    },
    RunDrop {
        term: Term,
    },
    /// The buckets from `at` on become the shard `new`. Each half has the segments that reach into it. Only in a filesystem
    /// with the feature [`crate::superblock::SPLIT_SHARDS`].
    Split {
        shard: ShardId,
        at: u8,
        new: ShardId,
    },
}

impl ManifestEdit {
    fn encode(&self, b: &mut Writer) {
        match self {
            ManifestEdit::Term(term) => {
                b.put_u8(1);
                b.put_u64_le(term.0);
            }
            ManifestEdit::NextIds { segment, log } => {
                b.put_u8(2);
                b.put_u64_le(segment.0);
                b.put_u64_le(log.0);
            }
            ManifestEdit::Base { number, hash, epoch } => {
                b.put_u8(3);
                b.put_u64_le(*number);
                b.put_u64_le(*hash);
                b.put_u64_le(epoch.0);
            }
            ManifestEdit::Chunks { first, count, used_for } => {
                b.put_u8(4);
                b.put_u32_le(first.0);
                b.put_u32_le(*count);
                let (code, bucket) = used_for.code();
                b.put_u8(code);
                b.put_u8(bucket);
            }
            ManifestEdit::Shard { id, first_bucket, last_bucket, flushed_through } => {
                b.put_u8(5);
                b.put_u32_le(id.0);
                b.put_u8(*first_bucket);
                b.put_u8(*last_bucket);
                b.put_u64_le(flushed_through.0);
            }
            ManifestEdit::FlushedThrough { shard, epoch } => {
                b.put_u8(6);
                b.put_u32_le(shard.0);
                b.put_u64_le(epoch.0);
            }
            ManifestEdit::SegmentAdd { shard, level, meta } => {
                b.put_u8(7);
                b.put_u32_le(shard.0);
                b.put_u8(*level);
                let mut bytes = Vec::with_capacity(meta.encoded_len());
                meta.encode(&mut bytes);
                b.put_slice(&bytes);
            }
            ManifestEdit::SegmentRemove { shard, segment } => {
                b.put_u8(8);
                b.put_u32_le(shard.0);
                b.put_u64_le(segment.0);
            }
            ManifestEdit::Run(run) => {
                b.put_u8(9);
                run.encode(b);
            }
            ManifestEdit::SealFloor { term, number, hash, durable_number } => {
                b.put_u8(10);
                b.put_u64_le(term.0);
                b.put_u64_le(*number);
                b.put_u64_le(*hash);
                b.put_u64_le(*durable_number);
            }
            ManifestEdit::LogFloor { log, place } => {
                b.put_u8(11);
                b.put_u64_le(log.0);
                b.put_u64_le(*place);
            }
            ManifestEdit::Cut { term, number } => {
                b.put_u8(12);
                b.put_u64_le(term.0);
                b.put_u64_le(*number);
            }
            ManifestEdit::RunDrop { term } => {
                b.put_u8(13);
                b.put_u64_le(term.0);
            }
            ManifestEdit::Split { shard, at, new } => {
                b.put_u8(14);
                b.put_u32_le(shard.0);
                b.put_u8(*at);
                b.put_u32_le(new.0);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<ManifestEdit, CodecError> {
        Ok(match r.u8()? {
            1 => ManifestEdit::Term(Term(r.counted()?)),
            2 => ManifestEdit::NextIds { segment: SegmentId(r.counted()?), log: LogId(r.counted()?) },
            3 => ManifestEdit::Base { number: r.counted()?, hash: r.u64()?, epoch: Epoch(r.counted()?) },
            4 => {
                let (first, count, code, bucket) = (ChunkIndex(r.u32()?), r.u32()?, r.u8()?, r.u8()?);
                match ChunkUse::from_code(code, bucket) {
                    Some(used_for) => ManifestEdit::Chunks { first, count, used_for },
                    None => return r.illegal(code.into()),
                }
            }
            5 => ManifestEdit::Shard {
                id: read_shard(r)?,
                first_bucket: r.u8()?,
                last_bucket: r.u8()?,
                flushed_through: Epoch(r.counted()?),
            },
            6 => ManifestEdit::FlushedThrough { shard: read_shard(r)?, epoch: Epoch(r.counted()?) },
            7 => {
                let (shard, level) = (read_shard(r)?, r.u8()?);
                if level >= MAX_LEVELS {
                    return r.illegal(level.into());
                }
                let (meta, rest) = match SegmentMeta::decode(r.rest()) {
                    Ok(decoded) => decoded,
                    Err(SegmentError::Length { expected, found }) => {
                        return Err(CodecError::Short { what: "segment", missing: expected.saturating_sub(found) });
                    }
                    Err(SegmentError::Version { found, .. }) => return r.illegal(found.into()),
                    Err(SegmentError::Value { found, .. }) => return r.illegal(found),
                };
                let used = r.remaining() - rest.len();
                r.bytes(used)?;
                ManifestEdit::SegmentAdd { shard, level, meta }
            }
            8 => ManifestEdit::SegmentRemove { shard: read_shard(r)?, segment: SegmentId(r.counted()?) },
            9 => ManifestEdit::Run(Run::decode(r)?),
            10 => ManifestEdit::SealFloor {
                term: Term(r.counted()?),
                number: r.counted()?,
                hash: r.u64()?,
                durable_number: r.counted()?,
            },
            11 => ManifestEdit::LogFloor { log: LogId(r.counted()?), place: r.counted()? },
            12 => ManifestEdit::Cut { term: Term(r.counted()?), number: r.counted()? },
            13 => ManifestEdit::RunDrop { term: Term(r.counted()?) },
            14 => ManifestEdit::Split { shard: read_shard(r)?, at: r.u8()?, new: read_shard(r)? },
            other => return r.illegal(other.into()),
        })
    }
}

/// New ids are one more than the greatest.
fn read_shard(r: &mut Reader<'_>) -> Result<ShardId, CodecError> {
    match r.u32()? {
        id if id <= MAX_SHARD => Ok(ShardId(id)),
        id => r.illegal(id.into()),
    }
}

fn put_chunks(b: &mut Writer, chunks: &[ChunkIndex]) {
    put_count(b, chunks.len());
    chunks.iter().for_each(|c| b.put_u32_le(c.0));
}

fn read_chunks(r: &mut Reader<'_>) -> Result<Vec<ChunkIndex>, CodecError> {
    let count = r.count(4)?;
    (0..count).map(|_| Ok(ChunkIndex(r.u32()?))).collect()
}

impl Run {
    fn encode(&self, b: &mut Writer) {
        b.put_u64_le(self.term.0);
        b.put_u64_le(self.first_number);
        b.put_u64_le(self.first_epoch.0);
        put_chunks(b, &self.seal_chunks);
        b.put_u64_le(self.floor_number);
        b.put_u64_le(self.floor_hash);
        b.put_u64_le(self.durable_number);
        b.put_u64_le(self.cut.unwrap_or(u64::MAX));
        put_count(b, self.logs.len());
        for log in &self.logs {
            b.put_u64_le(log.id.0);
            b.put_u64_le(log.floor);
            put_chunks(b, &log.chunks);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Run, CodecError> {
        let (term, first_number, first_epoch) = (Term(r.counted()?), r.counted()?, Epoch(r.counted()?));
        let seal_chunks = read_chunks(r)?;
        let (floor_number, floor_hash, durable_number) = (r.counted()?, r.u64()?, r.counted()?);
        let cut = match r.u64()? {
            u64::MAX => None,
            cut if cut <= MAX_COUNTED => Some(cut),
            cut => return r.illegal(cut),
        };
        let count = r.count(20)?;
        let log = |r: &mut Reader<'_>| {
            let (id, floor) = (LogId(r.counted()?), r.counted()?);
            Ok(LogMeta { id, floor, chunks: read_chunks(r)? })
        };
        let logs = (0..count).map(|_| log(r)).collect::<Result<_, _>>()?;
        Ok(Run { term, first_number, first_epoch, seal_chunks, floor_number, floor_hash, durable_number, cut, logs })
    }
}

/// A decoded record.
#[derive(Clone, PartialEq, Debug)]
pub struct ManifestRecord {
    pub generation: u64,
    pub sequence: u64,
    pub prev_hash: u64,
    pub edits: Vec<ManifestEdit>,
}

/// A record's body, before it is bound to the places of its two copies.
#[derive(Debug)]
pub struct RecordBody(Writer);

impl RecordBody {
    pub fn new(sequence: u64, prev_hash: u64, edits: &[ManifestEdit]) -> RecordBody {
        let mut b = Writer::new();
        b.put_u64_le(sequence);
        b.put_u64_le(prev_hash);
        put_count(&mut b, edits.len());
        edits.iter().for_each(|e| e.encode(&mut b));
        RecordBody(b)
    }

    pub fn padded_len(&self) -> usize {
        block::padded_len(self.0.len())
    }

    /// The hash that the next record carries: of the body, because the copies differ by their address.
    pub fn hash(&self) -> u64 {
        block::chain_hash(&self.0)
    }

    pub fn finish(&self, buf: &mut [u8], addr: BlockAddr, fsid: &Fsid, generation: u64) {
        buf.fill(0);
        buf[BLOCK_HEADER..BLOCK_HEADER + self.0.len()].copy_from_slice(&self.0);
        block::finish(buf, BlockKind::Manifest, MANIFEST_VERSION, addr, fsid, generation, self.0.len());
    }
}

impl ManifestRecord {
    /// The record, its hash for the next one, and its length on the device in bytes.
    pub fn decode(buf: &[u8], addr: BlockAddr, fsid: &Fsid) -> Result<(ManifestRecord, u64, usize), BlockError> {
        let (header, body) = block::verify(buf, BlockKind::Manifest, MANIFEST_VERSION, addr, Some(fsid))?;
        let record = Self::decode_body(body, header.generation).map_err(|e| BlockError::Content {
            kind: BlockKind::Manifest,
            addr,
            what: e.to_string(),
        })?;
        Ok((record, block::chain_hash(body), block::padded_len(body.len())))
    }

    fn decode_body(body: &[u8], generation: u64) -> Result<ManifestRecord, CodecError> {
        let mut r = Reader::new(body, "manifest record");
        if generation > MAX_COUNTED {
            return r.illegal(generation);
        }
        let (sequence, prev_hash) = (r.counted()?, r.u64()?);
        let count = r.count(1)?;
        let edits = (0..count).map(|_| ManifestEdit::decode(&mut r)).collect::<Result<_, _>>()?;
        Ok(ManifestRecord { generation, sequence, prev_hash, edits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::{BLOCK_SIZE, BlockRange};

    #[test]
    fn every_edit_survives_a_record() {
        let meta = SegmentMeta {
            id: SegmentId(3),
            ranges: vec![BlockRange::new(7, 2)],
            len_bytes: 2 * BLOCK_SIZE as u64,
            ..SegmentMeta::default()
        };
        let run = Run {
            term: Term(1),
            first_number: 2,
            first_epoch: Epoch(3),
            seal_chunks: vec![ChunkIndex(4), ChunkIndex(5)],
            floor_number: 1,
            floor_hash: 6,
            durable_number: 7,
            cut: None,
            logs: vec![LogMeta { id: LogId(8), chunks: vec![ChunkIndex(9)], floor: 10 }],
        };
        let (shard, term) = (ShardId(1), Term(2));
        let edits = vec![
            ManifestEdit::Term(term),
            ManifestEdit::NextIds { segment: SegmentId(1), log: LogId(2) },
            ManifestEdit::Base { number: 1, hash: 2, epoch: Epoch(3) },
            ManifestEdit::Chunks { first: ChunkIndex(1), count: 2, used_for: ChunkUse::Data(200) },
            ManifestEdit::Shard { id: shard, first_bucket: 1, last_bucket: 2, flushed_through: Epoch(3) },
            ManifestEdit::FlushedThrough { shard, epoch: Epoch(4) },
            ManifestEdit::SegmentAdd { shard, level: 1, meta },
            ManifestEdit::SegmentRemove { shard, segment: SegmentId(3) },
            ManifestEdit::Run(Run { cut: Some(9), ..run.clone() }),
            ManifestEdit::Run(run),
            ManifestEdit::SealFloor { term, number: 1, hash: 2, durable_number: 3 },
            ManifestEdit::LogFloor { log: LogId(1), place: 2 },
            ManifestEdit::Cut { term, number: 1 },
            ManifestEdit::RunDrop { term },
            ManifestEdit::Split { shard, at: 2, new: ShardId(7) },
        ];
        let body = RecordBody::new(5, 6, &edits);
        let (fsid, addr) = (Fsid([1; 16]), BlockAddr(20));
        let mut buf = vec![0xee; body.padded_len()];
        body.finish(&mut buf, addr, &fsid, 7);
        buf.extend_from_slice(&[0; BLOCK_SIZE]); // what follows does not matter
        let (record, hash, len) = ManifestRecord::decode(&buf, addr, &fsid).unwrap();
        assert_eq!(record, ManifestRecord { generation: 7, sequence: 5, prev_hash: 6, edits });
        assert_eq!((hash, len), (body.hash(), body.padded_len()));
        for cut in 0..body.0.len() {
            let _ = ManifestRecord::decode_body(&body.0[..cut], 7); // never panics
        }
    }
}
