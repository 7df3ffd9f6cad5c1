//! The network between nodes: what arrives, when, and what does not.
//!
//! A stream keeps its order and loses nothing until it breaks; then a prefix of what was sent has arrived, cut anywhere.
//! Nothing holds between two connections, or between a stream and datagrams; datagrams get lost, doubled and overtaken.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::task::Waker;

use super::connection::{Connection, End, Segment};
use super::core::Core;
use super::world::NodeId;
use crate::net::Endpoint;
use crate::time::nanos;

/// Connections that wait to be accepted; the next ones try again.
const BACKLOG: usize = 128;
/// Datagrams that wait at a socket; more are lost.
const SOCKET_QUEUE: usize = 256;
/// Largest piece in which bytes of a stream travel.
const SEGMENT: u64 = 64 << 10;

/// Unix paths are names within a node, TCP addresses within the world.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(NodeId, PathBuf),
}

impl Address {
    pub fn new(node: NodeId, endpoint: &Endpoint) -> Address {
        match endpoint {
            Endpoint::Tcp(addr) => Address::Tcp(*addr),
            Endpoint::Unix(path) => Address::Unix(node, path.clone()),
        }
    }
}

pub(super) struct Listening {
    pub node: NodeId,
    pub backlog: VecDeque<u64>,
    pub acceptor: Option<Waker>,
}

pub(super) struct Socket {
    /// When it was bound.
    pub claimed: u64,
    pub queue: VecDeque<(Vec<u8>, SocketAddr)>,
    pub receiver: Option<Waker>,
}

pub(super) enum Event {
    /// A connection attempt reaches its address.
    Connect {
        connection: u64,
        to: Address,
        give_up: u64,
    },
    /// The answer reaches the one who connects.
    Connected {
        connection: u64,
        result: Result<(), io::ErrorKind>,
    },
    /// Something is due at an end.
    Arrive {
        connection: u64,
        side: usize,
    },
    Datagram {
        from: (NodeId, SocketAddr),
        to: SocketAddr,
        data: Vec<u8>,
    },
}

impl Core {
    /// One way, without regard to partitions.
    pub fn latency(&mut self, from: NodeId, to: NodeId) -> u64 {
        let range = if from == to { self.config.local_latency.clone() } else { self.config.latency.clone() };
        let mut latency = self.draw(&range);
        if from != to && self.one_in(self.config.spike_one_in) {
            latency += nanos(self.config.spike);
        }
        latency
    }

    fn is_reachable(&self, from: NodeId, to: NodeId) -> bool {
        !self.cuts.contains(&(from, to)) && self.nodes[to.0 as usize].powered
    }

    pub fn happen(&mut self, event: Event) {
        match event {
            Event::Connect { connection, to, give_up } => self.connect_arrives(connection, to, give_up),
            Event::Connected { connection, result } => self.connect_ends(connection, result),
            Event::Arrive { connection, side } => self.arrive(connection, side),
            Event::Datagram { from, to, data } => self.datagram_arrives(from, to, data),
        }
    }

    pub fn connect(&mut self, from: NodeId, to: Address) -> u64 {
        let id = self.next_connection;
        self.next_connection += 1;
        let is_unix = matches!(to, Address::Unix(..));
        // The other end's node is known when the attempt arrives.
        let connection =
            Connection { ends: [End::new(from), End::new(from)], is_unix, established: false, connector: None };
        self.connections.insert(id, connection);
        let target = self.owner(&to).unwrap_or(from);
        let at = self.now + self.latency(from, target);
        let give_up = self.now + nanos(self.config.connect_timeout);
        self.schedule(at, Event::Connect { connection: id, to, give_up });
        id
    }

    fn owner(&self, address: &Address) -> Option<NodeId> {
        match address {
            Address::Unix(node, _) => Some(*node),
            Address::Tcp(addr) => self.owners.get(addr).copied(),
        }
    }

