//! What goes wrong with a connection.

use thiserror::Error;
use vellum_proto::{Closed, Violation};
use vellum_wire::{Refusal, WireError, WireFault};

/// The outcome of a call.
#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum LinkError {
    /// The engine handled the request and says no.
    #[error(transparent)]
    Remote(#[from] WireError),
    /// No engine will ever accept this client again.
    #[error("the engine refuses this client: {0:?}")]
    Refused(Refusal),
    #[error("the connection is closed")]
    Closed,
    /// A request of lock recovery whose term ended.
    #[error("the leader's term ended")]
    Interrupted,
    #[error("a message of {len} bytes; {max} may be sent")]
    TooLong { len: usize, max: usize },
    #[error("{open} calls are open; no more are taken")]
    TooManyCalls { open: usize },
    #[error("the engine did not answer within the time given")]
    TimedOut,
    #[error("the response does not fit the request")]
    UnexpectedResponse,
    /// Before the first greeting: one side does not believe the other, and trying again would change nothing.
    #[error("{0}")]
    NotTrusted(String),
}

impl From<Closed> for LinkError {
    fn from(closed: Closed) -> LinkError {
        match closed {
            Closed::Refused(refusal) => LinkError::Refused(refusal),
            Closed::Farewelled | Closed::Abandoned => LinkError::Closed,
        }
    }
}

/// Why one socket ended; the connection goes on with the next.
#[derive(Error, Debug)]
pub enum SocketError {
    #[error("the peer closed the socket")]
    Closed,
    #[error("socket: {0}")]
    Io(std::io::Error),
    #[error("malformed frame: {0}")]
    Fault(WireFault),
    #[error("the peer breaks the protocol: {0}")]
    Violation(Violation),
    #[error("no greeting in time")]
    Silent,
    #[error("the peer read nothing for {0:?}")]
    Stalled(std::time::Duration),
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    #[error("a handshake of more than {max} bytes")]
    LongHandshake { max: usize },
    #[error("the peer is not known here: {0}")]
    Stranger(String),
    #[error("what answers there is no node of this installation ({found})")]
    NotANode { found: String },
    #[error("{endpoint} is beyond loopback: keys are needed (--keys)")]
    NoKeys { endpoint: String },
    #[error("the engine speaks TLS there: keys are needed (--keys)")]
    SpeaksTls,
}

impl From<std::io::Error> for SocketError {
    fn from(error: std::io::Error) -> SocketError {
        SocketError::Io(error)
    }
}

impl From<WireFault> for SocketError {
    fn from(error: WireFault) -> SocketError {
        SocketError::Fault(error)
    }
}

impl From<Violation> for SocketError {
    fn from(error: Violation) -> SocketError {
        SocketError::Violation(error)
    }
}

impl SocketError {
    /// Another attempt with the same keys at the same place would end in the same way.
    pub(crate) fn is_about_trust(&self) -> bool {
        match self {
            // A peer that resets its socket in mid-handshake may be dying.
            SocketError::Tls(_) | SocketError::Stranger(_) | SocketError::NotANode { .. } => true,
            SocketError::NoKeys { .. } | SocketError::SpeaksTls => true,
            SocketError::Io(error) => error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()),
            _ => false,
        }
    }

    pub(crate) fn into_io(self) -> std::io::Error {
        match self {
            SocketError::Io(error) => error,
            SocketError::Tls(error) => std::io::Error::new(std::io::ErrorKind::InvalidData, error),
            other => std::io::Error::other(other.to_string()),
        }
    }
}
