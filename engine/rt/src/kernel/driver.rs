//! Which executor drives a reactor on the kernel, and how it waits for a descriptor.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;
use vellum_base::{DmaBuf, DmaSlice};

use crate::native;

#[derive(Clone)]
pub(crate) enum Driver {
    Native(Rc<native::Driver>),
    #[cfg(feature = "glommio")]
    Glommio(Rc<crate::glommio::Driver>),
}

impl Driver {
    pub fn random_u64(&self) -> u64 {
        match self {
            Driver::Native(driver) => driver.random_u64(),
            #[cfg(feature = "glommio")]
            Driver::Glommio(driver) => driver.random_u64(),
        }
    }

    /// Waits until a read (or an accept) on `file` would not block.
    pub async fn readable(&self, file: &Rc<OwnedFd>) -> io::Result<()> {
        match self {
            Driver::Native(driver) => driver.readable(file).await,
            #[cfg(feature = "glommio")]
            Driver::Glommio(driver) => driver.readable(file).await,
        }
    }

    /// Waits until a write on `file` would not block, or its connection attempt has ended.
    pub async fn writable(&self, file: &Rc<OwnedFd>) -> io::Result<()> {
        match self {
            Driver::Native(driver) => driver.writable(file).await,
            #[cfg(feature = "glommio")]
            Driver::Glommio(driver) => driver.writable(file).await,
        }
    }

    /// Tries, and goes on trying for as long as that is cheaper than to wait; `None` when it is time to wait.
    pub async fn attempt<T>(&self, attempt: impl FnMut() -> Result<T, Errno>) -> Option<Result<T, Errno>> {
        match self {
            Driver::Native(driver) => driver.spin(attempt).await,
            #[cfg(feature = "glommio")]
            Driver::Glommio(driver) => driver.attempt(attempt),
        }
    }

    /// What moves the bytes of the connected socket `fd` when it would block.
    pub fn socket(&self, fd: &Rc<OwnedFd>) -> io::Result<Socket> {
        Ok(match self {
            Driver::Native(driver) => Socket::Native(native::Socket::new(driver, fd)?),
            #[cfg(feature = "glommio")]
            Driver::Glommio(driver) => Socket::Glommio(crate::glommio::Socket::new(driver, fd)?),
        })
    }
}

pub(crate) enum Socket {
    Native(native::Socket),
    #[cfg(feature = "glommio")]
    Glommio(crate::glommio::Socket),
}

impl Socket {
    /// Waits for bytes, and receives some into `buf[range]`.
    pub async fn recv(&self, buf: DmaBuf, range: Range<usize>) -> (io::Result<usize>, DmaBuf) {
        match self {
            Socket::Native(socket) => socket.recv(buf, range).await,
            #[cfg(feature = "glommio")]
            Socket::Glommio(socket) => socket.recv(buf, range).await,
        }
    }

    /// Waits for room, and sends some of what follows the first `skip` bytes of `parts`.
    pub async fn send(&self, parts: Parts, skip: usize) -> (io::Result<usize>, Parts) {
        match self {
            Socket::Native(socket) => socket.send(parts, skip).await,
            #[cfg(feature = "glommio")]
            Socket::Glommio(socket) => socket.send(parts, skip).await,
        }
    }
}

/// What is sent as one.
pub(crate) struct Parts {
    pub head: Vec<u8>,
    pub payload: Option<DmaSlice>,
}

impl Parts {
    pub fn len(&self) -> usize {
        self.head.len() + self.payload.as_ref().map_or(0, |payload| payload.len())
    }

    /// Both without their first `skip` bytes.
    pub fn after(&self, skip: usize) -> [&[u8]; 2] {
        let body = self.payload.as_deref().unwrap_or_default();
        [&self.head[skip.min(self.head.len())..], &body[skip.saturating_sub(self.head.len()).min(body.len())..]]
    }
}
