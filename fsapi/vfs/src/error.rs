//! What an operation answers when it does not succeed: an errno, as applications know them.

use std::fmt;

use thiserror::Error;
use vellum_base::Ino;
use vellum_format::ItemError;

/// An errno. The cause, where a person should know it, is logged where it is met.
#[derive(Error, Clone, Copy, PartialEq, Eq)]
pub struct VfsError {
    pub errno: i32,
}

pub type Result<T> = std::result::Result<T, VfsError>;

macro_rules! errnos {
    ($($name:ident = $libc:ident),* $(,)?) => {
        impl VfsError {
            $(pub const $name: VfsError = VfsError { errno: libc::$libc };)*

            fn name(self) -> Option<&'static str> {
                match self.errno {
                    $(libc::$libc => Some(stringify!($libc)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    PERM = EPERM, NOENT = ENOENT, IO = EIO, BADF = EBADF, BUSY = EBUSY, EXIST = EEXIST, NOTDIR = ENOTDIR,
    ISDIR = EISDIR, INVAL = EINVAL, FBIG = EFBIG, NOSPC = ENOSPC, MLINK = EMLINK, RANGE = ERANGE,
    NAMETOOLONG = ENAMETOOLONG, NOTEMPTY = ENOTEMPTY, NODATA = ENODATA, NOTSUP = EOPNOTSUPP, STALE = ESTALE,
    DEADLK = EDEADLK, NOLCK = ENOLCK,
    TOOBIG = E2BIG, NOTCONN = ENOTCONN, LOOP = ELOOP, AGAIN = EAGAIN, NXIO = ENXIO, INTR = EINTR, ACCES = EACCES,
    // Never leaves this crate: the operation starts again, see `restarted`.
    RESTART = ERESTART,
}

/// Runs an operation until nothing that it read under its locks was changed by a change of leaders: a new leader may have
/// torn extents that were read. Each attempt takes its locks anew.
pub(crate) async fn restarted<T>(mut operation: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    loop {
        match operation().await {
            Err(VfsError::RESTART) => {}
            done => return done,
        }
    }
}

impl fmt::Display for VfsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.errno),
        }
    }
}

impl fmt::Debug for VfsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An item that contradicts itself: logged with its place, EIO to the caller.
pub(crate) fn corrupt(ino: Ino, what: ItemError) -> VfsError {
    tracing::error!(%ino, %what, "corrupt item");
    VfsError::IO
}

/// Structure that contradicts itself although each item is well formed.
pub(crate) fn broken(ino: Ino, what: &'static str) -> VfsError {
    tracing::error!(%ino, what, "broken reference");
    VfsError::IO
}
