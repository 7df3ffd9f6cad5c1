//! Fencing: to make sure that an earlier leader writes nothing any more, whatever became of it.
//!
//! Truth before progress: a fencer says success only when it knows (Q8). What is gone already is fenced (F5). Who cannot
//! tell says so, and there is no takeover.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use thiserror::Error;
use vellum_base::{Rid, Slot, Term};
use vellum_format::ProcessIdentity;
use vellum_link::LocalBoxFuture;
use vellum_proto::quorum::FenceTarget;

/// Whom to fence, and for whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FenceOrder {
    pub target: FenceTarget,
    /// The target's address in the superblock; none when the slot was taken out of it.
    pub address: Option<SocketAddr>,
    /// The leader that asks.
    pub by: Slot,
    pub for_term: Term,
}

impl FenceOrder {
    pub fn slot(&self) -> Slot {
        self.target.slot
    }

    /// None when the target's block could not be read: whoever runs in the slot is meant.
    pub fn rid(&self) -> Option<Rid> {
        self.target.rid
    }

    pub(super) fn process(&self) -> Option<ProcessIdentity> {
        self.target.process.filter(|process| process.pid != 0)
    }
}

impl fmt::Display for FenceOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.target.slot)?;
        if let Some(rid) = self.target.rid {
            write!(f, " rid {rid}")?;
        }
        if let Some(term) = self.target.term {
            write!(f, " term {term}")?;
        }
        write!(f, " ({})", self.target.reason)
    }
}

#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum FenceError {
    /// This fencer cannot know; another one may.
    #[error("{0}")]
    NotMine(String),
    #[error("{0}")]
    Failed(String),
    #[error("no answer within {0:?}")]
    TimedOut(std::time::Duration),
}

pub type FenceFuture = LocalBoxFuture<Result<(), FenceError>>;

/// Runs on the agent's reactor, beside heartbeats: it must not block (scenario 26).
pub trait Fencer: Send + Sync + fmt::Debug {
    /// Ends with success when nothing of the target can write any more. Dropped when the leadership that asks is over.
    fn fence(&self, order: FenceOrder) -> FenceFuture;
}

/// Several fencers: each is asked until one succeeds.
#[derive(Debug)]
pub struct FenceWith(pub Vec<Arc<dyn Fencer>>);

impl Fencer for FenceWith {
    fn fence(&self, order: FenceOrder) -> FenceFuture {
        let fencers = self.0.clone();
        Box::pin(async move {
            let mut reasons = Vec::new();
            for fencer in fencers {
                match fencer.fence(order).await {
                    Ok(()) => return Ok(()),
                    Err(error) => reasons.push(error.to_string()),
                }
            }
            if reasons.is_empty() {
                reasons.push("no fencer is configured: give --fence".into());
            }
            Err(FenceError::Failed(reasons.join("; ")))
        })
    }
}
