//! Sockets before they belong to anybody.
//!
//! A socket without a greeting holds a small buffer for a short time and nothing else; its TLS handshake counts in that
//! time. Their number is bounded, in all and per source, and none of them can stop the listener (N4, scenario 21).

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vellum_base::Epoch;
use vellum_keys::{Keys, Subject};
use vellum_rt::net::{Endpoint, Listener, PeerCred, Stream};
use vellum_rt::{Class, JoinHandle, sleep, spawn, timeout};
use vellum_wire::{Body, Frame, Greeting, Refusal};

use crate::LocalBoxFuture;
use crate::error::SocketError;
use crate::silent::{Silent, Source};
use crate::socket::{FrameReader, FrameWriter, ShutdownOnDrop, Socket, TlsSocket};
use crate::tls::TlsStream;

/// After a failure to accept (no descriptors left, say) the listener rests for so long.
const REST: Duration = Duration::from_millis(50);

/// Who is at the other end, as far as it is proven.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// In this process.
    SameProcess,
    /// Over a unix socket.
    Local(PeerCred),
    /// Over TLS: what its certificate says.
    Known(Subject),
    /// Over plain TCP: anybody who reaches the port.
    Anybody,
}

/// A socket that has greeted and waits for a verdict.
pub struct Stranger {
    pub greeting: Greeting,
    /// Of the greeting's frame: what the client has received of this session.
    pub ack: u64,
    pub peer: Peer,
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
    silent: Silent,
    keys: Option<Arc<Keys>>,
    admit: Rc<dyn Fn(Stranger) -> LocalBoxFuture<()>>,
}

impl Greeter {
    /// With `keys` every TCP socket is TLS; without, none is.
    pub fn new(
        within: Duration,
        keys: Option<Arc<Keys>>,
        admit: Rc<dyn Fn(Stranger) -> LocalBoxFuture<()>>,
    ) -> Greeter {
        Greeter { within, silent: Silent::default(), keys, admit }
    }

    /// A socket of this process.
    pub fn welcome(&self, socket: Socket) {
        self.greet_within(Source::Ourselves, async move { Ok((socket, Peer::SameProcess)) });
    }

    fn welcome_stream(&self, stream: Stream) {
        let source = Source::of(&stream);
        if let Some(cred) = stream.peer_cred() {
            return self.greet_within(source, async move { Ok((Socket::Stream(stream), Peer::Local(cred))) });
        }
        let Some(keys) = self.keys.clone() else {
            return self.greet_within(source, async move { Ok((Socket::Stream(stream), Peer::Anybody)) });
        };
        self.greet_within(source, async move {
            let config = keys.server().map_err(|e| SocketError::Stranger(e.to_string()))?;
            let (stream, subject) = TlsStream::accept(stream, config).await?;
            Ok((Socket::Tls(TlsSocket(Rc::new(stream))), Peer::Known(subject)))
        });
    }

    /// Waits for the greeting in a task of its own.
    fn greet_within(
        &self,
        source: Source,
        socket: impl Future<Output = Result<(Socket, Peer), SocketError>> + 'static,
    ) {
        let Some(place) = self.silent.enter(source) else {
            tracing::debug!(?source, "too many sockets without a greeting: one more is closed");
            return;
        };
        let greeter = self.clone();
        spawn(Class::Request, "greeter", async move {
            let greeted = timeout(greeter.within, async { greet(socket.await?).await }).await;
            drop(place);
            match greeted.unwrap_or(Err(SocketError::Silent)) {
                Ok(stranger) => (greeter.admit)(stranger).await,
                Err(error) => tracing::debug!(?source, %error, "no greeting"),
            }
        })
        .detach();
    }
}

async fn greet((socket, peer): (Socket, Peer)) -> Result<Stranger, SocketError> {
    let (mut reader, writer, guard) = socket.split();
    let frame = reader.recv_greeting().await?;
    match frame.body {
        Body::Greeting(greeting) => Ok(Stranger { greeting, ack: frame.ack, peer, reader, writer, guard }),
        _ => Err(vellum_proto::Violation::NoGreeting.into()),
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
                    Ok(stream) => greeter.welcome_stream(stream),
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
