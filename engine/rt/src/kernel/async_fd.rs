//! Devices with messages. Tried at once, and polled when there is nothing: `/dev/fuse` answers no asynchronous read, so
//! that a read given to an io_uring would be handed to a kernel worker thread.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::driver::Driver;

pub(crate) struct AsyncFd {
    fd: Rc<OwnedFd>,
    driver: Driver,
}

impl AsyncFd {
    pub fn new(driver: &Driver, fd: OwnedFd) -> io::Result<AsyncFd> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(AsyncFd { fd: Rc::new(fd), driver: driver.clone() })
    }

    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.driver.attempt(|| rustix::io::read(&*self.fd, &mut *buf)).await {
                Some(done) => return Ok(done?),
                None => self.driver.readable(&self.fd).await?,
            }
        }
    }

    pub async fn writev(&self, head: &[u8], payload: Option<&[u8]>) -> io::Result<usize> {
        let both = [IoSlice::new(head), IoSlice::new(payload.unwrap_or_default())];
        let parts = if payload.is_some() { &both[..] } else { &both[..1] };
        loop {
            match rustix::io::writev(&*self.fd, parts) {
                Err(Errno::AGAIN) => self.driver.writable(&self.fd).await?,
                Err(Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
