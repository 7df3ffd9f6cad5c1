//! The errors of decoding, and the small types that requests and responses share.

use bytes::Bytes;
use thiserror::Error;
use vellum_base::{BlockAddr, BlockRange, Ino, Key, View};

use crate::message::{FilePart, LockGrant, LockMode, LockName, LockWant, MAX_JOB_BYTES, MAX_RANGES, MAX_WANTS};
use crate::reader::Reader;
use crate::writer;

/// Why bytes are no frame or message. It costs the connection on which they came, and nothing else.
#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum WireFault {
    #[error("{what}: {needed} bytes are missing")]
    Short { what: &'static str, needed: usize },
    #[error("{what}: {found} passes the bound {bound}")]
    Bound { what: &'static str, found: u64, bound: u64 },
    #[error("{what}: {found} is no legal value")]
    Value { what: &'static str, found: u64 },
    #[error("{what}: {left} bytes after its end")]
    Trailing { what: &'static str, left: usize },
    #[error("frame checksum {found:08x}, expected {expected:08x}")]
    Checksum { expected: u32, found: u32 },
    #[error("magic {found:08x}: the peer speaks another protocol")]
    Magic { found: u32 },
    #[error("protocol version {found}, ours is {ours}")]
    Version { found: u8, ours: u8 },
}

/// Bytes of one want, one grant, one range, one part of a file.
pub(crate) const WANT_LEN: usize = 10;
pub(crate) const GRANT_LEN: usize = WANT_LEN + 8;
pub(crate) const RANGE_LEN: usize = 12;
pub(crate) const PART_LEN: usize = 8 + RANGE_LEN;

pub(crate) fn put_name(out: &mut Vec<u8>, name: LockName) {
    match name {
        LockName::Rename => {
            writer::u8(out, 0);
            writer::u64(out, 0);
        }
        LockName::Group(group) => {
            writer::u8(out, 1);
            writer::u64(out, group);
        }
    }
}

pub(crate) fn name(r: &mut Reader) -> Result<LockName, WireFault> {
    let (tag, group) = (r.u8("lock name")?, r.u64("lock name")?);
    match tag {
        0 if group == 0 => Ok(LockName::Rename),
        1 => Ok(LockName::Group(group)),
        found => Err(WireFault::Value { what: "lock name", found: found.into() }),
    }
}

pub(crate) fn mode(r: &mut Reader) -> Result<LockMode, WireFault> {
    match r.u8("lock mode")? {
        0 => Ok(LockMode::Null),
        1 => Ok(LockMode::Read),
        2 => Ok(LockMode::Write),
        found => Err(WireFault::Value { what: "lock mode", found: found.into() }),
    }
}

pub(crate) fn put_wants(out: &mut Vec<u8>, wants: &[LockWant]) {
    writer::len(out, wants.len());
    for want in wants {
        put_name(out, want.name);
        writer::u8(out, want.mode as u8);
    }
}

pub(crate) fn wants(r: &mut Reader) -> Result<Vec<LockWant>, WireFault> {
    r.list("locks", MAX_WANTS, WANT_LEN, |r| Ok(LockWant { name: name(r)?, mode: mode(r)? }))
}

pub(crate) fn put_grants(out: &mut Vec<u8>, grants: &[LockGrant]) {
    writer::len(out, grants.len());
    for grant in grants {
        put_name(out, grant.name);
        writer::u8(out, grant.mode as u8);
        writer::u64(out, grant.write_seq);
    }
}

pub(crate) fn grants(r: &mut Reader) -> Result<Vec<LockGrant>, WireFault> {
    r.list("grants", MAX_WANTS, GRANT_LEN, |r| {
        Ok(LockGrant { name: name(r)?, mode: mode(r)?, write_seq: r.u64("write sequence")? })
    })
}

pub(crate) fn put_ranges(out: &mut Vec<u8>, ranges: &[BlockRange]) {
    writer::len(out, ranges.len());
    ranges.iter().for_each(|range| put_range(out, range));
}

fn put_range(out: &mut Vec<u8>, range: &BlockRange) {
    writer::u64(out, range.start.0);
    writer::u32(out, range.len_blocks);
}

fn range(r: &mut Reader) -> Result<BlockRange, WireFault> {
    Ok(BlockRange { start: BlockAddr(r.u64("range start")?), len_blocks: r.u32("range length")? })
}

pub(crate) fn ranges(r: &mut Reader) -> Result<Vec<BlockRange>, WireFault> {
    r.list("block ranges", MAX_RANGES, RANGE_LEN, range)
}

pub(crate) fn put_parts(out: &mut Vec<u8>, parts: &[FilePart]) {
    writer::len(out, parts.len());
    for part in parts {
        writer::u64(out, part.block);
        put_range(out, &part.range);
    }
}

pub(crate) fn parts(r: &mut Reader) -> Result<Vec<FilePart>, WireFault> {
    r.list("file parts", MAX_RANGES, PART_LEN, |r| Ok(FilePart { block: r.u64("file block")?, range: range(r)? }))
}

/// A job or an outcome.
pub(crate) fn job(r: &mut Reader) -> Result<Bytes, WireFault> {
    let job = r.bytes("job")?;
    if job.len() > MAX_JOB_BYTES {
        return Err(WireFault::Bound { what: "job", found: job.len() as u64, bound: MAX_JOB_BYTES as u64 });
    }
    Ok(job)
}

pub(crate) fn put_view(out: &mut Vec<u8>, view: View) {
    writer::u8(
        out,
        match view {
            View::Applied => 0,
            View::Durable => 1,
        },
    );
}

pub(crate) fn view(r: &mut Reader) -> Result<View, WireFault> {
    match r.u8("view")? {
        0 => Ok(View::Applied),
        1 => Ok(View::Durable),
        found => Err(WireFault::Value { what: "view", found: found.into() }),
    }
}

pub(crate) fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    writer::u8(out, u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

pub(crate) fn put_key(out: &mut Vec<u8>, key: &Key) {
    out.extend_from_slice(&key.0);
}

pub(crate) fn put_entry(out: &mut Vec<u8>, (seq, ino): (u64, Ino)) {
    writer::u64(out, seq);
    writer::u64(out, ino.0);
}

pub(crate) fn entry(r: &mut Reader) -> Result<(u64, Ino), WireFault> {
    Ok((r.u64("index sequence")?, Ino(r.u64("index inode")?)))
}
