//! Encoding of responses and of the greeting's messages.

use bytes::Bytes;
use vellum_base::{BatchNo, Epoch, Fsid, Ino, Key, Rid, Term};

use crate::codec::{self, WireFault};
use crate::files;
use crate::message::{
    ErrorCode, Greeted, Greeting, MAX_ENTRIES, MAX_ITEMS, MAX_WANTS, Refusal, Response, StatFs, WireError,
};
use crate::reader::Reader;
use crate::writer;

mod code {
    pub(super) const GRANTED: u16 = 1;
    pub(super) const UNLOCKED: u16 = 2;
    pub(super) const REASSERTED: u16 = 3;
    pub(super) const ITEMS: u16 = 4;
    pub(super) const SCANNED: u16 = 5;
    pub(super) const WRITTEN: u16 = 6;
    pub(super) const DATA: u16 = 7;
    pub(super) const COMMITTED: u16 = 8;
    pub(super) const SYNCED: u16 = 9;
    pub(super) const GROUP: u16 = 10;
    pub(super) const WALKED: u16 = 11;
    pub(super) const STAT_FS: u16 = 12;
    pub(super) const STATUS: u16 = 13;
    pub(super) const FAREWELLED: u16 = 14;
    pub(super) const ALIVE: u16 = 15;
    pub(super) const INVALIDATED: u16 = 16;
    pub(super) const ERROR: u16 = 17;
    pub(super) const FILE_LOCKED: u16 = 18;
    pub(super) const FILE_LOCK_FOUND: u16 = 19;
    pub(super) const OPENERS: u16 = 20;
    pub(super) const NOTED: u16 = 21;
    pub(super) const COMPACTED_ALL: u16 = 32;
    pub(super) const WORKING: u16 = 33;
    pub(super) const COMPACTED: u16 = 34;
}

/// Length that says "no such item".
const ABSENT: u32 = u32::MAX;

impl Response {
    pub fn code(&self) -> u16 {
        match self {
            Response::Granted { .. } => code::GRANTED,
            Response::Unlocked => code::UNLOCKED,
            Response::Reasserted => code::REASSERTED,
            Response::Items { .. } => code::ITEMS,
            Response::Scanned { .. } => code::SCANNED,
            Response::Written { .. } => code::WRITTEN,
            Response::Data => code::DATA,
            Response::Committed { .. } => code::COMMITTED,
            Response::Synced { .. } => code::SYNCED,
            Response::Group { .. } => code::GROUP,
            Response::Walked { .. } => code::WALKED,
            Response::StatFs(_) => code::STAT_FS,
            Response::Status { .. } => code::STATUS,
            Response::Farewelled => code::FAREWELLED,
            Response::Alive => code::ALIVE,
            Response::Invalidated => code::INVALIDATED,
            Response::CompactedAll => code::COMPACTED_ALL,
            Response::Working => code::WORKING,
            Response::Compacted { .. } => code::COMPACTED,
            Response::Error(_) => code::ERROR,
            Response::FileLocked { .. } => code::FILE_LOCKED,
            Response::FileLockFound { .. } => code::FILE_LOCK_FOUND,
            Response::Openers { .. } => code::OPENERS,
            Response::Noted => code::NOTED,
        }
    }

    pub fn error(code: ErrorCode, message: impl Into<String>) -> Response {
        Response::Error(WireError { code, message: message.into() })
    }

