//! Jobs and outcomes as bytes, for runners in other processes. Not durable: both ends run the same version.
//!
//! What comes from outside is bounded before anything is made of it, and every segment passes the checks of its durable
//! form.

use bytes::{Buf, BufMut};
use thiserror::Error;
use vellum_base::{BlockAddr, BlockRange, Epoch, Key, KeyRange, SegmentId, ShardId};
use vellum_format::SegmentMeta;
use vellum_format::codec::MAX_COUNTED;

use super::bottom::{Bottom, MAX_OLDER};
use super::job::{CompactionJob, MAX_INPUTS, MAX_OUTPUTS, MAX_SOURCES, Outcome};
use super::merge::Tally;
use super::output::Shape;

/// A job or an outcome that is longer is not handed over.
pub const MAX_JOB_BYTES: usize = 2 << 20;
/// Runs of blocks that outputs may be set aside in.
const MAX_SPACE: usize = 65_536;
/// What a runner may be asked to hold in memory for one segment.
const MAX_SEGMENT_BYTES: u32 = 1 << 30;

#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum JobError {
    #[error("{what}: bytes are missing")]
    Short { what: &'static str },
    #[error("{what}: {found} passes the bound {bound}")]
    Bound { what: &'static str, found: u64, bound: u64 },
    #[error("{what}: {found} is no legal value")]
    Value { what: &'static str, found: u64 },
    #[error(transparent)]
    Segment(#[from] vellum_format::segment::SegmentError),
}

impl CompactionJob {
    /// `None` when it does not fit [`MAX_JOB_BYTES`].
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        out.put_u32_le(self.shard.0);
        out.put_u8(self.target);
        out.extend_from_slice(&self.within.first.0);
        out.extend_from_slice(&self.within.last.0);
        out.put_u8(self.shape.copies);
        out.put_u32_le(self.shape.segment_bytes);
        out.put_u32_le(self.shape.block_bytes);
        out.put_u64_le(self.oldest.0);
        out.put_u64_le(self.first_id.0);
        out.put_u64_le(self.ids);
        out.put_u32_le(self.sources.len() as u32);
        for run in &self.sources {
            put_segments(&mut out, run);
        }
        out.put_u32_le(self.bottom.ranges().len() as u32);
        for range in self.bottom.ranges() {
            out.extend_from_slice(&range.first.0);
            out.extend_from_slice(&range.last.0);
        }
        out.put_u32_le(self.space.len() as u32);
        for range in &self.space {
            out.put_u64_le(range.start.0);
            out.put_u32_le(range.len_blocks);
        }
        (out.len() <= MAX_JOB_BYTES).then_some(out)
    }

    pub fn decode(bytes: &[u8]) -> Result<CompactionJob, JobError> {
        let input = &mut Input::new(bytes)?;
        let shard = ShardId(input.u32("shard")?);
        let target =
            bounded("level", input.u8("level")?.into(), u64::from(vellum_format::manifest::MAX_LEVELS) - 1)? as u8;
        let within = KeyRange { first: input.key()?, last: input.key()? };
        let copies = match input.u8("copies")? {
            copies @ 1..=2 => copies,
            found => return Err(JobError::Value { what: "copies", found: found.into() }),
        };
        let segment_bytes = input.u32("segment length")?;
        bounded("segment length", segment_bytes.into(), MAX_SEGMENT_BYTES.into())?;
        let block_bytes = input.u32("block length")?;
        if !block_bytes.is_multiple_of(4096) || !(4096..=1 << 20).contains(&block_bytes) {
            return Err(JobError::Value { what: "block length", found: block_bytes.into() });
        }
        let oldest = Epoch(bounded("epoch", input.u64("epoch")?, MAX_COUNTED)?);
        let first_id = SegmentId(bounded("segment id", input.u64("segment id")?, MAX_COUNTED)?);
        let ids = bounded("segment ids", input.u64("segment ids")?, MAX_OUTPUTS)?;
        let mut inputs = 0;
        let mut sources = Vec::new();
        for _ in 0..input.count("runs", MAX_SOURCES)? {
            let run = input.segments(MAX_INPUTS - inputs)?;
            inputs += run.len();
            sources.push(run);
        }
        let mut older = Vec::new();
        for _ in 0..input.count("older ranges", MAX_OLDER)? {
            older.push(KeyRange { first: input.key()?, last: input.key()? });
        }
        let mut space = Vec::new();
        for _ in 0..input.count("runs of blocks", MAX_SPACE)? {
            let range =
                BlockRange { start: BlockAddr(input.u64("block")?), len_blocks: input.u32("number of blocks")? };
            // Block 0 is the superblock.
            if range.start.0 == 0 || range.end().is_none() {
                return Err(JobError::Value { what: "block", found: range.start.0 });
            }
            space.push(range);
        }
        input.end()?;
        let shape = Shape { segment_bytes, block_bytes, copies };
        Ok(CompactionJob {
            shard,
            target,
            within,
            sources,
            oldest,
            bottom: Bottom::new(older),
            shape,
            first_id,
            ids,
            space,
        })
    }
}

impl Outcome {
    /// `None` when it does not fit [`MAX_JOB_BYTES`].
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        out.put_u64_le(self.read.entries);
        out.put_u64_le(self.read.range_tombstones);
        put_segments(&mut out, &self.segments);
        (out.len() <= MAX_JOB_BYTES).then_some(out)
    }

    pub fn decode(bytes: &[u8]) -> Result<Outcome, JobError> {
        let input = &mut Input::new(bytes)?;
        let read = Tally { entries: input.u64("entries")?, range_tombstones: input.u64("range tombstones")? };
        let segments = input.segments(MAX_OUTPUTS as usize)?;
        input.end()?;
        Ok(Outcome { segments, read })
    }
}

fn put_segments(out: &mut Vec<u8>, segments: &[SegmentMeta]) {
    out.put_u32_le(segments.len() as u32);
    segments.iter().for_each(|meta| meta.encode(out));
}

fn bounded(what: &'static str, found: u64, bound: u64) -> Result<u64, JobError> {
    if found > bound { Err(JobError::Bound { what, found, bound }) } else { Ok(found) }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn new(bytes: &'a [u8]) -> Result<Input<'a>, JobError> {
        bounded("length", bytes.len() as u64, MAX_JOB_BYTES as u64)?;
        Ok(Input(bytes))
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, JobError> {
        self.0.try_get_u8().map_err(|_| JobError::Short { what })
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, JobError> {
        self.0.try_get_u32_le().map_err(|_| JobError::Short { what })
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, JobError> {
        self.0.try_get_u64_le().map_err(|_| JobError::Short { what })
    }

    fn count(&mut self, what: &'static str, bound: usize) -> Result<usize, JobError> {
        Ok(bounded(what, self.u32(what)?.into(), bound as u64)? as usize)
    }

    fn key(&mut self) -> Result<Key, JobError> {
        let (key, rest) = self.0.split_first_chunk().ok_or(JobError::Short { what: "key" })?;
        self.0 = rest;
        Ok(Key(*key))
    }

    fn segments(&mut self, most: usize) -> Result<Vec<SegmentMeta>, JobError> {
        let mut out = Vec::new();
        for _ in 0..self.count("segments", most)? {
            let (meta, rest) = SegmentMeta::decode(self.0)?;
            self.0 = rest;
            out.push(meta);
        }
        Ok(out)
    }

    fn end(&self) -> Result<(), JobError> {
        bounded("bytes after the end", self.0.len() as u64, 0).map(|_| ())
    }
}
