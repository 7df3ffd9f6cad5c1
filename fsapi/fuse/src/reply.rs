//! Builds replies: a fixed part kept inline, and a payload that is sent from where it lies.

use std::time::Duration;

use zerocopy::{Immutable, IntoBytes};

use crate::abi::{AttrOut, AttrWire, EntryOut, OpenOut, StatfsOut, StatxOut, StatxWire, SxTime, fopen};
use crate::types::{Attr, Entry, Opened, Payload, Statfs, Time};

/// The longest fixed part is CREATE's: an entry and an open file.
const FIXED_MAX: usize = size_of::<EntryOut>() + size_of::<OpenOut>();

/// A successful answer. Invariant: `fixed_len <= FIXED_MAX`.
#[derive(Debug)]
pub struct Reply {
    fixed: [u8; FIXED_MAX],
    fixed_len: u8,
    payload: Payload,
}

impl Reply {
    pub fn empty() -> Reply {
        Reply { fixed: [0; FIXED_MAX], fixed_len: 0, payload: Payload::None }
    }

    /// One fixed struct.
    pub fn of<T: IntoBytes + Immutable>(part: &T) -> Reply {
        Reply::empty().and(part)
    }

    pub fn entry(entry: &Entry) -> Reply {
        Reply::of(&entry_out(entry))
    }

    pub fn attr(attr: &Attr, ttl: Duration) -> Reply {
        let (attr_valid, attr_valid_nsec) = (ttl.as_secs(), ttl.subsec_nanos());
        Reply::of(&AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: attr_wire(attr) })
    }

    /// Too long for the fixed part.
    pub fn statx(attr: &Attr, ttl: Duration) -> Reply {
        let (attr_valid, attr_valid_nsec) = (ttl.as_secs(), ttl.subsec_nanos());
        let out = StatxOut { attr_valid, attr_valid_nsec, stat: statx_wire(attr), ..StatxOut::default() };
        Reply::payload(Payload::Bytes(out.as_bytes().to_vec()))
    }

    pub fn opened(opened: &Opened) -> Reply {
        Reply::of(&open_out(opened))
    }

    pub fn created(entry: &Entry, opened: &Opened) -> Reply {
        Reply::of(&entry_out(entry)).and(&open_out(opened))
    }

    pub fn statfs(st: &Statfs) -> Reply {
        Reply::of(&StatfsOut {
            blocks: st.blocks,
            bfree: st.bfree,
            bavail: st.bavail,
            files: st.files,
            ffree: st.ffree,
            bsize: st.bsize,
            namelen: st.namelen,
            frsize: st.bsize,
            ..Default::default()
        })
    }

    pub fn payload(payload: Payload) -> Reply {
        Reply { payload, ..Reply::empty() }
    }

    fn and<T: IntoBytes + Immutable>(mut self, part: &T) -> Reply {
        let at = self.fixed_len as usize;
        let end = at + size_of::<T>();
        self.fixed[at..end].copy_from_slice(part.as_bytes());
        self.fixed_len = end as u8;
        self
    }

    pub fn fixed_part(&self) -> &[u8] {
        &self.fixed[..self.fixed_len as usize]
    }

    pub fn payload_part(&self) -> &Payload {
        &self.payload
    }
}

pub(crate) fn attr_wire(attr: &Attr) -> AttrWire {
    AttrWire {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.secs as u64,
        mtime: attr.mtime.secs as u64,
        ctime: attr.ctime.secs as u64,
        atimensec: attr.atime.nanos,
        mtimensec: attr.mtime.nanos,
        ctimensec: attr.ctime.nanos,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

fn statx_wire(attr: &Attr) -> StatxWire {
    let time = |t: Time| SxTime { secs: t.secs, nanos: t.nanos, reserved: 0 };
    let (major, minor) = device(attr.rdev);
    StatxWire {
        mask: libc::STATX_BASIC_STATS | if attr.crtime.is_some() { libc::STATX_BTIME } else { 0 },
        blksize: attr.blksize,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: attr.mode as u16,
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        btime: time(attr.crtime.unwrap_or_default()),
        ctime: time(attr.ctime),
        mtime: time(attr.mtime),
        rdev_major: major,
        rdev_minor: minor,
        ..StatxWire::default()
    }
}

/// Major and minor of the kernel's 32-bit encoding of a device number (`new_encode_dev`).
fn device(rdev: u32) -> (u32, u32) {
    (rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xfff00)
}

pub(crate) fn entry_out(entry: &Entry) -> EntryOut {
    EntryOut {
        nodeid: entry.nodeid,
        generation: entry.generation,
        entry_valid: entry.entry_ttl.as_secs(),
        attr_valid: entry.attr_ttl.as_secs(),
        entry_valid_nsec: entry.entry_ttl.subsec_nanos(),
        attr_valid_nsec: entry.attr_ttl.subsec_nanos(),
        attr: attr_wire(&entry.attr),
    }
}

fn open_out(opened: &Opened) -> OpenOut {
    let bit = |on: bool, flag: u32| if on { flag } else { 0 };
    let open_flags = bit(opened.direct_io, fopen::DIRECT_IO)
        | bit(opened.keep_cache, fopen::KEEP_CACHE)
        | bit(opened.cache_dir, fopen::CACHE_DIR)
        | bit(opened.no_flush, fopen::NOFLUSH)
        | bit(opened.parallel_direct_writes, fopen::PARALLEL_DIRECT_WRITES);
    OpenOut { fh: opened.fh, open_flags, padding: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statx_tells_the_birth_only_when_it_is_known() {
        let born = Time { secs: -5, nanos: 9 };
        let attr = Attr { ino: 7, rdev: 0x0010_0803, crtime: Some(born), ..Attr::default() };
        let wire = statx_wire(&attr);
        assert_eq!((wire.btime.secs, wire.btime.nanos, wire.mask & libc::STATX_BTIME), (-5, 9, libc::STATX_BTIME));
        assert_eq!((wire.rdev_major, wire.rdev_minor), (8, 0x103));
        assert_eq!(statx_wire(&Attr::default()).mask, libc::STATX_BASIC_STATS);
        assert_eq!(Reply::statx(&attr, Duration::ZERO).payload_part().len(), 288);
    }

    #[test]
    fn create_carries_entry_and_open_file() {
        let entry = Entry { nodeid: 7, attr: Attr { ino: 8, ..Attr::default() }, ..Entry::default() };
        let reply = Reply::created(&entry, &Opened { fh: 9, direct_io: true, ..Opened::default() });
        let fixed = reply.fixed_part();
        assert_eq!(fixed.len(), 144);
        assert_eq!(fixed[..8], 7u64.to_ne_bytes());
        assert_eq!(fixed[128..136], 9u64.to_ne_bytes());
        assert_eq!(fixed[136..140], fopen::DIRECT_IO.to_ne_bytes());
    }
}
