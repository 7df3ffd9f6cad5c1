//! How many clients an engine has, for the quorum's barrier of members that leave (U1). Written by the engine's reactors, read
//! by the agent's.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::reactor::Reactor;

/// Clients that remain: connected, waited for, or being reclaimed. Workers and the engine's own do not count.
#[derive(Debug)]
pub struct Mounted(AtomicUsize);

impl Mounted {
    /// Nobody knows before each of the reactors has counted its own.
    pub(crate) fn new(reactors: usize) -> Mounted {
        Mounted(AtomicUsize::new(reactors))
    }

    pub(crate) fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// From `before` to `now`, of one reactor.
    fn change(&self, before: usize, now: usize) {
        self.0.fetch_add(now, Ordering::Relaxed);
        self.0.fetch_sub(before, Ordering::Relaxed);
    }
}

impl Reactor {
    /// Whenever a client has come or is gone for good.
    pub(crate) fn tell_mounted(&self) {
        let Some(mounted) = &self.options.mounted else { return };
        let here = self.clients.borrow().values().filter(|client| client.identity.worker.is_none()).count();
        let known = self.known.borrow();
        let waited_for = known.values().filter(|known| known.as_ref().is_none_or(|known| known.worker.is_none()));
        let now = here + waited_for.count() + self.reclaiming.borrow().len() + self.admitting.borrow().len();
        mounted.change(self.counted.replace(now), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_is_mounted_until_every_reactor_knows_better() {
        let mounted = Mounted::new(2);
        mounted.change(1, 0);
        assert!(mounted.any(), "the other reactor has not counted yet");
        mounted.change(1, 3);
        mounted.change(3, 0);
        assert!(!mounted.any());
    }
}
