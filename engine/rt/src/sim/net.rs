//! The sockets that simulated tasks hold.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;

use vellum_base::{DmaBuf, DmaSlice};

use super::Driver;
use super::connection::Segment;
use super::core::{Core, Shared};
use super::network::{Address, Listening, Socket};
use super::world::NodeId;
use crate::net::{Endpoint, PeerCred};

/// Receives that return less than is there.
const SHORT_RECV_ONE_IN: u64 = 8;

pub(crate) struct Stream {
    shared: Rc<Shared>,
    id: u64,
    side: usize,
}

impl Stream {
    pub async fn connect(driver: &Driver, to: &Endpoint) -> io::Result<Stream> {
        let (shared, node) = (driver.shared.clone(), driver.node);
        let id = shared.with(|core| core.connect(node, Address::new(node, to)));
        let stream = Stream { shared, id, side: 0 }; // its drop closes what a cancelled connect began
        std::future::poll_fn(|cx| {
            stream.shared.with(|core| {
                let Some(connection) = core.connections.get_mut(&id) else { return Poll::Ready(Err(broken())) };
                if let Some(kind) = connection.ends[0].error {
                    return Poll::Ready(Err(kind.into()));
                }
                if connection.established {
                    return Poll::Ready(Ok(()));
                }
                connection.connector = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await?;
        Ok(stream)
    }

    pub async fn recv(&self, mut buf: DmaBuf, range: Range<usize>) -> (io::Result<usize>, DmaBuf) {
        let result = std::future::poll_fn(|cx| {
            self.shared.with(|core| {
                let short = core.chance.one_in(SHORT_RECV_ONE_IN);
                let Some(connection) = core.connections.get_mut(&self.id) else { return Poll::Ready(Err(broken())) };
                let end = &mut connection.ends[self.side];
                if end.received.is_empty() {
                    return match end.error {
                        Some(kind) => Poll::Ready(Err(kind.into())),
                        None if end.at_eof || end.shut => Poll::Ready(Ok(0)),
                        None => {
                            end.receiver = Some(cx.waker().clone());
                            Poll::Pending
                        }
                    };
                }
                let mut len = end.received.len().min(range.len());
                if short {
                    len = 1 + core.chance.below(len as u64) as usize;
                }
                for (to, from) in buf[range.start..range.start + len].iter_mut().zip(end.received.drain(..len)) {
                    *to = from;
                }
                let mut sender = connection.ends[1 - self.side].sender.take();
                core.wake(&mut sender); // there is room again
                Poll::Ready(Ok(len))
            })
        })
        .await;
        (result, buf)
    }

    pub async fn send_all(&self, head: Vec<u8>, payload: Option<DmaSlice>) -> (io::Result<()>, Vec<u8>) {
        let body = payload.as_deref().unwrap_or_default();
        let total = head.len() + body.len();
        let mut sent = 0;
        let result = std::future::poll_fn(|cx| {
            self.shared.with(|core| {
                while sent < total {
                    let rest = if sent < head.len() { &head[sent..] } else { &body[sent - head.len()..] };
                    match self.send_some(core, rest, cx.waker()) {
                        Poll::Ready(Ok(n)) => sent += n,
                        Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Poll::Ready(Ok(()))
            })
        })
        .await;
        (result, head)
    }

    /// Sends what the window has room for.
    fn send_some(&self, core: &mut Core, data: &[u8], waker: &std::task::Waker) -> Poll<io::Result<usize>> {
        let window = core.config.stream_window;
        let Some(connection) = core.connections.get_mut(&self.id) else { return Poll::Ready(Err(broken())) };
        let end = &mut connection.ends[self.side];
        if let Some(kind) = end.error {
            return Poll::Ready(Err(kind.into()));
        }
        if end.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = window.saturating_sub(connection.ends[1 - self.side].unread());
        if room == 0 {
            connection.ends[self.side].sender = Some(waker.clone());
            return Poll::Pending;
        }
        let len = room.min(data.len());
        core.transmit_data(self.id, 1 - self.side, &data[..len]);
        Poll::Ready(Ok(len))
    }

    pub fn shutdown(&self) {
        self.shared.with(|core| {
            let Some(connection) = core.connections.get_mut(&self.id) else { return };
            let end = &mut connection.ends[self.side];
            if std::mem::replace(&mut end.shut, true) {
                return;
            }
            let (mut receiver, mut sender) = (end.receiver.take(), end.sender.take());
            core.wake(&mut receiver);
            core.wake(&mut sender);
            core.transmit(self.id, 1 - self.side, Segment::Fin);
        });
    }

    pub fn peer_cred(&self) -> Option<PeerCred> {
        let is_unix = self.shared.with(|core| core.connections.get(&self.id).is_some_and(|c| c.is_unix));
        is_unix.then_some(PeerCred { pid: 0, uid: 0, gid: 0 })
    }
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.with(|core| core.close(self.id, self.side));
    }
}

pub(crate) struct Listener {
    shared: Rc<Shared>,
    address: Address,
    endpoint: Endpoint,
}

impl Listener {
    pub fn bind(driver: &Driver, at: &Endpoint) -> io::Result<Listener> {
        let node = driver.node;
        driver.shared.with(|core| {
            let endpoint = match at {
                Endpoint::Tcp(addr) => Endpoint::Tcp(core.choose_port(*addr)),
                Endpoint::Unix(_) => at.clone(),
            };
            let address = Address::new(node, &endpoint);
            if core.listeners.contains_key(&address) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            if let Endpoint::Tcp(addr) = endpoint {
                core.owners.insert(addr, node);
            }
            core.listeners.insert(address.clone(), Listening { node, backlog: Default::default(), acceptor: None });
            Ok(Listener { shared: driver.shared.clone(), address, endpoint })
        })
    }

    pub fn local_endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    pub async fn accept(&self) -> io::Result<Stream> {
        std::future::poll_fn(|cx| {
            self.shared.with(|core| {
                let Some(listening) = core.listeners.get_mut(&self.address) else {
                    return Poll::Ready(Err(io::ErrorKind::NotConnected.into())); // its node was killed
                };
                match listening.backlog.pop_front() {
                    Some(id) => Poll::Ready(Ok(Stream { shared: self.shared.clone(), id, side: 1 })),
                    None => {
                        listening.acceptor = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.with(|core| {
            if let Some(listening) = core.listeners.remove(&self.address) {
                for id in listening.backlog {
                    core.close(id, 1);
                }
            }
        });
    }
}

pub(crate) struct Datagram {
    shared: Rc<Shared>,
    node: NodeId,
    addr: SocketAddr,
}

impl Datagram {
    pub fn bind(driver: &Driver, at: SocketAddr) -> io::Result<Datagram> {
        let node = driver.node;
        driver.shared.with(|core| {
            let addr = core.choose_port(at);
            if core.sockets.contains_key(&(addr, node)) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            let claimed = core.now;
            core.sockets.insert((addr, node), Socket { claimed, queue: Default::default(), receiver: None });
            Ok(Datagram { shared: driver.shared.clone(), node, addr })
        })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn send_to(&self, data: &[u8], to: SocketAddr) -> io::Result<()> {
        self.shared.with(|core| core.send_datagram((self.node, self.addr), to, data));
        Ok(())
    }

    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        std::future::poll_fn(|cx| {
            self.shared.with(|core| {
                let Some(socket) = core.sockets.get_mut(&(self.addr, self.node)) else {
                    return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
                };
                match socket.queue.pop_front() {
                    Some((data, from)) => {
                        let len = data.len().min(buf.len());
                        buf[..len].copy_from_slice(&data[..len]);
                        Poll::Ready(Ok((len, from)))
                    }
                    None => {
                        socket.receiver = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await
    }
}

impl Drop for Datagram {
    fn drop(&mut self) {
        self.shared.with(|core| core.sockets.remove(&(self.addr, self.node)));
    }
}

impl Core {
    fn choose_port(&mut self, mut addr: SocketAddr) -> SocketAddr {
        if addr.port() == 0 {
            addr.set_port(self.next_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(20_000);
        }
        addr
    }
}