    /// At least the bytes that [`Self::encode`] will append.
    pub fn control_len(&self) -> usize {
        const FIXED: usize = 96;
        FIXED
            + match self {
                Response::Granted { grants, opens } => grants.len() * codec::GRANT_LEN + opens.len() * 8,
                Response::Openers { open } => open.len(),
                Response::Items { values } => values.iter().map(|v| 4 + v.as_ref().map_or(0, Bytes::len)).sum(),
                Response::Scanned { items, .. } => items.iter().map(|(_, v)| Key::LEN + 4 + v.len()).sum(),
                Response::Written { ranges } => ranges.len() * codec::RANGE_LEN,
                Response::Walked { entries, .. } => entries.len() * 16,
                Response::Status { json } => json.len(),
                Response::Compacted { outcome } => outcome.len(),
                Response::Error(e) => e.message.len(),
                _ => 0,
            }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Response::Granted { grants, opens } => {
                codec::put_grants(out, grants);
                files::put_inos(out, opens);
            }
            Response::FileLocked { outcome } => writer::u8(out, *outcome as u8),
            Response::FileLockFound { found, own } => {
                codec::put_option(out, found.as_ref(), files::put_lock);
                writer::u8(out, u8::from(*own));
            }
            Response::Openers { open } => {
                writer::len(out, open.len());
                open.iter().for_each(|open| writer::u8(out, u8::from(*open)));
            }
            Response::Items { values } => {
                writer::len(out, values.len());
                for value in values {
                    match value {
                        Some(value) => writer::bytes(out, value),
                        None => writer::u32(out, ABSENT),
                    }
                }
            }
            Response::Scanned { items, next } => {
                writer::len(out, items.len());
                for (key, value) in items {
                    codec::put_key(out, key);
                    writer::bytes(out, value);
                }
                codec::put_option(out, next.as_ref(), codec::put_key);
            }
            Response::Written { ranges } => codec::put_ranges(out, ranges),
            Response::Committed { number, epoch } => {
                writer::u64(out, number.0);
                writer::u64(out, epoch.0);
            }
            Response::Synced { durable } => writer::u64(out, durable.0),
            Response::Group { group } => writer::u64(out, *group),
            Response::Walked { entries, next, through } => {
                writer::len(out, entries.len());
                entries.iter().for_each(|entry| codec::put_entry(out, *entry));
                codec::put_option(out, *next, codec::put_entry);
                writer::u64(out, through.0);
            }
            Response::StatFs(s) => {
                for value in [s.total_blocks, s.free_blocks, s.available_blocks, s.inodes] {
                    writer::u64(out, value);
                }
            }
            Response::Status { json } => writer::bytes(out, json.as_bytes()),
            Response::Error(e) => {
                writer::u16(out, e.code as u16);
                writer::bytes(out, e.message.as_bytes());
            }
            Response::Compacted { outcome } => writer::bytes(out, outcome),
            Response::Unlocked
            | Response::Noted
            | Response::CompactedAll
            | Response::Working
            | Response::Reasserted
            | Response::Data
            | Response::Farewelled
            | Response::Alive
            | Response::Invalidated => {}
        }
    }

    pub fn decode(code: u16, control: Bytes) -> Result<Response, WireFault> {
        let r = &mut Reader::new(control);
        let response = match code {
            code::GRANTED => Response::Granted { grants: codec::grants(r)?, opens: files::inos(r, MAX_ITEMS)? },
            code::FILE_LOCKED => Response::FileLocked { outcome: files::outcome(r)? },
            code::FILE_LOCK_FOUND => {
                Response::FileLockFound { found: r.option("file lock", files::lock)?, own: r.bool("own lock")? }
            }
            code::OPENERS => Response::Openers { open: r.list("openers", MAX_WANTS, 1, |r| r.bool("open"))? },
            code::NOTED => Response::Noted,
            code::UNLOCKED => Response::Unlocked,
            code::REASSERTED => Response::Reasserted,
            code::ITEMS => Response::Items {
                values: r.list("values", MAX_ITEMS, 4, |r| match r.u32("value")? {
                    ABSENT => Ok(None),
                    len => r.slice("value", len as usize).map(Some),
                })?,
            },
            code::SCANNED => Response::Scanned {
                items: r.list("items", MAX_ITEMS, Key::LEN + 4, |r| Ok((r.key()?, r.bytes("value")?)))?,
                next: r.option("next key", Reader::key)?,
            },
            code::WRITTEN => Response::Written { ranges: codec::ranges(r)? },
            code::DATA => Response::Data,
            code::COMMITTED => {
                Response::Committed { number: BatchNo(r.u64("batch number")?), epoch: Epoch(r.u64("epoch")?) }
            }
            code::SYNCED => Response::Synced { durable: Epoch(r.u64("epoch")?) },
            code::GROUP => Response::Group { group: r.u64("group")? },
            code::WALKED => Response::Walked {
                entries: r.list("index entries", MAX_ENTRIES, 16, codec::entry)?,
                next: r.option("next entry", codec::entry)?,
                through: Epoch(r.u64("epoch")?),
            },
            code::STAT_FS => Response::StatFs(StatFs {
                total_blocks: r.u64("blocks")?,
                free_blocks: r.u64("blocks")?,
                available_blocks: r.u64("blocks")?,
                inodes: r.u64("inodes")?,
            }),
            code::STATUS => Response::Status { json: r.string("status")? },
            code::FAREWELLED => Response::Farewelled,
            code::ALIVE => Response::Alive,
            code::INVALIDATED => Response::Invalidated,
            code::COMPACTED_ALL => Response::CompactedAll,
            code::WORKING => Response::Working,
            code::COMPACTED => Response::Compacted { outcome: codec::job(r)? },
            code::ERROR => Response::Error(WireError {
                code: ErrorCode::from_u16(r.u16("error code")?),
                message: r.string("error message")?,
            }),
            found => return Err(WireFault::Value { what: "response code", found: found.into() }),
        };
        r.end("response")?;
        Ok(response)
    }
}