    fn connect_arrives(&mut self, connection: u64, to: Address, give_up: u64) {
        let Some(from) = self.connections.get(&connection).map(|c| c.ends[0].node) else { return };
        let target = self.owner(&to).unwrap_or(from);
        self.step(target, connection, "connect");
        let back = self.now + self.latency(target, from);
        let through = self.is_reachable(from, target) && self.is_reachable(target, from);
        let backlog_full = self.listeners.get(&to).is_some_and(|listening| listening.backlog.len() >= BACKLOG);
        if !through || backlog_full {
            let again = self.now + nanos(self.config.retransmit);
            let event = if again > give_up {
                Event::Connected { connection, result: Err(io::ErrorKind::TimedOut) }
            } else {
                Event::Connect { connection, to, give_up }
            };
            return self.schedule(again, event);
        }
        let Some(listening) = self.listeners.get_mut(&to) else {
            // A dead process leaves its socket file behind, or not.
            let missing_path = matches!(to, Address::Unix(..)) && self.chance.one_in(2);
            let kind = if missing_path { io::ErrorKind::NotFound } else { io::ErrorKind::ConnectionRefused };
            return self.schedule(back, Event::Connected { connection, result: Err(kind) });
        };
        listening.backlog.push_back(connection);
        let mut acceptor = listening.acceptor.take();
        let node = listening.node;
        self.wake(&mut acceptor);
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.ends[1].node = node;
        }
        self.schedule(back, Event::Connected { connection, result: Ok(()) });
    }

    fn connect_ends(&mut self, id: u64, result: Result<(), io::ErrorKind>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match result {
            Ok(()) => connection.established = true,
            Err(kind) => {
                connection.ends[0].error = Some(kind);
                connection.ends[1].gone = true; // there never was one
            }
        }
        let mut connector = connection.connector.take();
        let node = connection.ends[0].node;
        self.wake(&mut connector);
        self.step(node, id, "connected");
        self.forget_if_over(id);
    }

    /// Sends one segment to the end `side`.
    pub fn transmit(&mut self, id: u64, side: usize, segment: Segment) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (from, to) = (connection.ends[1 - side].node, connection.ends[side].node);
        let earliest = self.now + self.latency(from, to);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let in_flight = &mut connection.ends[side].in_flight;
        let at = in_flight.back().map_or(earliest, |(last, _)| earliest.max(*last));
        in_flight.push_back((at, segment));
        self.schedule(at, Event::Arrive { connection: id, side });
    }

    /// Sends bytes to the end `side` in pieces; by chance the connection breaks in their middle.
    pub fn transmit_data(&mut self, id: u64, side: usize, mut data: &[u8]) {
        let Some(connection) = self.connections.get(&id) else { return };
        let is_local = connection.ends[0].node == connection.ends[1].node;
        let breaks = !is_local && self.one_in(self.config.reset_one_in);
        if breaks {
            data = &data[..self.chance.below(data.len() as u64 + 1) as usize];
        }
        while !data.is_empty() {
            let max = if self.one_in(16) { 1 + self.chance.below(64) } else { SEGMENT };
            let (piece, rest) = data.split_at((max as usize).min(data.len()));
            self.transmit(id, side, Segment::Data(piece.to_vec()));
            data = rest;
        }
        if breaks {
            self.transmit(id, side, Segment::Reset(io::ErrorKind::ConnectionReset));
            self.transmit(id, 1 - side, Segment::Reset(io::ErrorKind::ConnectionReset));
        }
    }

    fn arrive(&mut self, id: u64, side: usize) {
        loop {
            let Some(connection) = self.connections.get(&id) else { return };
            let (from, to) = (connection.ends[1 - side].node, connection.ends[side].node);
            let through = self.is_reachable(from, to);
            let (now, retry) = (self.now, nanos(self.config.retransmit));
            let timeout = nanos(self.config.stream_timeout);
            let Some(connection) = self.connections.get_mut(&id) else { return };
            let end = &mut connection.ends[side];
            match end.in_flight.front_mut() {
                Some((at, _)) if *at <= now => {
                    if !through {
                        let since = *end.stalled_since.get_or_insert(now);
                        *at = now + retry;
                        if now - since >= timeout {
                            end.in_flight.clear();
                            return self.fail(id, 1 - side, io::ErrorKind::TimedOut);
                        }
                        return self.schedule(now + retry, Event::Arrive { connection: id, side });
                    }
                }
                _ => return self.forget_if_over(id),
            }
            end.stalled_since = None;
            let Some((_, segment)) = end.in_flight.pop_front() else { return };
            self.step(to, id, "arrive");
            self.take_in(id, side, segment);
        }
    }

    fn take_in(&mut self, id: u64, side: usize, segment: Segment) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let end = &mut connection.ends[side];
        match segment {
            Segment::Data(_) if end.gone => {
                end.in_flight.clear();
                if !connection.ends[1 - side].gone {
                    self.transmit(id, 1 - side, Segment::Reset(io::ErrorKind::ConnectionReset));
                }
            }
            Segment::Data(data) => {
                end.received.extend(data);
                let mut receiver = end.receiver.take();
                self.wake(&mut receiver);
            }
            Segment::Fin => {
                end.at_eof = true;
                let mut receiver = end.receiver.take();
                self.wake(&mut receiver);
            }
            Segment::Reset(kind) => {
                end.in_flight.clear();
                self.fail(id, side, kind);
            }
        }
    }

    /// The end `side` learns that the connection is broken.
    fn fail(&mut self, id: u64, side: usize, kind: io::ErrorKind) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let end = &mut connection.ends[side];
        end.error.get_or_insert(kind);
        let (mut receiver, mut sender) = (end.receiver.take(), end.sender.take());
        self.wake(&mut receiver);
        self.wake(&mut sender);
        self.forget_if_over(id);
    }

    /// Nobody holds the end `side` any more: the peer gets the end of the stream, or a reset if bytes were left unread.
    pub fn close(&mut self, id: u64, side: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let end = &mut connection.ends[side];
        if std::mem::replace(&mut end.gone, true) {
            return;
        }
        let unread = !end.received.is_empty();
        end.received.clear();
        let already_shut = end.shut;
        let powered = self.nodes[connection.ends[side].node.0 as usize].powered;
        if powered && !connection.ends[1 - side].gone && !already_shut {
            let last = if unread { Segment::Reset(io::ErrorKind::ConnectionReset) } else { Segment::Fin };
            self.transmit(id, 1 - side, last);
        }
        self.forget_if_over(id);
    }

    /// The process behind every connection of `node` dies: what it sent arrives up to some point.
    pub fn tear_connections(&mut self, node: NodeId) {
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            for side in 0..2 {
                let Some(connection) = self.connections.get_mut(&id) else { break };
                let is_local = connection.ends[0].node == connection.ends[1].node;
                if connection.ends[side].node != node || connection.ends[side].gone {
                    continue;
                }
                if !is_local && !connection.ends[1 - side].in_flight.is_empty() {
                    let keep = self.chance.below(connection.ends[1 - side].in_flight.len() as u64 + 1) as usize;
                    connection.ends[1 - side].in_flight.truncate(keep);
                }
                if self.chance.one_in(2) {
                    connection.ends[side].received.push_back(0); // as if something was unread: a reset
                }
                self.close(id, side);
            }
        }
    }

    fn forget_if_over(&mut self, id: u64) {
        if self.connections.get(&id).is_some_and(Connection::is_over) {
            self.connections.remove(&id);
        }
    }

    pub fn send_datagram(&mut self, from: (NodeId, SocketAddr), to: SocketAddr, data: &[u8]) {
        let copies = 1 + usize::from(self.one_in(self.config.datagram_duplicate_one_in));
        for _ in 0..copies {
            if self.one_in(self.config.datagram_loss_one_in) {
                continue;
            }
            let target = self.claimant(&to).unwrap_or(from.0);
            let at = self.now + self.latency(from.0, target);
            self.schedule(at, Event::Datagram { from, to, data: data.to_vec() });
        }
    }

    /// The machine that bound the address last.
    fn claimant(&self, to: &SocketAddr) -> Option<NodeId> {
        let machines = self.sockets.range((*to, NodeId(0))..=(*to, NodeId(u16::MAX)));
        machines.max_by_key(|(_, socket)| socket.claimed).map(|((_, node), _)| *node)
    }

    fn datagram_arrives(&mut self, from: (NodeId, SocketAddr), to: SocketAddr, data: Vec<u8>) {
        let Some(node) = self.claimant(&to) else { return };
        if !self.is_reachable(from.0, node) {
            return;
        }
        self.step(node, u64::from(to.port()), "datagram");
        if let Some(socket) = self.sockets.get_mut(&(to, node))
            && socket.queue.len() < SOCKET_QUEUE
        {
            socket.queue.push_back((data, from.1));
            let mut receiver = socket.receiver.take();
            self.wake(&mut receiver);
        }
    }
}
