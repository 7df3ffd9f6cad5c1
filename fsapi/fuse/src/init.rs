//! FUSE_INIT: what kernel and filesystem agree on. Pure; the session carries the bytes.

use crate::abi::{InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, OLDEST_MINOR_VERSION, init, notify};
use crate::types::Errno;

/// The largest WRITE and READ: what the kernel allows by default (256 pages).
pub const MAX_WRITE: usize = 1 << 20;
const PAGE_SIZE: usize = 4096;
/// Background requests (readahead, asynchronous direct IO, released files) that the kernel keeps in flight.
const MAX_BACKGROUND: u16 = 64;
/// Where the kernel begins to hold writers back.
const CONGESTION_THRESHOLD: u16 = 48;

/// What a filesystem wants to do itself instead of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wants {
    /// Dirty pages stay in the kernel: right only for a mount that nobody else can write behind.
    pub writeback_cache: bool,
    /// fcntl locks are asked; otherwise the kernel keeps them for this mount alone.
    pub posix_locks: bool,
    pub flock_locks: bool,
    /// O_TRUNC comes with OPEN instead of a SETATTR after it.
    pub atomic_o_trunc: bool,
    /// The umask is left to the filesystem (default ACLs need that).
    pub dont_mask: bool,
    pub posix_acl: bool,
    pub readdirplus: bool,
    /// The kernel tells when setuid, setgid and capabilities must go, instead of asking for `security.capability`
    /// before each write.
    pub handle_killpriv_v2: bool,
    /// The page cache is dropped only by notification, not when mtime or size changed.
    pub explicit_inval_data: bool,
    pub max_write: usize,
    pub max_readahead: u32,
}

impl Default for Wants {
    fn default() -> Wants {
        Wants {
            writeback_cache: false,
            posix_locks: false,
            flock_locks: false,
            atomic_o_trunc: false,
            dont_mask: false,
            posix_acl: false,
            readdirplus: true,
            handle_killpriv_v2: true,
            explicit_inval_data: false,
            max_write: MAX_WRITE,
            max_readahead: MAX_WRITE as u32,
        }
    }
}

/// What was agreed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SessionInfo {
    pub minor: u32,
    /// `init::*` bits that both sides have.
    pub flags: u64,
    pub max_write: usize,
    pub max_readahead: u32,
}

impl SessionInfo {
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    pub fn has_prune(&self) -> bool {
        self.minor >= notify::PRUNE_SINCE_MINOR
    }

    pub fn has_inc_epoch(&self) -> bool {
        self.minor >= notify::INC_EPOCH_SINCE_MINOR
    }
}

/// The answer to INIT. A kernel with a newer major version is told ours (`Ok(None)`: it asks again); one that is too
/// old is refused with EPROTO.
pub fn negotiate(offer: &InitIn, flags2: Option<u32>, wants: &Wants) -> Result<(InitOut, Option<SessionInfo>), Errno> {
    if offer.major > KERNEL_VERSION {
        let out = InitOut { major: KERNEL_VERSION, minor: KERNEL_MINOR_VERSION, ..InitOut::default() };
        return Ok((out, None));
    }
    if offer.major < KERNEL_VERSION || offer.minor < OLDEST_MINOR_VERSION {
        return Err(Errno::EPROTO);
    }
    let offered = offer.flags as u64 | (flags2.unwrap_or(0) as u64) << 32;
    let flags = offered & wanted_flags(wants);
    // A multiple of the page size that fits the kernel's requests; without MAX_PAGES those have 32 pages.
    let pages_max = if flags & init::MAX_PAGES != 0 { MAX_WRITE / PAGE_SIZE } else { 32 };
    let max_write = (wants.max_write / PAGE_SIZE).clamp(1, pages_max) * PAGE_SIZE;
    let minor = offer.minor.min(KERNEL_MINOR_VERSION);
    let max_readahead = offer.max_readahead.min(wants.max_readahead);
    let out = InitOut {
        major: KERNEL_VERSION,
        minor,
        max_readahead,
        flags: flags as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: CONGESTION_THRESHOLD,
        max_write: max_write as u32,
        time_gran: 1,
        max_pages: (max_write / PAGE_SIZE) as u16,
        flags2: (flags >> 32) as u32,
        ..InitOut::default()
    };
    Ok((out, Some(SessionInfo { minor, flags, max_write, max_readahead })))
}

fn wanted_flags(wants: &Wants) -> u64 {
    let mut flags = init::ASYNC_READ
        | init::EXPORT_SUPPORT
        | init::BIG_WRITES
        | init::ASYNC_DIO
        | init::PARALLEL_DIROPS
        | init::ABORT_ERROR
        | init::MAX_PAGES
        | init::CACHE_SYMLINKS
        | init::SETXATTR_EXT
        | init::INIT_EXT
        | init::HAS_EXPIRE_ONLY
        | init::DIRECT_IO_ALLOW_MMAP;
    let mut add = |on: bool, bits: u64| flags |= if on { bits } else { 0 };
    add(wants.writeback_cache, init::WRITEBACK_CACHE);
    add(wants.posix_locks, init::POSIX_LOCKS);
    add(wants.flock_locks, init::FLOCK_LOCKS);
    add(wants.atomic_o_trunc, init::ATOMIC_O_TRUNC);
    add(wants.dont_mask, init::DONT_MASK);
    add(wants.posix_acl, init::POSIX_ACL);
    add(wants.readdirplus, init::DO_READDIRPLUS | init::READDIRPLUS_AUTO);
    add(wants.handle_killpriv_v2, init::HANDLE_KILLPRIV_V2);
    add(wants.explicit_inval_data, init::EXPLICIT_INVAL_DATA);
    add(!wants.explicit_inval_data, init::AUTO_INVAL_DATA);
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(major: u32, minor: u32, flags: u64) -> InitIn {
        InitIn { major, minor, max_readahead: 131_072, flags: flags as u32 }
    }

    #[test]
    fn a_new_kernel_gets_what_both_have() {
        let (out, info) = negotiate(&offer(7, 50, u64::MAX), Some(u32::MAX), &Wants::default()).unwrap();
        let info = info.unwrap();
        assert_eq!((out.major, out.minor, out.max_write, out.max_pages), (7, 45, 1 << 20, 256));
        assert!(info.has(init::HANDLE_KILLPRIV_V2) && info.has(init::DIRECT_IO_ALLOW_MMAP) && info.has_inc_epoch());
        assert!(info.has_prune());
        assert!(!info.has(init::WRITEBACK_CACHE) && !info.has(init::POSIX_LOCKS) && !info.has(init::OVER_IO_URING));
        assert_eq!(out.max_readahead, 131_072);
    }

    #[test]
    fn an_old_kernel_gets_less_or_nothing() {
        let (out, info) = negotiate(&offer(7, 31, init::BIG_WRITES), None, &Wants::default()).unwrap();
        assert_eq!((out.minor, out.max_write, out.flags2), (31, 32 * 4096, 0));
        assert_eq!(info.unwrap().flags, init::BIG_WRITES);
        assert_eq!(negotiate(&offer(7, 30, 0), None, &Wants::default()).unwrap_err(), Errno::EPROTO);
        assert_eq!(negotiate(&offer(8, 0, 0), None, &Wants::default()).unwrap().1, None);
    }
}
