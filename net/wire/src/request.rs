//! Encoding of requests. The code travels in the frame header; the fields follow in the order of the enum.

use bytes::Bytes;
use vellum_base::batch::{MAX_BATCH_BYTES, MAX_BATCH_OPS};
use vellum_base::{BLOCK_SIZE, Batch, BatchNo, BlockRange, Ino, ItemOp, Key, KeyRange};

use crate::admin;
use crate::codec::{self, WireFault};
use crate::files;
use crate::header::MAX_CONTROL;
use crate::message::{MAX_ITEMS, MAX_WANTS, Request};
use crate::reader::Reader;
use crate::writer;

mod code {
    pub(super) const LOCK: u16 = 1;
    pub(super) const UNLOCK: u16 = 2;
    pub(super) const REASSERT: u16 = 3;
    pub(super) const GET: u16 = 4;
    pub(super) const SCAN: u16 = 5;
    pub(super) const WRITE_DATA: u16 = 6;
    pub(super) const READ_DATA: u16 = 7;
    pub(super) const COMMIT: u16 = 8;
    pub(super) const SYNC: u16 = 9;
    pub(super) const ALLOC_GROUP: u16 = 10;
    pub(super) const WALK: u16 = 11;
    pub(super) const STAT_FS: u16 = 12;
    pub(super) const STATUS: u16 = 13;
    pub(super) const FAREWELL: u16 = 14;
    pub(super) const KEEPALIVE: u16 = 15;
    pub(super) const INVALIDATE: u16 = 16;
    pub(super) const REASSERT_FILES: u16 = 17;
    pub(super) const FILE_LOCK: u16 = 18;
    pub(super) const FILE_LOCK_TEST: u16 = 19;
    pub(super) const FILE_LOCK_CANCEL: u16 = 20;
    pub(super) const OPENED: u16 = 21;
    pub(super) const CLOSED: u16 = 22;
    pub(super) const OPENERS: u16 = 23;
    pub(super) const FILE_LOCK_DONE: u16 = 24;
    pub(super) const READ_FILE: u16 = 25;
    pub(super) const COMPACT_ALL: u16 = 32;
    pub(super) const WORK: u16 = 33;
    pub(super) const COMPACT: u16 = 34;
    pub(super) const ADMIN: u16 = 40;
}

/// What a value of an item, and an entry of an index, may take in an answer.
const MAX_VALUE_BYTES: u64 = 2048;
const ENTRY_BYTES: u64 = 16;

const OP_PUT: u8 = 1;
const OP_DELETE: u8 = 2;
const OP_DELETE_INODE: u8 = 3;
const MIN_OP_LEN: usize = 9;

/// A status lists a bounded number of clients per reactor.
const MAX_STATUS_BYTES: u64 = 1 << 20;

impl Request {
    /// What the frame header calls this message.
    pub fn code(&self) -> u16 {
        match self {
            Request::Lock { .. } => code::LOCK,
            Request::Unlock { .. } => code::UNLOCK,
            Request::Reassert { .. } => code::REASSERT,
            Request::Get { .. } => code::GET,
            Request::Scan { .. } => code::SCAN,
            Request::WriteData => code::WRITE_DATA,
            Request::ReadData { .. } => code::READ_DATA,
            Request::ReadFile { .. } => code::READ_FILE,
            Request::Commit { .. } => code::COMMIT,
            Request::Sync { .. } => code::SYNC,
            Request::AllocGroup { .. } => code::ALLOC_GROUP,
            Request::Walk { .. } => code::WALK,
            Request::StatFs => code::STAT_FS,
            Request::Status => code::STATUS,
            Request::Admin { .. } => code::ADMIN,
            Request::Farewell => code::FAREWELL,
            Request::Keepalive => code::KEEPALIVE,
            Request::Invalidate { .. } => code::INVALIDATE,
            Request::ReassertFiles { .. } => code::REASSERT_FILES,
            Request::FileLock { .. } => code::FILE_LOCK,
            Request::FileLockTest { .. } => code::FILE_LOCK_TEST,
            Request::FileLockCancel { .. } => code::FILE_LOCK_CANCEL,
            Request::Opened { .. } => code::OPENED,
            Request::Closed { .. } => code::CLOSED,
            Request::Openers { .. } => code::OPENERS,
            Request::FileLockDone { .. } => code::FILE_LOCK_DONE,
            Request::CompactAll => code::COMPACT_ALL,
            Request::Work { .. } => code::WORK,
            Request::Compact { .. } => code::COMPACT,
        }
    }

