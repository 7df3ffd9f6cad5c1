//! Waiting for a descriptor through glommio, which polls sockets of its own only.
//!
//! What is waited for is put into an epoll set, the set is given to glommio as if it were a stream, and glommio polls it
//! before it tries to read. The read fails, a set being no socket; that it was tried is the answer.
#![allow(unsafe_code)] // descriptors change the type of their owner; each block states its argument

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use ::glommio::net::TcpStream;
use futures_io::AsyncRead;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// Done once when the descriptor has what was waited for. Starts with the executor's next look at its rings.
pub(crate) struct Wait {
    set: TcpStream,
}

impl Wait {
    pub fn new(file: BorrowedFd<'_>, events: EventFlags) -> io::Result<Wait> {
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&set, file, EventData::new_u64(0), events)?;
        Ok(Wait { set: stream(set) })
    }

    /// Of a descriptor that somebody else keeps open, as [`crate::watch_fd`] asks for. A closed one is an error.
    pub fn readable(fd: RawFd) -> io::Result<Wait> {
        // SAFETY: the number goes to one system call, which refuses one that is not open; the epoll set forgets the file
        // when it is closed.
        let file = unsafe { BorrowedFd::borrow_raw(fd) };
        Wait::new(file.as_fd(), EventFlags::IN)
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.set).poll_read(cx, &mut []).map(|_| ())
    }
}

/// A stream of glommio's that owns `fd`.
pub(super) fn stream(fd: OwnedFd) -> TcpStream {
    // SAFETY: the descriptor is owned, and nobody else's from here on.
    unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) }
}
