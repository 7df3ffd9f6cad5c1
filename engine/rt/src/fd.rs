//! Character devices such as `/dev/fuse`: not in the simulation.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use vellum_base::{DmaBuf, DmaSlice};

use crate::backend::Backend;
use crate::{kernel, reactor};

/// A descriptor with messages: each read returns one, each write is one. A clone is the same one.
#[derive(Clone)]
pub struct AsyncFd {
    inner: Rc<kernel::AsyncFd>,
}

impl AsyncFd {
    /// Takes the descriptor over and makes it non-blocking. `Unsupported` in the simulation.
    pub fn new(fd: OwnedFd) -> io::Result<AsyncFd> {
        let reactor = reactor::with(Rc::clone);
        match &reactor.backend {
            Backend::Kernel(driver) => Ok(AsyncFd { inner: Rc::new(kernel::AsyncFd::new(driver, fd)?) }),
            Backend::Sim(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "no descriptors in the simulation")),
        }
    }

    /// Reads one message into `buf[range]`. Dropping the future loses none.
    ///
    /// # Panics
    /// When `range` is outside of `buf`.
    pub async fn read(&self, mut buf: DmaBuf, range: Range<usize>) -> (io::Result<usize>, DmaBuf) {
        let result = self.inner.read(&mut buf[range]).await;
        (result, buf)
    }

    /// Writes `head` and `payload` as one message, and gives `head` back.
    pub async fn writev(&self, head: Vec<u8>, payload: Option<DmaSlice>) -> (io::Result<usize>, Vec<u8>) {
        let result = self.inner.writev(&head, payload.as_deref()).await;
        (result, head)
    }

    /// For system calls on it besides.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl fmt::Debug for AsyncFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AsyncFd")
    }
}
