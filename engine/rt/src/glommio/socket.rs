//! What glommio does for a connected socket.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;

use ::glommio::net::TcpStream;
use futures_io::AsyncRead;
use vellum_base::DmaBuf;

use super::driver::Driver;
use super::wait;
use crate::kernel::{Parts, try_send};

pub(crate) struct Socket {
    fd: Rc<OwnedFd>,
    driver: Rc<Driver>,
    /// The same socket as glommio's stream, which it treats alike whatever its family is. For receiving alone: it sends
    /// one buffer at a time, and may raise SIGPIPE.
    stream: RefCell<TcpStream>,
}

impl Socket {
    pub fn new(driver: &Rc<Driver>, fd: &Rc<OwnedFd>) -> io::Result<Socket> {
        let stream = RefCell::new(wait::stream(fd.try_clone()?));
        Ok(Socket { fd: fd.clone(), driver: driver.clone(), stream })
    }

    pub async fn recv(&self, mut buf: DmaBuf, range: Range<usize>) -> (io::Result<usize>, DmaBuf) {
        let into = &mut buf[range];
        let result = poll_fn(|cx| Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, into)).await;
        self.driver.count_completion();
        (result, buf)
    }

    pub async fn send(&self, parts: Parts, skip: usize) -> (io::Result<usize>, Parts) {
        let waited = self.driver.writable(&self.fd).await;
        let sent = waited.and_then(|()| Ok(try_send(&self.fd, parts.after(skip))?));
        match sent {
            // Somebody else's room, or none yet: as if a signal had come.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => (Err(io::ErrorKind::Interrupted.into()), parts),
            sent => (sent, parts),
        }
    }
}
