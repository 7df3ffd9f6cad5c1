//! What travels between a client and an engine: messages and the frames that carry them. No IO, no state.
//!
//! A frame is a fixed header, a control part (one encoded message) and, for file data, a payload that is received
//! straight into aligned memory. Everything here treats its input as hostile: lengths are bounded before they are
//! believed, lists before they are allocated, and no input panics.

pub mod admin;
pub mod codec;
pub mod files;
pub mod frame;
pub mod header;
pub mod message;
pub mod quorum;
mod reader;
mod request;
mod response;
mod writer;

pub use admin::{AdminRequest, MAX_LISTED};
pub use codec::WireFault;
pub use files::{FILE_LOCK_MAX, FileLock, FileLockMode, FileLockOutcome, FileLockSpace, HeldFileLock};
pub use frame::{Body, Frame};
pub use header::{FrameHeader, FrameKind, HEADER_LEN, MAX_CONTROL, MAX_PAYLOAD};
pub use message::{
    ErrorCode, FilePart, Greeted, Greeting, LockGrant, LockMode, LockName, LockWant, MAX_ENTRIES, MAX_ITEMS,
    MAX_JOB_BYTES, MAX_RANGES, MAX_WANTS, PROTOCOL, Refusal, Request, Response, StatFs, WireError,
};
pub use quorum::{DatagramAuth, MAX_DATAGRAM, MAX_TAG, NoAuth, QuorumDatagram, QuorumKind, QuorumMessage};
