//! What a member does while it has nothing to say: it looks whether its block is still its own, and whether the device still
//! takes writes.

use vellum_format::quorum::EventKind;

use super::{Quorum, Role};
use crate::time::Time;

impl Quorum {
    /// When the device and our block are looked at next.
    pub(super) fn probe_due(&self) -> Option<Time> {
        let alone = self.config.peers().next().is_none();
        let written = self.own.written_at().filter(|_| !alone && self.probing.is_none() && self.own.idle());
        written.map(|at| at + self.config.timers.probe())
    }

    /// The read shows that our block is still ours; then a write that says nothing new, that the device still takes them.
    pub(super) fn probe_now(&mut self, now: Time) {
        let takes_part = !matches!(self.role, Role::Watching { .. } | Role::Starting { .. } | Role::Over { .. });
        if self.probing.take().is_some() && takes_part && self.own.idle() {
            let vote = self.own.vote().and_then(|e| e.vote);
            self.record(now, EventKind::Term, self.term, vote);
        }
    }
}
