//! What can go wrong with a controller. Cloned to everybody who waits, so it holds numbers and words.

use std::io;

use crate::DeviceError;
use crate::spec::Status;

/// The way to the controller failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransportError {
    #[error("cannot {what} {device}: {}", io::Error::from_raw_os_error(*errno))]
    Io { what: &'static str, device: String, errno: i32 },
    /// Shown by whoever names the device.
    #[error("{detail}")]
    Refused { device: String, detail: String },
}

impl TransportError {
    pub fn io(what: &'static str, device: &str, err: &io::Error) -> TransportError {
        match err.raw_os_error() {
            Some(errno) => TransportError::Io { what, device: device.to_owned(), errno },
            None => TransportError::refused(device, format!("cannot {what} it: {err}")),
        }
    }

    pub fn refused(device: &str, detail: impl Into<String>) -> TransportError {
        TransportError::Refused { device: device.to_owned(), detail: detail.into() }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ControllerError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the controller does not answer any more: it was removed, or its process has ended")]
    Gone,
    #[error("the controller reports a fatal error (CSTS.CFS)")]
    Fatal,
    #[error("the controller did not become {what} within {waited_ms} ms")]
    NotReady { what: &'static str, waited_ms: u64 },
    #[error("the controller cannot be used: {what}")]
    Unsupported { what: &'static str },
    #[error("{what}: {status}")]
    Command { what: &'static str, status: Status },
    #[error("{what} was not answered within {waited_ms} ms")]
    Timeout { what: &'static str, waited_ms: u64 },
    #[error("the controller answered nonsense: {what}")]
    Nonsense { what: &'static str },
    #[error("no memory that the device can address (see docs/OPERATING.md, NVMe)")]
    NoMemory,
    #[error("all {granted} IO queue pairs that the controller grants are in use: start with fewer reactors (--cores)")]
    NoQueue { granted: u16 },
    #[error("namespace {nsid} {what}")]
    Namespace { nsid: u32, what: &'static str },
}

impl ControllerError {
    pub fn on(self, device: &str) -> DeviceError {
        DeviceError::Controller { device: device.to_owned(), reason: Box::new(self) }
    }
}
