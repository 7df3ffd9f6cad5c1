//! Connected sockets.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
    connect, getpeername, recv, sendmsg, sockopt,
};
use vellum_base::{DmaBuf, DmaSlice};

use super::driver::{Driver, Parts, Socket};
use crate::net::{Endpoint, PeerCred};

/// Between two attempts at a unix socket whose backlog is full.
const BACKLOG_RETRY: Duration = Duration::from_millis(1);

pub(crate) struct Stream {
    fd: Rc<OwnedFd>,
    driver: Driver,
    socket: Socket,
    peer_cred: Option<PeerCred>,
    peer_ip: Option<IpAddr>,
}

impl Stream {
    fn new(driver: &Driver, fd: Rc<OwnedFd>, is_unix: bool) -> io::Result<Stream> {
        let (mut peer_cred, mut peer_ip) = (None, None);
        if is_unix {
            let cred = sockopt::socket_peercred(&*fd)?;
            let pid = cred.pid.as_raw_nonzero().get() as u32;
            peer_cred = Some(PeerCred { pid, uid: cred.uid.as_raw(), gid: cred.gid.as_raw() });
        } else {
            sockopt::set_tcp_nodelay(&*fd, true)?;
            peer_ip = getpeername(&*fd)?.and_then(|addr| SocketAddr::try_from(addr).ok()).map(|addr| addr.ip());
        }
        let socket = driver.socket(&fd)?;
        Ok(Stream { fd, driver: driver.clone(), socket, peer_cred, peer_ip })
    }

    pub fn accepted(driver: &Driver, fd: OwnedFd, is_unix: bool) -> io::Result<Stream> {
        Stream::new(driver, Rc::new(fd), is_unix)
    }

    pub async fn connect(driver: &Driver, to: &Endpoint) -> io::Result<Stream> {
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

    async fn connect_unix(driver: &Driver, path: &Path) -> io::Result<Stream> {
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

    pub async fn recv(&self, mut buf: DmaBuf, range: Range<usize>) -> (io::Result<usize>, DmaBuf) {
        let attempt = || recv(&*self.fd, &mut buf[range.clone()], RecvFlags::DONTWAIT).map(|(n, _)| n);
        if let Some(done) = self.driver.attempt(attempt).await {
            return (done.map_err(io::Error::from), buf);
        }
        loop {
            let (result, back) = self.socket.recv(buf, range.clone()).await;
            buf = back;
            match result {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return (result, buf),
            }
        }
    }

    /// Tries at once: most sends find room in the socket, and the answer is on its way before this task yields.
    pub async fn send_all(&self, head: Vec<u8>, payload: Option<DmaSlice>) -> (io::Result<()>, Vec<u8>) {
        let mut parts = Parts { head, payload };
        let total = parts.len();
        let mut sent = match try_send(&self.fd, parts.after(0)) {
            Ok(n) => n,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(e) => return (Err(e.into()), parts.head),
        };
        while sent < total {
            let (result, back) = self.socket.send(parts, sent).await;
            parts = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), parts.head),
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (Err(e), parts.head),
            }
        }
        (Ok(()), parts.head)
    }

    pub fn shutdown(&self) {
        // It fails only when the peer has gone already, which is what was asked for.
        let _ = rustix::net::shutdown(&*self.fd, Shutdown::Both);
    }

    pub fn peer_cred(&self) -> Option<PeerCred> {
        self.peer_cred
    }

    pub fn peer_ip(&self) -> Option<IpAddr> {
        self.peer_ip
    }
}

fn socket(family: AddressFamily) -> io::Result<Rc<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(Rc::new(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?))
}

/// One vectored send of as much as there is room for.
pub(crate) fn try_send(fd: &OwnedFd, parts: [&[u8]; 2]) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(fd, &parts.map(IoSlice::new), &mut SendAncillaryBuffer::default(), flags)
}
