//! Advisory locks of files (fcntl, open file description, flock) and open inodes, as they travel.
//!
//! They are apart from the leases of [`crate::LockName`]: a lease is what lets a client cache, these are what
//! applications ask for. Both are kept by the reactor that owns the inode's group.

use vellum_base::Ino;

use crate::codec::WireFault;
use crate::reader::Reader;
use crate::writer;

/// The last byte that a lock can cover: what "to the end of the file" means.
pub const FILE_LOCK_MAX: u64 = i64::MAX as u64;
/// Bytes of an encoded lock, and of one with its inode.
pub(crate) const FILE_LOCK_LEN: usize = 30;
pub(crate) const HELD_LEN: usize = FILE_LOCK_LEN + 8;

/// Locks of the two families never conflict with each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FileLockSpace {
    /// fcntl(2) locks, of processes and of open file descriptions.
    Posix = 0,
    /// flock(2): always the whole file; a conversion that cannot be had at once gives the old lock up.
    Flock = 1,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FileLockMode {
    Unlocked = 0,
    Shared = 1,
    Exclusive = 2,
}

/// One lock: held, asked for, or in somebody's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileLock {
    pub space: FileLockSpace,
    pub mode: FileLockMode,
    /// Who has it within its client: the kernel's number of a process's file table, or of an open file.
    pub owner: u64,
    /// For people who ask who is in the way; 0 when unknown.
    pub pid: u32,
    /// First and last byte. The last is at most [`FILE_LOCK_MAX`].
    pub start: u64,
    pub end: u64,
}

/// A lock that a client tells a new leader of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldFileLock {
    pub ino: Ino,
    pub lock: FileLock,
}

/// What became of a request for a file lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileLockOutcome {
    Done = 0,
    /// Somebody else is in the way, and the request does not wait.
    Conflict = 1,
    /// To wait would close a circle of waiters.
    Deadlock = 2,
    /// It waits; [`crate::Request::FileLockDone`] will say how it ends.
    Queued = 3,
    /// It waited, and was taken back.
    Cancelled = 4,
    /// There is nothing to take back: its end was told before.
    NotWaiting = 5,
    /// A bound of this client is reached.
    TooMany = 6,
}

impl FileLock {
    /// A range that exists, of a kind that its family has.
    pub fn is_legal(&self) -> bool {
        let whole = self.start == 0 && self.end == FILE_LOCK_MAX;
        self.start <= self.end && self.end <= FILE_LOCK_MAX && (self.space == FileLockSpace::Posix || whole)
    }
}

pub(crate) fn put_lock(out: &mut Vec<u8>, lock: &FileLock) {
    writer::u8(out, lock.space as u8);
    writer::u8(out, lock.mode as u8);
    writer::u64(out, lock.owner);
    writer::u32(out, lock.pid);
    writer::u64(out, lock.start);
    writer::u64(out, lock.end);
}

pub(crate) fn lock(r: &mut Reader) -> Result<FileLock, WireFault> {
    let space = match r.u8("file lock space")? {
        0 => FileLockSpace::Posix,
        1 => FileLockSpace::Flock,
        found => return Err(WireFault::Value { what: "file lock space", found: found.into() }),
    };
    let mode = match r.u8("file lock mode")? {
        0 => FileLockMode::Unlocked,
        1 => FileLockMode::Shared,
        2 => FileLockMode::Exclusive,
        found => return Err(WireFault::Value { what: "file lock mode", found: found.into() }),
    };
    Ok(FileLock {
        space,
        mode,
        owner: r.u64("file lock owner")?,
        pid: r.u32("file lock pid")?,
        start: r.u64("file lock start")?,
        end: r.u64("file lock end")?,
    })
}

pub(crate) fn put_held(out: &mut Vec<u8>, held: &[HeldFileLock]) {
    writer::len(out, held.len());
    for one in held {
        writer::u64(out, one.ino.0);
        put_lock(out, &one.lock);
    }
}

pub(crate) fn held(r: &mut Reader, most: usize) -> Result<Vec<HeldFileLock>, WireFault> {
    r.list("file locks", most, HELD_LEN, |r| Ok(HeldFileLock { ino: Ino(r.u64("inode")?), lock: lock(r)? }))
}

pub(crate) fn put_inos(out: &mut Vec<u8>, inos: &[Ino]) {
    writer::len(out, inos.len());
    inos.iter().for_each(|ino| writer::u64(out, ino.0));
}

pub(crate) fn inos(r: &mut Reader, most: usize) -> Result<Vec<Ino>, WireFault> {
    r.list("inodes", most, 8, |r| r.u64("inode").map(Ino))
}

pub(crate) fn outcome(r: &mut Reader) -> Result<FileLockOutcome, WireFault> {
    Ok(match r.u8("file lock outcome")? {
        0 => FileLockOutcome::Done,
        1 => FileLockOutcome::Conflict,
        2 => FileLockOutcome::Deadlock,
        3 => FileLockOutcome::Queued,
        4 => FileLockOutcome::Cancelled,
        5 => FileLockOutcome::NotWaiting,
        6 => FileLockOutcome::TooMany,
        found => return Err(WireFault::Value { what: "file lock outcome", found: found.into() }),
    })
}
