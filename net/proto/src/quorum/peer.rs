//! What a member knows of another.

use vellum_base::{Rid, Term};

use super::delays::DelayRecord;
use crate::time::Time;

#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// The run that spoke last, when, and the newest term that it said.
    pub rid: Option<Rid>,
    pub heard: Option<Time>,
    pub term: Term,
    /// Of this term's heartbeats.
    pub answered_round: u64,
    pub answered_at: Time,
    /// When its last block write was durable, by what its last message said.
    pub written_at: Option<Time>,
    /// In the election that is going on.
    pub granted: bool,
    /// We told this run that it may leave.
    pub let_go: bool,
    pub delays: DelayRecord,
}

impl Peer {
    /// Its slot was added just now.
    pub fn added(now: Time) -> Peer {
        Peer { answered_at: now, ..Peer::default() }
    }

    /// An election of ours begins.
    pub fn ask(&mut self) {
        self.granted = false;
    }

    /// A leadership of ours begins.
    pub fn elected(&mut self, now: Time) {
        self.answered_round = 0;
        self.answered_at = now;
        self.let_go = false;
        self.delays.pause();
    }
}
