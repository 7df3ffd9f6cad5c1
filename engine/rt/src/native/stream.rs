//! Connected sockets on the ring.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, sockopt};
use vellum_base::{DmaBuf, DmaSlice};

use super::driver::Driver;
use super::ring::Hold;
use crate::net::{Endpoint, PeerCred};

/// Between two attempts at a unix socket whose backlog is full.
const BACKLOG_RETRY: Duration = Duration::from_millis(1);

pub(crate) struct Stream {
    fd: Rc<OwnedFd>,
    driver: Rc<Driver>,
    peer_cred: Option<PeerCred>,
}

impl Stream {
    /// `fd` must block: the ring waits for a blocking socket and fails a non-blocking one at once.
    fn new(driver: &Rc<Driver>, fd: Rc<OwnedFd>, is_unix: bool) -> io::Result<Stream> {
        fcntl_setfl(&*fd, fcntl_getfl(&*fd)? - OFlags::NONBLOCK)?;
        let mut peer_cred = None;
        if is_unix {
            let cred = sockopt::socket_peercred(&*fd)?;
            let pid = cred.pid.as_raw_nonzero().get() as u32;
            peer_cred = Some(PeerCred { pid, uid: cred.uid.as_raw(), gid: cred.gid.as_raw() });
        } else {
            sockopt::set_tcp_nodelay(&*fd, true)?;
        }
        Ok(Stream { fd, driver: driver.clone(), peer_cred })
    }

    pub fn accepted(driver: &Rc<Driver>, fd: OwnedFd, is_unix: bool) -> io::Result<Stream> {
        Stream::new(driver, Rc::new(fd), is_unix)
    }

    pub async fn connect(driver: &Rc<Driver>, to: &Endpoint) -> io::Result<Stream> {
        match to {
            Endpoint::Unix(path) => Stream::connect_unix(driver, path).await,
            Endpoint::Tcp(addr) => {
                let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let fd = socket(family)?;
                match connect(&*fd, addr) {
                    Ok(()) => {}
                    Err(Errno::INPROGRESS | Errno::INTR) => {
                        driver.writable(&fd).await?;
                        sockopt::socket_error(&*fd)??;
                    }
                    Err(e) => return Err(e.into()),
                }
                Stream::new(driver, fd, false)
            }
        }
    }

    async fn connect_unix(driver: &Rc<Driver>, path: &Path) -> io::Result<Stream> {
        let addr = SocketAddrUnix::new(path)?;
        let fd = socket(AddressFamily::UNIX)?;
        loop {
            match connect(&*fd, &addr) {
                Ok(()) => return Stream::new(driver, fd, true),
                Err(Errno::AGAIN) => crate::sleep(BACKLOG_RETRY).await,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    pub async fn recv(&self, buf: DmaBuf, range: Range<usize>) -> (io::Result<usize>, DmaBuf) {
        let (mut buf, mut result) = (buf, -libc::EINTR);
        while result == -libc::EINTR {
            let (done, Hold::Recv { buf: returned, .. }) = self.driver.ring.recv(&self.fd, buf, range.clone()).await
            else {
                unreachable!("an operation returns what it was given")
            };
            (buf, result) = (returned, done);
        }
        (to_result(result), buf)
    }

    pub async fn send_all(&self, head: Vec<u8>, payload: Option<DmaSlice>) -> (io::Result<()>, Vec<u8>) {
        let total = head.len() + payload.as_ref().map_or(0, |payload| payload.len());
        let (mut head, mut payload, mut sent) = (head, payload, 0);
        while sent < total {
            let (done, Hold::Send { head: returned, payload: rest, .. }) =
                self.driver.ring.send(&self.fd, head, payload, sent).await
            else {
                unreachable!("an operation returns what it was given")
            };
            (head, payload) = (returned, rest);
            match to_result(done) {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), head),
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (Err(e), head),
            }
        }
        (Ok(()), head)
    }

    pub fn shutdown(&self) {
        // It fails only when the peer has gone already, which is what was asked for.
        let _ = rustix::net::shutdown(&*self.fd, Shutdown::Both);
    }

    pub fn peer_cred(&self) -> Option<PeerCred> {
        self.peer_cred
    }
}

fn socket(family: AddressFamily) -> io::Result<Rc<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(Rc::new(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?))
}

fn to_result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
