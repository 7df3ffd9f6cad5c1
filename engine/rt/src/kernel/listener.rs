//! Listening sockets: accepts are rare beside requests, so a poll and a plain accept will do.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::driver::Driver;
use super::stream::Stream;
use crate::net::Endpoint;

pub(crate) struct Listener {
    fd: Rc<OwnedFd>,
    driver: Driver,
    endpoint: Endpoint,
}

impl Listener {
    pub fn bind(driver: &Driver, at: &Endpoint) -> io::Result<Listener> {
        let (fd, endpoint) = match at {
            Endpoint::Unix(path) => {
                let listener = bind_unix(path)?;
                listener.set_nonblocking(true)?;
                (OwnedFd::from(listener), at.clone())
            }
            Endpoint::Tcp(addr) => {
                let listener = TcpListener::bind(addr)?;
                listener.set_nonblocking(true)?;
                let bound = listener.local_addr()?;
                (OwnedFd::from(listener), Endpoint::Tcp(bound))
            }
        };
        Ok(Listener { fd: Rc::new(fd), driver: driver.clone(), endpoint })
    }

    pub fn local_endpoint(&self) -> io::Result<Endpoint> {
        Ok(self.endpoint.clone())
    }

    pub async fn accept(&self) -> io::Result<Stream> {
        let is_unix = matches!(self.endpoint, Endpoint::Unix(_));
        loop {
            match accept_with(&*self.fd, SocketFlags::CLOEXEC) {
                Ok(fd) => return Stream::accepted(&self.driver, fd, is_unix),
                Err(Errno::AGAIN) => self.driver.readable(&self.fd).await?,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Binds `path`, taking over a socket file that a dead process left behind.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => match UnixStream::connect(path) {
            Err(dead) if dead.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            _ => Err(e),
        },
        bound => bound,
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Endpoint::Unix(path) = &self.endpoint {
            let path: &PathBuf = path;
            let _ = std::fs::remove_file(path); // best effort: the next bind takes a left-over socket over
        }
    }
}
