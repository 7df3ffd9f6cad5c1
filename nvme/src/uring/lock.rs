//! Open-file-description locks: who uses a device. They follow the description, not the process (so a second open in the
//! same process is noticed too), and vanish with it, also after kill -9.
#![allow(unsafe_code)] // fcntl takes a struct by pointer

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// False when somebody holds a conflicting lock.
pub(super) fn try_lock(file: &File, exclusive: bool) -> io::Result<bool> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0, // must be 0 for this kind of lock
    };
    // SAFETY: a valid descriptor and a valid flock that outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &whole) };
    if result == 0 {
        return Ok(true);
    }
    let err = io::Error::last_os_error();
    match err.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(err),
    }
}
