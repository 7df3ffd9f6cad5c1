//! What a member is started with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use vellum_base::Slot;
use vellum_proto::quorum::QuorumTimers;
use vellum_wire::{DatagramAuth, NoAuth};

use super::fencer::{FenceWith, Fencer};
use crate::options::NodeOptions;

/// With what an orderly stop takes it is less than what service managers give a stop.
const STAY: Duration = Duration::from_secs(8);

#[derive(Clone)]
pub struct MemberOptions {
    pub slot: Slot,
    /// Of the engine, while this member leads. It listens on the slot's address, and on `listen` besides.
    pub node: NodeOptions,
    pub timers: QuorumTimers,
    /// A member that is told to leave while it is needed stays so long at most: it is let go when a majority remains without
    /// it, or when nobody is mounted any more.
    pub stay: Duration,
    pub fencer: Arc<dyn Fencer>,
    /// Of the members' datagrams. The node's keys, where it has them, take its place.
    pub auth: Arc<dyn DatagramAuth + Send + Sync>,
}

impl MemberOptions {
    /// With the default timers and without a fencer: it never succeeds a leader that did not stop by itself.
    pub fn new(slot: Slot, node: NodeOptions) -> MemberOptions {
        let fencer = Arc::new(FenceWith(Vec::new()));
        MemberOptions { slot, node, timers: QuorumTimers::DEFAULT, stay: STAY, fencer, auth: Arc::new(NoAuth) }
    }
}

impl fmt::Debug for MemberOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberOptions")
            .field("slot", &self.slot)
            .field("node", &self.node)
            .field("timers", &self.timers)
            .field("fencer", &self.fencer)
            .finish_non_exhaustive()
    }
}