impl ErrorCode {
    /// Codes that a later version may send are failures of the device to us: the caller gives up.
    fn from_u16(value: u16) -> ErrorCode {
        match value {
            1 => ErrorCode::NoSpace,
            3 => ErrorCode::Corrupt,
            4 => ErrorCode::NotPermitted,
            5 => ErrorCode::Malformed,
            6 => ErrorCode::Busy,
            7 => ErrorCode::Stopping,
            8 => ErrorCode::NotFound,
            9 => ErrorCode::Unsupported,
            10 => ErrorCode::Interrupted,
            11 => ErrorCode::Outside,
            _ => ErrorCode::Io,
        }
    }
}

impl Greeting {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.fsid.0);
        writer::u32(out, self.protocol);
        writer::u64(out, self.term.0);
        writer::u64(out, self.rid.0);
        writer::u32(out, self.flags);
    }

    pub fn decode(control: Bytes) -> Result<Greeting, WireFault> {
        let r = &mut Reader::new(control);
        let greeting = Greeting {
            fsid: Fsid(r.array16("fsid")?),
            protocol: r.u32("protocol")?,
            term: Term(r.u64("term")?),
            rid: Rid(r.u64("rid")?),
            flags: r.u32("flags")?,
        };
        r.end("greeting")?;
        Ok(greeting)
    }
}

impl Greeted {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.fsid.0);
        writer::u64(out, self.term.0);
        writer::u64(out, self.last_batch.0);
        writer::u64(out, self.durable.0);
        for value in
            [self.protocol, self.format, self.lease_ms, self.keepalive_ms, self.max_requests, self.max_data_bytes]
        {
            writer::u32(out, value);
        }
        writer::u8(out, self.read_only.into());
        writer::u64(out, self.root.0);
    }

    pub fn decode(control: Bytes) -> Result<Greeted, WireFault> {
        let r = &mut Reader::new(control);
        let greeted = Greeted {
            fsid: Fsid(r.array16("fsid")?),
            term: Term(r.u64("term")?),
            last_batch: BatchNo(r.u64("batch number")?),
            durable: Epoch(r.u64("epoch")?),
            protocol: r.u32("protocol")?,
            format: r.u32("format")?,
            lease_ms: r.u32("lease")?,
            keepalive_ms: r.u32("keepalive")?,
            max_requests: r.u32("request limit")?,
            max_data_bytes: r.u32("data limit")?,
            read_only: r.bool("read only")?,
            root: Ino(r.u64("root inode")?),
        };
        r.end("greeted")?;
        Ok(greeted)
    }
}

impl Refusal {
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Refusal::OtherFilesystem { served } => {
                writer::u8(out, 1);
                out.extend_from_slice(&served.0);
            }
            Refusal::OtherProtocol { served } => {
                writer::u8(out, 2);
                writer::u32(out, *served);
            }
            Refusal::Fenced => writer::u8(out, 3),
            Refusal::NotServing => writer::u8(out, 4),
            Refusal::TooManyClients { limit } => {
                writer::u8(out, 5);
                writer::u32(out, *limit);
            }
            Refusal::NoWorker => writer::u8(out, 16),
            Refusal::NoDirectory { path, exists } => {
                writer::u8(out, 17);
                writer::bytes(out, path.as_bytes());
                writer::u8(out, u8::from(*exists));
            }
        }
    }

    pub fn decode(control: Bytes) -> Result<Refusal, WireFault> {
        let r = &mut Reader::new(control);
        let refusal = match r.u8("refusal")? {
            1 => Refusal::OtherFilesystem { served: Fsid(r.array16("fsid")?) },
            2 => Refusal::OtherProtocol { served: r.u32("protocol")? },
            3 => Refusal::Fenced,
            4 => Refusal::NotServing,
            5 => Refusal::TooManyClients { limit: r.u32("limit")? },
            16 => Refusal::NoWorker,
            17 => Refusal::NoDirectory { path: r.string("path")?, exists: r.bool("exists")? },
            found => return Err(WireFault::Value { what: "refusal", found: found.into() }),
        };
        r.end("refusal")?;
        Ok(refusal)
    }
}
