//! Who a peer is, and what proves it.
//!
//! - [`Subject`]: a role, a name and the access that go with it; a URI in the certificate.
//! - [`Keys`]: one party's bundle on disk (certificate, private key, the authority's certificate), ready for TLS.
//! - [`Authority`]: makes bundles. An installation has one; it is asked only when somebody is added or renewed.
//! - [`QuorumKey`]: what the members of a quorum share, to know each other's datagrams.
//!
//! One authority, TLS 1.3 alone, both sides with a certificate, no resumption: every socket proves itself afresh. Private
//! keys are readable by their owner alone, or are not read at all.
//!
//! Not here: sockets (`net/link`), and what a subject may do (`engine/server`).

mod authority;
mod bundle;
mod der;
mod error;
mod files;
mod quorum;
mod subject;
mod subtree;

pub use authority::{Authority, Issued, Wish};
pub use bundle::{ALPN, Keys, certificate_subject, peer_subject};
pub use der::{Validity, validity};
pub use error::KeysError;
pub use quorum::{QuorumKey, TAG_LEN, quorum_auth};
pub use subject::{Name, Role, Subject};
pub use subtree::Subtree;
