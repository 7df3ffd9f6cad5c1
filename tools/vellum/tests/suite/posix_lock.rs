//! fcntl(2) locks of ranges, which no safe library offers.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Read,
    Write,
    Unlock,
}

/// Whose locks: the process's, or the open file's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Of {
    Process,
    Description,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    pub kind: Kind,
    pub start: i64,
    pub len: i64,
    pub pid: i32,
}

fn raw(kind: Kind, start: i64, len: i64) -> libc::flock {
    let l_type = match kind {
        Kind::Read => libc::F_RDLCK,
        Kind::Write => libc::F_WRLCK,
        Kind::Unlock => libc::F_UNLCK,
    };
    libc::flock { l_type: l_type as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

fn call(file: &File, command: i32, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: an open descriptor, and a structure that outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `len` 0: to the end of the file, wherever that will be.
pub fn set(file: &File, of: Of, kind: Kind, start: i64, len: i64) -> io::Result<()> {
    let command = if of == Of::Process { libc::F_SETLK } else { libc::F_OFD_SETLK };
    call(file, command, &mut raw(kind, start, len))
}

pub fn wait(file: &File, of: Of, kind: Kind, start: i64, len: i64) -> io::Result<()> {
    let command = if of == Of::Process { libc::F_SETLKW } else { libc::F_OFD_SETLKW };
    call(file, command, &mut raw(kind, start, len))
}

/// What is in the way.
pub fn test(file: &File, of: Of, kind: Kind, start: i64, len: i64) -> io::Result<Option<Found>> {
    let command = if of == Of::Process { libc::F_GETLK } else { libc::F_OFD_GETLK };
    let mut lock = raw(kind, start, len);
    call(file, command, &mut lock)?;
    let kind = match i32::from(lock.l_type) {
        libc::F_RDLCK => Kind::Read,
        libc::F_WRLCK => Kind::Write,
        _ => return Ok(None),
    };
    Ok(Some(Found { kind, start: lock.l_start, len: lock.l_len, pid: lock.l_pid }))
}

/// A signal whose handler does nothing: it interrupts what waits. Not restarted (no SA_RESTART).
pub fn handle_interruptions() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: zeros are a valid sigaction; the handler touches nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
}

/// The thread that a signal can be sent to.
pub fn this_thread() -> i32 {
    // SAFETY: no arguments, no memory.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

pub fn interrupt(thread: i32) {
    // SAFETY: a number of a thread of this process; no memory.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
}
