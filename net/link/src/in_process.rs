//! Connections within one process: the embedded mode, and clients on the engine's own cores.

use std::sync::Arc;

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
    home_of: Arc<dyn Fn(Rid) -> usize + Send + Sync>,
}

/// One reactor's end of it. May be sent to that reactor.
pub struct InProcessListener {
    accepted: channel::Receiver<Ends>,
}

/// A dialer and one listener per reactor. `home_of` says on which reactor a client's session lives, so that its frames
/// are moved once.
pub fn in_process(
    reactors: usize,
    home_of: impl Fn(Rid) -> usize + Send + Sync + 'static,
) -> (InProcessDialer, Vec<InProcessListener>) {
    let mut senders = Vec::with_capacity(reactors);
    let mut listeners = Vec::with_capacity(reactors);
    for _ in 0..reactors {
        let (tx, rx) = channel::bounded(BACKLOG);
        senders.push(tx);
        listeners.push(InProcessListener { accepted: rx });
    }
    (InProcessDialer { reactors: senders, home_of: Arc::new(home_of) }, listeners)
}

impl InProcessDialer {
    pub async fn dial(&self, rid: Rid) -> Result<Socket, SocketError> {
        let (ours, theirs) = socket_pair();
        let (Some(reactor), Socket::InProcess { tx, rx }) = (self.reactors.get((self.home_of)(rid)), theirs) else {
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
