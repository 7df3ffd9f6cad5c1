//! What can go wrong for a user of the client.

use thiserror::Error;
use vellum_wire::{ErrorCode, WireError};

#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum ClientError {
    /// The engine refused this request; nothing was changed by it.
    #[error("the engine answered: {0}")]
    Engine(WireError),
    /// The engine has fenced this rid: locks, cache and unsynced changes are gone. Only a new client helps.
    #[error("fenced by the engine: {unsynced} unsynced batches were lost")]
    Fenced { unsynced: usize },
    /// A batch could not be applied, so nothing after it could. Sticky: every later change and sync says so.
    #[error("batch {number} failed, {unsynced} unsynced batches were lost: {cause}")]
    BatchFailed { number: u64, unsynced: usize, cause: WireError },
    /// The connection cannot be opened, or is closed for good.
    #[error("connection: {0}")]
    Connection(String),
    /// The peer answered with a message that does not fit the request.
    #[error("{request} was answered with the wrong kind of message")]
    Protocol { request: &'static str },
    /// A range that is neither on the device nor in this client's memory any more.
    #[error("block range {start} is stale: its lock guard was dropped")]
    StaleRange { start: u64 },
    /// Extents that this transaction changes may have been split since they were read, because a new leader had no place
    /// for them in one piece. Drop the guard and do the operation again; data that was written stays good.
    #[error("extents moved while the engine was recovered: try again")]
    Moved,
    /// A new leader found another directory at the path of this client's certificate.
    #[error("the path that these keys are for leads to another directory than before: mount again")]
    RootMoved,
    #[error("the client was shut down")]
    Stopped,
}

impl From<WireError> for ClientError {
    fn from(error: WireError) -> ClientError {
        ClientError::Engine(error)
    }
}

impl ClientError {
    /// The engine's code, when it is an answer to one request.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Engine(e) => Some(e.code),
            ClientError::BatchFailed { cause, .. } => Some(cause.code),
            _ => None,
        }
    }

    pub fn is_no_space(&self) -> bool {
        self.code() == Some(ErrorCode::NoSpace)
    }
}
