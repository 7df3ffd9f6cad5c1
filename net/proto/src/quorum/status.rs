//! What an operator sees of the quorum.

use std::time::Duration;

use vellum_base::{Rid, Slot, Term};
use vellum_format::SlotState;

use super::leadership::Phase;
use super::{DelayRecord, FenceTarget, Quorum, Role};
use crate::time::Time;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuorumRole {
    Starting,
    Follower,
    PreCandidate,
    Candidate,
    /// Elected, and making sure that nobody else leads.
    Elected,
    Fencing,
    Leading,
    Stopping,
    /// Left, or refused.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QuorumCounters {
    /// Datagrams that no honest member sends.
    pub dropped: u64,
    /// Answers of the driver that nobody waited for.
    pub ignored: u64,
    pub elections: u64,
    pub elected: u64,
    /// Leaderships that ended otherwise than by a resignation.
    pub deposed: u64,
    /// Timeouts that were found so late that the scheduler is to blame.
    pub late_wakes: u64,
    pub fences: u64,
    pub fences_failed: u64,
}

#[derive(Clone, Debug)]
pub struct PeerStatus {
    pub slot: Slot,
    pub rid: Option<Rid>,
    /// Since its last message.
    pub heard_ago: Option<Duration>,
    /// Since its last block write was durable, as it said.
    pub written_ago: Option<Duration>,
    /// The newest term that it is known to be in.
    pub term: Term,
    /// Gaps between heartbeats, or answers to ours.
    pub delays: DelayRecord,
}

#[derive(Clone, Debug)]
pub struct QuorumStatus {
    pub slot: Slot,
    pub rid: Rid,
    pub configured: u16,
    pub role: QuorumRole,
    pub term: Term,
    /// Ourselves while we are elected.
    pub leader: Option<Slot>,
    pub peers: Vec<PeerStatus>,
    /// Who must be fenced before we may lead or stand.
    pub fencing: Vec<FenceTarget>,
    /// What went wrong last, until we lead.
    pub error: Option<String>,
    /// Median of our last block writes.
    pub write_latency: Duration,
    /// How long a block write has been waiting now.
    pub write_stalled: Duration,
    pub write_errors: u64,
    pub counters: QuorumCounters,
    /// As read last.
    pub blocks: Vec<SlotState>,
}

impl Quorum {
    pub fn term(&self) -> Term {
        self.term
    }

    pub fn status(&self, now: Time) -> QuorumStatus {
        let (role, fencing) = match &self.role {
            Role::Watching { .. } | Role::Starting { .. } => (QuorumRole::Starting, Vec::new()),
            Role::Follower => (QuorumRole::Follower, Vec::new()),
            Role::PreCandidate { .. } => (QuorumRole::PreCandidate, Vec::new()),
            Role::Candidate { .. } => (QuorumRole::Candidate, Vec::new()),
            Role::Over { .. } => (QuorumRole::Over, Vec::new()),
            Role::Leader(leadership) => match &leadership.phase {
                Phase::Fencing { targets, .. } => (QuorumRole::Fencing, targets.clone()),
                Phase::Leading => (QuorumRole::Leading, Vec::new()),
                Phase::Stopping { .. } => (QuorumRole::Stopping, Vec::new()),
                _ => (QuorumRole::Elected, Vec::new()),
            },
        };
        let leads = matches!(self.role, Role::Leader(_));
        let peers = self.config.peers().filter_map(|slot| {
            let peer = self.peers[slot.index()].as_ref()?;
            Some(PeerStatus {
                slot,
                rid: peer.rid,
                heard_ago: peer.heard.map(|at| now - at),
                written_ago: peer.written_at.map(|at: Time| now - at),
                term: peer.term,
                delays: peer.delays.clone(),
            })
        });
        QuorumStatus {
            slot: self.config.slot,
            rid: self.config.rid,
            configured: self.config.configured,
            role,
            term: self.term,
            leader: if leads { Some(self.config.slot) } else { self.leader.map(|(slot, _)| slot) },
            peers: peers.collect(),
            fencing: fencing.into_iter().chain(self.predecessor.as_ref().map(|p| p.target)).collect(),
            error: self.error.clone(),
            write_latency: self.own.latency(),
            write_stalled: self.own.stalled(now),
            write_errors: self.own.errors,
            counters: self.counters,
            blocks: self.blocks.to_vec(),
        }
    }
}