    /// Name for logs and counters.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Lock { .. } => "lock",
            Request::Unlock { .. } => "unlock",
            Request::Reassert { .. } => "reassert",
            Request::Get { .. } => "get",
            Request::Scan { .. } => "scan",
            Request::WriteData => "write_data",
            Request::ReadData { .. } => "read_data",
            Request::ReadFile { .. } => "read_file",
            Request::Commit { .. } => "commit",
            Request::Sync { .. } => "sync",
            Request::AllocGroup { .. } => "alloc_group",
            Request::Walk { .. } => "walk",
            Request::StatFs => "statfs",
            Request::Status => "status",
            Request::Admin { .. } => "admin",
            Request::Farewell => "farewell",
            Request::Keepalive => "keepalive",
            Request::Invalidate { .. } => "invalidate",
            Request::ReassertFiles { .. } => "reassert_files",
            Request::FileLock { .. } => "file_lock",
            Request::FileLockTest { .. } => "file_lock_test",
            Request::FileLockCancel { .. } => "file_lock_cancel",
            Request::Opened { .. } => "opened",
            Request::Closed { .. } => "closed",
            Request::Openers { .. } => "openers",
            Request::FileLockDone { .. } => "file_lock_done",
            Request::CompactAll => "compact_all",
            Request::Work { .. } => "work",
            Request::Compact { .. } => "compact",
        }
    }

    /// Bytes of data that this request makes each side hold, besides the control part: what credits count.
    pub fn data_bytes(&self, payload_len: usize) -> u64 {
        match self {
            Request::ReadData { ranges } => data_len(ranges.iter()),
            Request::ReadFile { parts, .. } => data_len(parts.iter().map(|part| &part.range)),
            Request::Commit { batch } => batch.ops.iter().map(|op| op.len_bytes() as u64).sum(),
            // Whatever is asked for, no answer is longer than a frame.
            Request::Scan { max_bytes, .. } => u64::from(*max_bytes).min(MAX_CONTROL as u64),
            Request::Get { keys, .. } => keys.len() as u64 * MAX_VALUE_BYTES,
            Request::Compact { job } => job.len() as u64,
            Request::Walk { max, .. } => (u64::from(*max) * ENTRY_BYTES).min(MAX_CONTROL as u64),
            // What waits for other clients is held for long.
            Request::Lock { .. } | Request::Unlock { .. } | Request::Reassert { .. } => self.control_len() as u64,
            Request::Status => MAX_STATUS_BYTES,
            _ => payload_len as u64,
        }
    }

    /// At least the bytes that [`Self::encode`] will append.
    pub fn control_len(&self) -> usize {
        const FIXED: usize = 96;
        FIXED
            + match self {
                Request::Lock { wants } | Request::Unlock { to: wants } => wants.len() * codec::WANT_LEN,
                Request::Reassert { locks, .. } => locks.len() * codec::GRANT_LEN,
                Request::ReassertFiles { locks, opens } => locks.len() * files::HELD_LEN + opens.len() * 8,
                Request::Opened { inos } | Request::Closed { inos } | Request::Openers { inos } => inos.len() * 8,
                Request::Get { keys, .. } => keys.len() * Key::LEN,
                Request::ReadData { ranges } => ranges.len() * codec::RANGE_LEN,
                Request::ReadFile { parts, .. } => parts.len() * codec::PART_LEN,
                Request::Compact { job } => job.len(),
                Request::Commit { batch } => batch.ops.iter().map(|op| op.len_bytes() + MIN_OP_LEN).sum(),
                _ => 0,
            }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Request::Lock { wants } => codec::put_wants(out, wants),
            Request::Unlock { to } => codec::put_wants(out, to),
            Request::Reassert { locks, last } => {
                codec::put_grants(out, locks);
                writer::u8(out, u8::from(*last));
            }
            Request::Get { keys, view } => {
                writer::len(out, keys.len());
                keys.iter().for_each(|key| codec::put_key(out, key));
                codec::put_view(out, *view);
            }
            Request::Scan { range, max_items, max_bytes, view } => {
                codec::put_key(out, &range.first);
                codec::put_key(out, &range.last);
                writer::u32(out, *max_items);
                writer::u32(out, *max_bytes);
                codec::put_view(out, *view);
            }
            Request::ReadData { ranges } => codec::put_ranges(out, ranges),
            Request::ReadFile { ino, parts } => {
                writer::u64(out, ino.0);
                codec::put_parts(out, parts);
            }
            Request::Commit { batch } => put_batch(out, batch),
            Request::Sync { through } => writer::u64(out, through.0),
            Request::AllocGroup { near } => codec::put_option(out, *near, |out, ino| writer::u64(out, ino.0)),
            Request::Walk { index, from_seq, from_ino, to_seq, max } => {
                writer::u8(out, *index);
                codec::put_entry(out, (*from_seq, *from_ino));
                writer::u64(out, *to_seq);
                writer::u32(out, *max);
            }
            Request::Invalidate { name, mode } => {
                codec::put_name(out, *name);
                writer::u8(out, *mode as u8);
            }
            Request::Admin { what } => admin::put(out, what),
            Request::ReassertFiles { locks, opens } => {
                files::put_held(out, locks);
                files::put_inos(out, opens);
            }
            Request::FileLock { ino, lock, ticket } => {
                writer::u64(out, ino.0);
                files::put_lock(out, lock);
                codec::put_option(out, *ticket, writer::u64);
            }
            Request::FileLockTest { ino, lock } => {
                writer::u64(out, ino.0);
                files::put_lock(out, lock);
            }
            Request::FileLockCancel { ino, ticket } => {
                writer::u64(out, ino.0);
                writer::u64(out, *ticket);
            }
            Request::Opened { inos } | Request::Closed { inos } | Request::Openers { inos } => {
                files::put_inos(out, inos);
            }
            Request::FileLockDone { ticket, outcome } => {
                writer::u64(out, *ticket);
                writer::u8(out, *outcome as u8);
            }
            Request::Work { jobs } => writer::u32(out, *jobs),
            Request::Compact { job } => writer::bytes(out, job),
            Request::WriteData
            | Request::StatFs
            | Request::Status
            | Request::Farewell
            | Request::Keepalive
            | Request::CompactAll => {}
        }
    }

    pub fn decode(code: u16, control: Bytes) -> Result<Request, WireFault> {
        let r = &mut Reader::new(control);
        let request = match code {
            code::LOCK => Request::Lock { wants: codec::wants(r)? },
            code::UNLOCK => Request::Unlock { to: codec::wants(r)? },
            code::REASSERT => Request::Reassert { locks: codec::grants(r)?, last: r.bool("last page")? },
            code::GET => {
                Request::Get { keys: r.list("keys", MAX_ITEMS, Key::LEN, Reader::key)?, view: codec::view(r)? }
            }
            code::SCAN => Request::Scan {
                range: KeyRange { first: r.key()?, last: r.key()? },
                max_items: r.u32("scan limit")?,
                max_bytes: r.u32("scan limit")?,
                view: codec::view(r)?,
            },
            code::WRITE_DATA => Request::WriteData,
            code::READ_DATA => Request::ReadData { ranges: codec::ranges(r)? },
            code::READ_FILE => Request::ReadFile { ino: Ino(r.u64("inode")?), parts: codec::parts(r)? },
            code::COMMIT => Request::Commit { batch: batch(r)? },
            code::SYNC => Request::Sync { through: BatchNo(r.u64("batch number")?) },
            code::ALLOC_GROUP => Request::AllocGroup { near: r.option("inode", |r| r.u64("inode").map(Ino))? },
            code::WALK => {
                let index = r.u8("index")?;
                let (from_seq, from_ino) = codec::entry(r)?;
                Request::Walk { index, from_seq, from_ino, to_seq: r.u64("index sequence")?, max: r.u32("limit")? }
            }
            code::STAT_FS => Request::StatFs,
            code::STATUS => Request::Status,
            code::ADMIN => Request::Admin { what: admin::get(r)? },
            code::FAREWELL => Request::Farewell,
            code::KEEPALIVE => Request::Keepalive,
            code::COMPACT_ALL => Request::CompactAll,
            code::WORK => Request::Work { jobs: r.u32("jobs")? },
            code::COMPACT => Request::Compact { job: codec::job(r)? },
            code::INVALIDATE => Request::Invalidate { name: codec::name(r)?, mode: codec::mode(r)? },
            code::REASSERT_FILES => {
                Request::ReassertFiles { locks: files::held(r, MAX_WANTS)?, opens: files::inos(r, MAX_WANTS)? }
            }
            code::FILE_LOCK => Request::FileLock {
                ino: Ino(r.u64("inode")?),
                lock: files::lock(r)?,
                ticket: r.option("ticket", |r| r.u64("ticket"))?,
            },
            code::FILE_LOCK_TEST => Request::FileLockTest { ino: Ino(r.u64("inode")?), lock: files::lock(r)? },
            code::FILE_LOCK_CANCEL => Request::FileLockCancel { ino: Ino(r.u64("inode")?), ticket: r.u64("ticket")? },
            code::OPENED => Request::Opened { inos: files::inos(r, MAX_WANTS)? },
            code::CLOSED => Request::Closed { inos: files::inos(r, MAX_WANTS)? },
            code::OPENERS => Request::Openers { inos: files::inos(r, MAX_WANTS)? },
            code::FILE_LOCK_DONE => Request::FileLockDone { ticket: r.u64("ticket")?, outcome: files::outcome(r)? },
            found => return Err(WireFault::Value { what: "request code", found: found.into() }),
        };
        r.end("request")?;
        Ok(request)
    }
}

