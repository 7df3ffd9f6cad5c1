//! What can be wrong with keys.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use thiserror::Error;

#[derive(Error, Debug)]
pub enum KeysError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{} exists; nothing was overwritten", path.display())]
    Exists { path: PathBuf },
    #[error("{} may be read by others (mode {mode:o}): chmod 600 it, and make new keys if somebody did", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{}: {what}", path.display())]
    Malformed { path: PathBuf, what: String },
    #[error(
        "{text:?} is no name: 1 to {} letters, digits, dots, dashes or underscores, a letter or digit first",
        crate::Name::MAX_LEN
    )]
    Name { text: String },
    #[error("{text:?} is no address: an IP address or a DNS name")]
    Address { text: String },
    #[error("{path:?} cannot be the directory of a client: {what}")]
    Subtree { path: String, what: &'static str },
    /// A certificate that our authority signed, and that does not say who it is for.
    #[error("the certificate names no role of ours ({what})")]
    Subject { what: String },
    #[error("{} holds a {found}'s keys; a node's are needed", path.display())]
    NotANode { path: PathBuf, found: String },
    #[error("the quorum reaches beyond loopback ({address}): its members need a node's keys (vellum keys, --keys)")]
    QuorumNeedsKeys { address: SocketAddr },
    #[error("making a certificate: {0}")]
    Issue(String),
    #[error("TLS: {0}")]
    Tls(rustls::Error),
}

impl From<rustls::Error> for KeysError {
    fn from(error: rustls::Error) -> KeysError {
        KeysError::Tls(error)
    }
}

impl KeysError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> KeysError + '_ {
        move |error| KeysError::Io { path: path.to_owned(), error }
    }

    /// Without the words of who reads PEM: they quote the file, and it is a secret.
    pub(crate) fn no_key(path: &Path) -> KeysError {
        KeysError::malformed(path, "no private key in PEM")
    }

    pub(crate) fn malformed(path: &Path, what: impl ToString) -> KeysError {
        KeysError::Malformed { path: path.to_owned(), what: what.to_string() }
    }
}
