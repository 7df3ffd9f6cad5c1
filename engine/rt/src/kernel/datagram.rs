//! UDP sockets: tried at once, polled when there is nothing (or no room).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::driver::Driver;

pub(crate) struct Datagram {
    socket: UdpSocket,
    /// The same socket, in the form that a driver keeps alive.
    fd: Rc<OwnedFd>,
    driver: Driver,
}

impl Datagram {
    pub fn bind(driver: &Driver, at: SocketAddr) -> io::Result<Datagram> {
        let socket = UdpSocket::bind(at)?;
        socket.set_nonblocking(true)?;
        let fd = Rc::new(OwnedFd::from(socket.try_clone()?));
        Ok(Datagram { socket, fd, driver: driver.clone() })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    pub async fn send_to(&self, data: &[u8], to: SocketAddr) -> io::Result<()> {
        loop {
            match self.socket.send_to(data, to) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.driver.writable(&self.fd).await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            match self.socket.recv_from(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.driver.readable(&self.fd).await?,
                // An ICMP answer to an earlier send: says that a peer is down, which is no error of this socket.
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused) => {}
                done => return done,
            }
        }
    }
}
