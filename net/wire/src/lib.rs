//! What travels between a client and an engine: messages and the frames that carry them. No IO, no state.

pub mod message;

pub use message::{
    ErrorCode, Greeted, Greeting, LockGrant, LockMode, LockName, LockWant, Refusal, Request, Response, StatFs,
    WireError,
};
