//! Exit codes, so that scripts can tell what happened without reading the message.

use std::fmt;
use std::process::ExitCode;

/// Documented in docs/OPERATING.md; never renumbered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Something failed that none of the others names.
    Failure = 1,
    /// The command line is wrong. clap uses the same.
    Usage = 2,
    /// `check` found damage; `quickstart` found a difference.
    NotClean = 3,
    /// The device is missing, in use, too small, of another format or version, or failed.
    Device = 4,
    /// The endpoint cannot be reached or refused us.
    Endpoint = 5,
    /// Missing rights, or a mount point that cannot be used.
    Mount = 6,
}

impl From<Exit> for ExitCode {
    fn from(e: Exit) -> ExitCode {
        ExitCode::from(e as u8)
    }
}

/// An error that knows its exit code. Anything else ends with [`Exit::Failure`].
#[derive(Debug)]
pub struct Coded {
    pub code: Exit,
    pub error: anyhow::Error,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Coded {}

/// Attaches an exit code to an error.
pub trait WithExit<T> {
    fn exit(self, code: Exit) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithExit<T> for Result<T, E> {
    fn exit(self, code: Exit) -> anyhow::Result<T> {
        self.map_err(|e| Coded { code, error: e.into() }.into())
    }
}

/// The code of an error, wherever in the chain it was attached.
pub fn code_of(error: &anyhow::Error) -> Exit {
    error.downcast_ref::<Coded>().map_or(Exit::Failure, |c| c.code)
}
