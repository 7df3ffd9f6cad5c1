//! Connections within one process: the embedded mode, and clients on the engine's own cores.

use vellum_base::Rid;
use vellum_rt::channel;

use crate::error::SocketError;
use crate::socket::{Socket, socket_pair};

/// Sockets that wait to be accepted, per reactor.
const BACKLOG: usize = 64;

struct Ends {
    tx: channel::Sender<vellum_wire::Frame>,
    rx: channel::Receiver<vellum_wire::Frame>,
}

/// Opens sockets to the reactors of an engine in this process.
#[derive(Clone)]
pub struct InProcessDialer {
    reactors: Vec<channel::Sender<Ends>>,
}

/// One reactor's end of it. May be sent to that reactor.
pub struct InProcessListener {
    accepted: channel::Receiver<Ends>,
}

/// A dialer and one listener per reactor.
pub fn in_process(reactors: usize) -> (InProcessDialer, Vec<InProcessListener>) {
    let mut senders = Vec::with_capacity(reactors);
    let mut listeners = Vec::with_capacity(reactors);
    for _ in 0..reactors {
        let (tx, rx) = channel::bounded(BACKLOG);
        senders.push(tx);
        listeners.push(InProcessListener { accepted: rx });
    }
    (InProcessDialer { reactors: senders }, listeners)
}

/// The reactor where a client's session lives: the same for all its sockets, so that a reconnect finds it (scenario 17).
pub fn home_of(rid: Rid, reactors: usize) -> usize {
    // The rid is random, but chosen by the client: mixing costs nothing.
    ((u128::from(rid.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)) * reactors as u128) >> 64) as usize
}

impl InProcessDialer {
    pub async fn dial(&self, rid: Rid) -> Result<Socket, SocketError> {
        let (ours, theirs) = socket_pair();
        let (Some(reactor), Socket::InProcess { tx, rx }) =
            (self.reactors.get(home_of(rid, self.reactors.len())), theirs)
        else {
            return Err(SocketError::Closed);
        };
        reactor.send(Ends { tx, rx }).await.map_err(|_| SocketError::Closed)?;
        Ok(ours)
    }
}

impl InProcessListener {
    /// `None` when every dialer is gone.
    pub async fn accept(&mut self) -> Option<Socket> {
        self.accepted.recv().await.map(|Ends { tx, rx }| Socket::InProcess { tx, rx })
    }
}

impl std::fmt::Debug for InProcessDialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InProcessDialer({} reactors)", self.reactors.len())
    }
}
