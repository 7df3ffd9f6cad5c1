//! What can go wrong with a device, in one enum: it is cloned to everybody who waits, so it holds numbers, not sources.

use std::io;

use crate::driver::ControllerError;
use crate::spec::Status;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("{path} is in use by another process: {detail}")]
    InUse { path: String, detail: &'static str },
    #[error("cannot {what} {path}: {}", io::Error::from_raw_os_error(*errno))]
    Open { path: String, what: &'static str, errno: i32 },
    #[error("{path} cannot be read and written directly (O_DIRECT): {detail}")]
    NoDirectIo { path: String, detail: String },
    #[error("{path} is not a device: {detail}")]
    NotADevice { path: String, detail: &'static str },
    #[error("device {spec:?} is not understood: {detail}")]
    BadSpec { spec: String, detail: &'static str },
    #[error("device {spec:?}: this binary was built without that backend (cargo build --features {backend})")]
    NotBuilt { spec: String, backend: &'static str },
    #[error("io_uring cannot be set up: {}", io::Error::from_raw_os_error(*errno))]
    Ring { errno: i32 },

    /// The device answered with an error to this one operation.
    #[error("{op} of {len_bytes} bytes at {at_bytes} failed: {}", io::Error::from_raw_os_error(*errno))]
    Io { op: &'static str, at_bytes: u64, len_bytes: u64, errno: i32 },
    /// The controller answered this one operation with an error status.
    #[error("{op} of {len_bytes} bytes at {at_bytes} failed: {status}")]
    Command { op: &'static str, at_bytes: u64, len_bytes: u64, status: Status },
    /// The controller cannot be used.
    #[error("{device}: {reason}")]
    Controller { device: String, reason: Box<ControllerError> },
    /// SPDK, or a controller through it, cannot be used.
    #[error("{device}: {detail}")]
    Spdk { device: String, detail: String },
    /// The device moved fewer bytes than asked for and would not continue.
    #[error("{op} of {len_bytes} bytes at {at_bytes} stopped after {done_bytes} bytes")]
    Short { op: &'static str, at_bytes: u64, len_bytes: u64, done_bytes: u64 },
    /// A flush failed earlier: what was acknowledged since the flush before may be lost, so nothing is acknowledged
    /// any more. Only opening the device anew (and recovering) ends this state.
    #[error("the device failed: {reason}")]
    Failed { reason: String },

    #[error("{op} of {len_bytes} bytes at {at_bytes} passes the end of the device at {size_bytes}")]
    OutOfRange { op: &'static str, at_bytes: u64, len_bytes: u64, size_bytes: u64 },
    #[error("{op} of {len_bytes} bytes at {at_bytes} is not made of whole 4 KiB blocks, or its memory is not aligned")]
    Unaligned { op: &'static str, at_bytes: u64, len_bytes: u64 },
    #[error("{op} of {len_bytes} bytes is larger than one transfer of at most {max_bytes}")]
    TooLarge { op: &'static str, len_bytes: u64, max_bytes: u64 },
    #[error("this node gave up the device")]
    Closed,
    #[error("the device was opened read-only")]
    ReadOnly,
    #[error("more than {max} operations wait in one queue")]
    QueueFull { max: usize },
}

impl DeviceError {
    pub(crate) fn open(path: &str, what: &'static str, err: &io::Error) -> DeviceError {
        DeviceError::Open { path: path.to_owned(), what, errno: err.raw_os_error().unwrap_or(libc::EIO) }
    }

    /// True when this process has lost the device and another one may have it: it was given up, or taken away (a
    /// reservation conflict, which Linux calls EBADE).
    pub fn is_taken_away(&self) -> bool {
        match self {
            DeviceError::Closed | DeviceError::Io { errno: libc::EBADE, .. } => true,
            DeviceError::Command { status, .. } => status.code() == Status::RESERVATION_CONFLICT.code(),
            _ => false,
        }
    }

    /// True when the device is lost for good, as opposed to an error of one operation.
    pub fn is_failed(&self) -> bool {
        matches!(self, DeviceError::Failed { .. })
    }
}
