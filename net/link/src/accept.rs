//! Sockets before they belong to anybody.
//!
//! A socket without a greeting holds a small buffer for a short time and nothing else; their number is bounded, and none
//! of them can stop the listener (N4, scenario 21).

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::Epoch;
use vellum_rt::net::{Endpoint, Listener, PeerCred};
use vellum_rt::{Class, JoinHandle, sleep, spawn, timeout};
use vellum_wire::{Body, Frame, Greeting, Refusal};

use crate::LocalBoxFuture;
use crate::error::SocketError;
use crate::socket::{FrameReader, FrameWriter, ShutdownOnDrop, Socket};

/// Sockets that may be without a greeting at a time, per listener; the next is closed at once.
const MAX_SILENT: usize = 1024;
/// After a failure to accept (no descriptors left, say) the listener rests for so long.
const REST: Duration = Duration::from_millis(50);

/// A socket that has greeted and waits for a verdict.
pub struct Stranger {
    pub greeting: Greeting,
    /// Of the greeting's frame: what the client has received of this session.
    pub ack: u64,
    /// Over unix sockets.
    pub peer: Option<PeerCred>,
    pub reader: FrameReader,
    pub writer: FrameWriter,
    pub guard: ShutdownOnDrop,
}

impl Stranger {
    /// The greeting as a frame again, to be handed on.
    pub fn greeting_frame(&self) -> Frame {
        Frame::unsequenced(Body::Greeting(self.greeting.clone()), self.ack, Epoch::NONE)
    }

    /// Says why not and closes the socket.
    pub async fn refuse(self, refusal: Refusal) {
        refuse(self.writer, self.guard, refusal).await;
    }
}

/// Says why not and closes the socket.
pub async fn refuse(mut writer: FrameWriter, guard: ShutdownOnDrop, refusal: Refusal) {
    let _guard = guard;
    // A peer that does not read its refusal is not waited for.
    let frame = Frame::unsequenced(Body::Refused(refusal), 0, Epoch::NONE);
    let _ = timeout(Duration::from_secs(1), writer.send_one(frame)).await;
}

/// Turns sockets into strangers.
#[derive(Clone)]
pub struct Greeter {
    within: Duration,
    silent: Rc<Cell<usize>>,
    admit: Rc<dyn Fn(Stranger) -> LocalBoxFuture<()>>,
}

impl Greeter {
    pub fn new(within: Duration, admit: Rc<dyn Fn(Stranger) -> LocalBoxFuture<()>>) -> Greeter {
        Greeter { within, silent: Rc::new(Cell::new(0)), admit }
    }

    /// Waits for the greeting in a task of its own.
    pub fn welcome(&self, socket: Socket, peer: Option<PeerCred>) {
        if self.silent.get() >= MAX_SILENT {
            tracing::warn!("{MAX_SILENT} sockets without a greeting: one more is closed");
            return;
        }
        self.silent.set(self.silent.get() + 1);
        let greeter = self.clone();
        spawn(Class::Request, "greeter", async move {
            let stranger = greeter.greet(socket, peer).await;
            greeter.silent.set(greeter.silent.get() - 1);
            match stranger {
                Ok(stranger) => (greeter.admit)(stranger).await,
                Err(error) => tracing::debug!(%error, "no greeting"),
            }
        })
        .detach();
    }

    async fn greet(&self, socket: Socket, peer: Option<PeerCred>) -> Result<Stranger, SocketError> {
        let (mut reader, writer, guard) = socket.split();
        let frame = timeout(self.within, reader.recv_greeting()).await.map_err(|_| SocketError::Silent)??;
        match frame.body {
            Body::Greeting(greeting) => Ok(Stranger { greeting, ack: frame.ack, peer, reader, writer, guard }),
            _ => Err(vellum_proto::Violation::NoGreeting.into()),
        }
    }
}

/// Accepts on one endpoint until it is dropped.
pub struct Acceptor {
    local: Endpoint,
    task: JoinHandle<()>,
}

impl Acceptor {
    pub fn start(at: &Endpoint, greeter: Greeter) -> io::Result<Acceptor> {
        let listener = Listener::bind(at)?;
        let local = listener.local_endpoint()?;
        let task = spawn(Class::Request, "acceptor", async move {
            loop {
                match listener.accept().await {
                    Ok(stream) => {
                        let peer = stream.peer_cred();
                        greeter.welcome(Socket::Stream(stream), peer);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept");
                        sleep(REST).await;
                    }
                }
            }
        });
        Ok(Acceptor { local, task })
    }

    /// Where it listens, with the port that was chosen when 0 was asked for.
    pub fn local_endpoint(&self) -> &Endpoint {
        &self.local
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.task.cancel();
    }
}
