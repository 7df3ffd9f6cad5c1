//! Locks of the fake engine: granted in order, invalidated when they conflict.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use vellum_base::Rid;
use vellum_wire::{LockGrant, LockMode, LockName, LockWant, Response};

use super::{FakeEngine, FakePort};
use crate::env;

#[derive(Default)]
pub(super) struct FakeLock {
    holders: HashMap<Rid, LockMode>,
    queue: VecDeque<(Rid, LockMode)>,
    /// Being invalidated: at most one at a time for each holder.
    invalidating: HashMap<Rid, LockMode>,
}

impl FakeLock {
    pub fn mode_of(&self, rid: Rid) -> LockMode {
        self.holders.get(&rid).copied().unwrap_or_default()
    }

    /// Grants from the head of the queue; returns the invalidations that the head waits for.
    fn advance(&mut self) -> Vec<(Rid, LockMode)> {
        while let Some(&(rid, mode)) = self.queue.front() {
            let wanted = mode.max(self.mode_of(rid));
            let in_the_way: Vec<Rid> = self
                .holders
                .iter()
                .filter(|(other, held)| **other != rid && !held.compatible(wanted))
                .map(|(other, _)| *other)
                .collect();
            if !in_the_way.is_empty() {
                let to = if wanted == LockMode::Read { LockMode::Read } else { LockMode::Null };
                let fresh: Vec<_> = in_the_way
                    .into_iter()
                    .filter(|other| !self.invalidating.contains_key(other))
                    .map(|other| (other, to))
                    .collect();
                self.invalidating.extend(fresh.iter().copied());
                return fresh;
            }
            self.queue.pop_front();
            self.holders.insert(rid, wanted);
        }
        Vec::new()
    }
}

impl FakeEngine {
    pub(super) fn find(&self, rid: Rid) -> Option<Rc<FakePort>> {
        self.ports.borrow().iter().find(|p| p.rid == rid && !p.closed.get()).cloned()
    }

    pub(super) fn begin_lock(self: &Rc<Self>, rid: Rid, wants: &[LockWant]) {
        for want in wants {
            let mut state = self.state.borrow_mut();
            let lock = state.locks.entry(want.name).or_default();
            if !lock.mode_of(rid).covers(want.mode) {
                lock.queue.push_back((rid, want.mode));
            }
        }
        wants.iter().for_each(|want| self.advance(want.name));
    }

    /// The answer, when all is granted.
    pub(super) fn poll_lock(&self, rid: Rid, wants: &[LockWant]) -> Option<Response> {
        let mut state = self.state.borrow_mut();
        let held = |name| state.locks.get(name).map_or(LockMode::Null, |l| l.mode_of(rid));
        if !wants.iter().all(|w| held(&w.name).covers(w.mode)) {
            return None;
        }
        // Nothing is granted to a client whose answer is outstanding: it would weaken what it was not asked about.
        if wants.iter().any(|w| state.locks.get(&w.name).is_some_and(|l| l.invalidating.contains_key(&rid))) {
            return None;
        }
        let modes: Vec<_> = wants.iter().map(|w| (w.name, held(&w.name))).collect();
        let mut opens = Vec::new();
        for want in wants.iter().filter(|want| want.mode == LockMode::Write) {
            if let LockName::Group(group) = want.name {
                opens.extend(state.files.opens.elsewhere_in(rid, group));
            }
        }
        let mut grants = Vec::with_capacity(modes.len());
        for (name, mode) in modes {
            state.write_seq += 1;
            grants.push(LockGrant { name, mode, write_seq: state.write_seq });
        }
        Some(Response::Granted { grants, opens })
    }

    /// What was granted to an unanswered request and taken away again is asked for again.
    pub(super) fn ask_again(self: &Rc<Self>, rid: Rid, wants: &[LockWant]) {
        let lost = |want: &&LockWant| {
            let state = self.state.borrow();
            let lock = state.locks.get(&want.name);
            lock.is_none_or(|l| !l.mode_of(rid).covers(want.mode) && l.queue.iter().all(|(r, _)| *r != rid))
        };
        let covered = |want: &&LockWant| {
            self.state.borrow().locks.get(&want.name).is_some_and(|l| l.mode_of(rid).covers(want.mode))
        };
        // One after the other in ascending order: two requests never wait for each other.
        if let Some(first) = wants.iter().find(|want| !covered(want)).filter(lost) {
            self.begin_lock(rid, std::slice::from_ref(first));
        }
    }

    fn advance(self: &Rc<Self>, name: LockName) {
        let invalidate = self.state.borrow_mut().locks.get_mut(&name).map(FakeLock::advance).unwrap_or_default();
        self.changed.notify_all();
        for (rid, mode) in invalidate {
            let engine = self.clone();
            env::spawn("fake invalidation", async move {
                let term = engine.state.borrow().term;
                let port = engine.find(rid);
                let upcalls = port.as_ref().and_then(|p| p.upcalls.borrow().clone());
                if let Some(upcalls) = upcalls {
                    // The grant that made it a holder is delivered first.
                    env::sleep(std::time::Duration::from_micros(1)).await;
                    upcalls.invalidate(name, mode).await;
                }
                if engine.state.borrow().term != term {
                    return; // asked by a leader that is gone
                }
                {
                    let mut state = engine.state.borrow_mut();
                    let Some(lock) = state.locks.get_mut(&name) else { return };
                    lock.invalidating.remove(&rid);
                    if mode == LockMode::Null {
                        lock.holders.remove(&rid);
                    } else {
                        lock.holders.insert(rid, mode);
                    }
                }
                engine.advance(name);
            });
        }
    }

    pub(super) fn unlock(self: &Rc<Self>, rid: Rid, to: &[LockWant]) {
        for want in to {
            if let Some(lock) = self.state.borrow_mut().locks.get_mut(&want.name) {
                match want.mode {
                    LockMode::Null => drop(lock.holders.remove(&rid)),
                    mode => drop(lock.holders.insert(rid, mode)),
                }
            }
            self.advance(want.name);
        }
    }

    pub(super) fn forget_locks(self: &Rc<Self>, rid: Rid) {
        self.forget_files(rid);
        let names: Vec<_> = {
            let mut state = self.state.borrow_mut();
            state
                .locks
                .iter_mut()
                .map(|(name, lock)| {
                    lock.holders.remove(&rid);
                    lock.invalidating.remove(&rid);
                    lock.queue.retain(|(r, _)| *r != rid);
                    *name
                })
                .collect()
        };
        names.into_iter().for_each(|name| self.advance(name));
    }

    pub(super) fn reassert(&self, rid: Rid, held: &[LockGrant]) {
        let mut state = self.state.borrow_mut();
        for grant in held {
            let lock = state.locks.entry(grant.name).or_default();
            assert!(
                lock.holders.iter().all(|(r, mode)| *r == rid || mode.compatible(grant.mode)),
                "two clients claim {:?}",
                grant.name
            );
            lock.holders.insert(rid, grant.mode);
        }
    }
}
