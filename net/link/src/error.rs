//! What goes wrong with a connection.

use thiserror::Error;
use vellum_proto::{Closed, Violation};
use vellum_wire::{Refusal, WireError, WireFault};

/// The outcome of a call.
#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum LinkError {
    /// The engine handled the request and says no.
    #[error("{0}")]
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
    Io(#[from] std::io::Error),
    #[error("malformed frame: {0}")]
    Fault(#[from] WireFault),
    #[error("the peer breaks the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("no greeting in time")]
    Silent,
}
