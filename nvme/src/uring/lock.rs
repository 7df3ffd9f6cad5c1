//! Open-file-description locks: who uses a device. They follow the description, not the process (so a second open in the
//! same process is noticed too), and vanish with the description's last user, also after kill -9. An operation that is in
//! flight is such a user: what holds a lock through the very description of its IO keeps it until that IO has ended.
//!
//! The locks are on single bytes, far beyond any data:
//! ```text
//!  WRITERS      one who writes alone: exclusive; members, who write together: shared
//!  READERS      who needs a device that stands still: shared
//!  OWNERS + n   the member in slot n: exclusive
//!  IO + n       every description through which the member in slot n does IO: shared
//! ```
#![allow(unsafe_code)] // fcntl takes a struct by pointer

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::OpenMode;

const WRITERS: i64 = 1 << 62;
const READERS: i64 = WRITERS + 1;
const OWNERS: i64 = WRITERS + 0x100;
const IO: i64 = WRITERS + 0x200;

/// How long a member waits for the last operations of an earlier process in its slot.
const LAST_IO: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
enum Kind {
    Shared = libc::F_RDLCK as isize,
    Exclusive = libc::F_WRLCK as isize,
}

fn byte(kind: Kind, at: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at,
        l_len: 1,
        l_pid: 0, // must be 0 for this kind of lock
    }
}

/// Takes the lock, or turns the one that this description holds into it. False when somebody holds a conflicting one.
fn lock(file: &File, kind: Kind, at: i64) -> io::Result<bool> {
    let wanted = byte(kind, at);
    // SAFETY: a valid descriptor and a valid flock that outlives the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &wanted) } == 0 {
        return Ok(true);
    }
    let err = io::Error::last_os_error();
    match err.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(err),
    }
}

/// Whether another description holds any lock on this byte.
fn is_held(file: &File, at: i64) -> io::Result<bool> {
    let mut found = byte(Kind::Exclusive, at);
    // SAFETY: a valid descriptor and a valid flock that outlives the call, which writes only there.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.l_type != libc::F_UNLCK as libc::c_short)
}

/// Says by locks what this description is for; the inner error says who is in the way.
pub(super) fn claim(file: &File, mode: OpenMode) -> io::Result<Result<(), &'static str>> {
    let verdict = |free: bool, why| Ok(if free { Ok(()) } else { Err(why) });
    if mode.observe {
        return Ok(Ok(()));
    }
    if mode.read_only {
        // First the own lock, then the look: of a reader and a writer that come together at least one sees the other.
        if !lock(file, Kind::Shared, READERS)? {
            return verdict(false, "it is locked exclusively");
        }
        return verdict(!is_held(file, WRITERS)?, "it is being served");
    }
    if let Some(slot) = mode.slot {
        return claim_slot(file, slot);
    }
    if mode.exclusive {
        let alone = lock(file, Kind::Exclusive, WRITERS)? && lock(file, Kind::Exclusive, READERS)?;
        return verdict(alone, "it is locked");
    }
    verdict(lock(file, Kind::Shared, WRITERS)?, "it is locked exclusively")
}

fn claim_slot(file: &File, slot: u8) -> io::Result<Result<(), &'static str>> {
    if !lock(file, Kind::Shared, WRITERS)? {
        return Ok(Err("it is locked exclusively"));
    }
    if is_held(file, READERS)? {
        return Ok(Err("it is being read by a command that needs it to stand still"));
    }
    if !lock(file, Kind::Exclusive, OWNERS + i64::from(slot))? {
        return Ok(Err("the slot has a running member on this host"));
    }
    let io_byte = IO + i64::from(slot);
    let give_up = Instant::now() + LAST_IO;
    while !lock(file, Kind::Exclusive, io_byte)? {
        if Instant::now() >= give_up {
            return Ok(Err("operations of the slot's last process are still at the device"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    lock(file, Kind::Shared, io_byte)?;
    Ok(Ok(()))
}

/// One more description through which the slot's member does IO.
pub(super) fn join_io(file: &File, slot: u8) -> io::Result<()> {
    if lock(file, Kind::Shared, IO + i64::from(slot))? {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "the slot's lock is held by somebody else"))
}

/// Whether any description of another process (or another opening of this one) may still have IO for the slot.
pub(super) fn has_io(file: &File, slot: u8) -> io::Result<bool> {
    is_held(file, IO + i64::from(slot))
}
