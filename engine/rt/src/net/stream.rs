//! A connected byte stream.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::rc::Rc;

use vellum_base::{DmaBuf, DmaSlice};

use super::Endpoint;
use crate::backend::Backend;
use crate::{kernel, reactor, sim};

/// Who is at the other end of a unix socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerCred {
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone)]
pub(super) enum Inner {
    Kernel(Rc<kernel::Stream>),
    Sim(Rc<sim::net::Stream>),
}

/// A connected stream; a clone is the same one. One task may receive while another sends; two tasks must not send (or
/// receive) at once, since a stream promises no order between them.
#[derive(Clone)]
pub struct Stream {
    pub(super) inner: Inner,
}

impl Stream {
    pub async fn connect(to: &Endpoint) -> io::Result<Stream> {
        let reactor = reactor::with(Rc::clone);
        let inner = match &reactor.backend {
            Backend::Kernel(driver) => Inner::Kernel(Rc::new(kernel::Stream::connect(driver, to).await?)),
            Backend::Sim(driver) => Inner::Sim(Rc::new(sim::net::Stream::connect(driver, to).await?)),
        };
        Ok(Stream { inner })
    }

    /// Receives some bytes into `buf[range]`; 0 is the end of the stream. A dropped receive may have consumed bytes,
    /// which are lost: keep one receive running and cancel it only to end the connection.
    ///
    /// # Panics
    /// When `range` is empty or outside of `buf`.
    pub async fn recv(&self, buf: DmaBuf, range: Range<usize>) -> (io::Result<usize>, DmaBuf) {
        assert!(range.start < range.end && range.end <= buf.len(), "nothing to receive into");
        match &self.inner {
            Inner::Kernel(stream) => stream.recv(buf, range).await,
            Inner::Sim(stream) => stream.recv(buf, range).await,
        }
    }

    /// Sends `head` and `payload` whole, as one vectored send, and gives `head` back. After an error (or a drop before
    /// the end) an unknown part has been sent: the stream can only be given up.
    pub async fn send_all(&self, head: Vec<u8>, payload: Option<DmaSlice>) -> (io::Result<()>, Vec<u8>) {
        match &self.inner {
            Inner::Kernel(stream) => stream.send_all(head, payload).await,
            Inner::Sim(stream) => stream.send_all(head, payload).await,
        }
    }

    /// Ends both directions: the peer sees the end after what was sent, and receives here return 0.
    pub fn shutdown(&self) {
        match &self.inner {
            Inner::Kernel(stream) => stream.shutdown(),
            Inner::Sim(stream) => stream.shutdown(),
        }
    }

    /// The peer's credentials; `None` over TCP.
    pub fn peer_cred(&self) -> Option<PeerCred> {
        match &self.inner {
            Inner::Kernel(stream) => stream.peer_cred(),
            Inner::Sim(stream) => stream.peer_cred(),
        }
    }

    /// The peer's address; `None` over unix sockets and in a simulation.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        match &self.inner {
            Inner::Kernel(stream) => stream.peer_ip(),
            Inner::Sim(_) => None,
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}
