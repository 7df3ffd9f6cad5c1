//! UDP: for heartbeats and elections, which carry on when messages are lost, doubled or late.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::backend::Backend;
use crate::{kernel, reactor, sim};

enum Inner {
    Kernel(kernel::Datagram),
    Sim(sim::net::Datagram),
}

pub struct Datagram {
    inner: Inner,
}

impl Datagram {
    pub fn bind(at: SocketAddr) -> io::Result<Datagram> {
        let reactor = reactor::with(Rc::clone);
        let inner = match &reactor.backend {
            Backend::Kernel(driver) => Inner::Kernel(kernel::Datagram::bind(driver, at)?),
            Backend::Sim(driver) => Inner::Sim(sim::net::Datagram::bind(driver, at)?),
        };
        Ok(Datagram { inner })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.inner {
            Inner::Kernel(socket) => socket.local_addr(),
            Inner::Sim(socket) => Ok(socket.local_addr()),
        }
    }

    /// Sends one datagram; success does not say that it arrives.
    pub async fn send_to(&self, data: &[u8], to: SocketAddr) -> io::Result<()> {
        match &self.inner {
            Inner::Kernel(socket) => socket.send_to(data, to).await,
            Inner::Sim(socket) => socket.send_to(data, to),
        }
    }

    /// The next datagram, cut to `buf`. Dropping the future loses none.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match &self.inner {
            Inner::Kernel(socket) => socket.recv_from(buf).await,
            Inner::Sim(socket) => socket.recv_from(buf).await,
        }
    }
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Datagram({:?})", self.local_addr())
    }
}
