//! Keeps a client's grants and invalidations of one lock in order (N3).
//!
//! A request for several locks is granted lock by lock, perhaps by several reactors, and answered once at the end. An
//! invalidation of a lock that was granted to it already, which the client cannot know, waits here until that answer has
//! been queued. An invalidation of an older grant is not held back: the request may be waiting for its answer. Nobody
//! waits for ever: locks are taken in ascending order, so some request always gets its last lock.

use std::collections::HashMap;

use vellum_wire::{LockMode, LockName};

#[derive(Default)]
pub struct GrantOrder {
    /// Locks that were granted to unanswered requests.
    untold: HashMap<LockName, Untold>,
}

#[derive(Default)]
struct Untold {
    grants: u32,
    waiting: Option<LockMode>,
}

impl GrantOrder {
    /// An unanswered request got this lock.
    pub fn granted(&mut self, name: LockName) {
        self.untold.entry(name).or_default().grants += 1;
    }

    /// An invalidation for the client: true when it may be sent now, else [`Self::answered`] will give it.
    pub fn may_invalidate(&mut self, name: LockName, mode: LockMode) -> bool {
        match self.untold.get_mut(&name) {
            Some(untold) => {
                untold.waiting = Some(mode);
                false
            }
            None => true,
        }
    }

    /// The answer with these grants is queued. The invalidations that may be sent behind it.
    pub fn answered(&mut self, names: impl IntoIterator<Item = LockName>) -> Vec<(LockName, LockMode)> {
        let mut released = Vec::new();
        for name in names {
            let Some(untold) = self.untold.get_mut(&name) else { continue };
            untold.grants -= 1;
            if untold.grants == 0 {
                released.extend(untold.waiting.map(|mode| (name, mode)));
                self.untold.remove(&name);
            }
        }
        released
    }
}
