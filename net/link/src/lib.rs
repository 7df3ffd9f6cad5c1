//! Sessions over sockets and within one process.
//!
//! - [`Connection`]: a client's connection, which finds its way back by itself.
//! - [`Session`], [`Acceptor`], [`InProcessListener`]: the engine's side.
//!
//! A frame is received into a buffer that many small frames share, a large payload straight into aligned memory of its
//! own; all frames that are pending in one turn leave in one send. Within one process frames are moved, not encoded.
//! What a peer may make us hold is bounded before it is believed; a malformed frame costs its socket and nothing else.
//! TCP beyond loopback is TLS with certificates on both sides ([`vellum_keys`]), or it is refused.

mod accept;
mod calls;
mod carrier;
mod connection;
mod dial;
mod error;
mod in_process;
mod session;
mod silent;
mod socket;
mod stream_reader;
mod stream_writer;
mod tls;

pub use accept::{Acceptor, Greeter, Peer, Stranger, refuse};
pub use calls::{PendingCall, Reply};
pub use connection::{Address, ConnectOptions, Connection, Handler, Identity, NewTermHook};
pub use error::{LinkError, SocketError};
pub use in_process::{InProcessDialer, InProcessListener, in_process};
pub use session::{Responder, Session, SessionHandler};
pub use silent::{MAX_SILENT, MAX_SILENT_PER_SOURCE};
pub use socket::{FrameReader, FrameWriter, ShutdownOnDrop, Socket, TlsSocket, bridge};

/// A boxed future of one reactor.
pub type LocalBoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T>>>;
