//! The gate before an acknowledgement: in a cluster, what is durable is said to be so only by a node that still led after
//! it had become so.
//!
//! A leader that was paused, deposed and woken finds its writes on the device, or overwritten; either way it is not its
//! word that counts. The answer needs no clock: a heartbeat round begun after the flush was answered by a majority in the
//! leader's term.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// The node leads no more, for this reason.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
#[error("this node does not lead any more: {0}")]
pub struct Deposed(pub String);

pub type GateFuture = Pin<Box<dyn Future<Output = Result<(), Deposed>>>>;

pub trait Gate: Send + Sync + fmt::Debug {
    /// Called on reactor 0, one at a time. Ends when it is certain that the node led at some moment after the call; with an
    /// error when it will never be. It may take as long as that needs.
    fn confirm(&self) -> GateFuture;
}
