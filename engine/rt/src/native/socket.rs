//! What the ring does for a connected socket.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vellum_base::DmaBuf;

use super::driver::Driver;
use super::ops::Hold;
use crate::kernel::Parts;

pub(crate) struct Socket {
    fd: Rc<OwnedFd>,
    driver: Rc<Driver>,
}

impl Socket {
    /// Makes `fd` a blocking one: the ring waits for a blocking socket and fails a non-blocking one at once.
    pub fn new(driver: &Rc<Driver>, fd: &Rc<OwnedFd>) -> io::Result<Socket> {
        fcntl_setfl(&**fd, fcntl_getfl(&**fd)? - OFlags::NONBLOCK)?;
        Ok(Socket { fd: fd.clone(), driver: driver.clone() })
    }

    pub async fn recv(&self, buf: DmaBuf, range: Range<usize>) -> (io::Result<usize>, DmaBuf) {
        let done = self.driver.ops.recv(&self.fd, buf, range).await;
        let Hold::Recv { buf, .. } = done.hold else { unreachable!("an operation returns what it was given") };
        (to_result(done.result), buf)
    }

    pub async fn send(&self, parts: Parts, skip: usize) -> (io::Result<usize>, Parts) {
        let done = self.driver.ops.send(&self.fd, parts, skip).await;
        let Hold::Send { parts, .. } = done.hold else { unreachable!("an operation returns what it was given") };
        (to_result(done.result), parts)
    }
}

fn to_result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