fn data_len<'a>(ranges: impl Iterator<Item = &'a BlockRange>) -> u64 {
    ranges.map(|range| u64::from(range.len_blocks) * BLOCK_SIZE as u64).fold(0, u64::saturating_add)
}

fn put_batch(out: &mut Vec<u8>, batch: &Batch) {
    writer::u64(out, batch.number.0);
    writer::len(out, batch.ops.len());
    for op in &batch.ops {
        match op {
            ItemOp::Put { key, value } => {
                writer::u8(out, OP_PUT);
                codec::put_key(out, key);
                writer::bytes(out, value);
            }
            ItemOp::Delete { key } => {
                writer::u8(out, OP_DELETE);
                codec::put_key(out, key);
            }
            ItemOp::DeleteInode { ino } => {
                writer::u8(out, OP_DELETE_INODE);
                writer::u64(out, ino.0);
            }
        }
    }
}

fn batch(r: &mut Reader) -> Result<Batch, WireFault> {
    let number = BatchNo(r.u64("batch number")?);
    let mut bytes = 0;
    let ops = r.list("batch operations", MAX_BATCH_OPS, MIN_OP_LEN, |r| {
        let op = match r.u8("operation")? {
            OP_PUT => ItemOp::Put { key: r.key()?, value: r.bytes("value")? },
            OP_DELETE => ItemOp::Delete { key: r.key()? },
            OP_DELETE_INODE => ItemOp::DeleteInode { ino: Ino(r.u64("inode")?) },
            found => return Err(WireFault::Value { what: "operation", found: found.into() }),
        };
        bytes += op.len_bytes();
        Ok(op)
    })?;
    if bytes > MAX_BATCH_BYTES {
        return Err(WireFault::Bound { what: "batch bytes", found: bytes as u64, bound: MAX_BATCH_BYTES as u64 });
    }
    Ok(Batch { number, ops })
}
