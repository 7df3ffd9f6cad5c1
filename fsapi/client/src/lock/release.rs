//! Giving locks away: because another client asks (invalidation), or because too many are idle.

use std::cell::Cell;
use std::rc::Rc;

use vellum_base::{Mutant, mutant, probe};
use vellum_wire::{LockMode, LockName, LockWant, Request, Response};

use super::guard::Used;
use super::{Lock, LockGuard};
use crate::fact::Fact;
use crate::stats::count;
use crate::wait::WakeList;
use crate::{Client, env};

/// Idle locks given back in one message.
const GIVE_BACK: usize = 256;

impl Client {
    /// Weakens the lock to `to`: returns when everything under it is durable and what became stale is dropped.
    /// Duplicates are legal, and wait for each other.
    pub(crate) async fn invalidate_lock(self: &Rc<Self>, name: LockName, to: LockMode) {
        count(&self.counters.invalidations, 1);
        let Some(lock) = self.locks.get(name) else { return };
        // A task of its own: a release that has begun ends, also when the connection drops the handler.
        let (client, done) = (self.clone(), Rc::new((Cell::new(false), WakeList::default())));
        let tell = done.clone();
        lock.releases.set(lock.releases.get() + 1);
        env::spawn("invalidate", async move {
            let begun = client.release(&lock, to).await;
            client.release_done(&lock, begun);
            tell.0.set(true);
            tell.1.wake_all();
        });
        done.1.until(|| done.0.get().then_some(())).await;
    }

    /// True when it did something: then the lock stays closed until `release_done`.
    async fn release(self: &Rc<Self>, lock: &Rc<Lock>, to: LockMode) -> bool {
        lock.changed.until(|| (!lock.releasing.get()).then_some(())).await;
        if to.covers(lock.held.get()) {
            return false;
        }
        lock.releasing.set(true);
        lock.ceiling.set(to);
        lock.changed.until(|| (lock.free_for(to) || self.is_dead()).then_some(())).await;
        self.weaken(lock, to).await;
        true
    }

    /// What follows when nobody uses the lock any more in a mode that `to` forbids.
    async fn weaken(self: &Rc<Self>, lock: &Rc<Lock>, to: LockMode) {
        let hook = self.release_hook.borrow().clone();
        if let Some(hook) = hook
            && !self.is_dead()
        {
            let used = vec![Used { lock: lock.clone(), mode: lock.held.get(), counted: false }];
            let guard = LockGuard { used, table: self.locks.clone(), era: self.data.era() };
            hook(guard, to).await;
        }
        if let LockName::Group(group) = lock.name {
            // What failed is reported by sync and by every later change; the lock must go all the same.
            if !mutant::active(Mutant::AnswerBeforeDurable) {
                let _ = self.sync_group(group).await;
            }
            // A dead client did not wait for its users, who may be fetching; nothing reads its cache any more.
            if to == LockMode::Null && !self.is_dead() && !mutant::active(Mutant::KeepCache) {
                self.cache.borrow_mut().drop_group(group);
            }
        }
        self.report_opens(lock.name, to).await;
        lock.held.set(to);
        probe::tell(|| {
            let dirty = self.is_dirty(lock.name) && !self.is_dead();
            Fact::Weakened { rid: self.rid(), name: lock.name, mode: to, dirty }
        });
    }

    /// Ends one release: only then may the lock be used or asked for again.
    fn release_done(self: &Rc<Self>, lock: &Rc<Lock>, begun: bool) {
        lock.releases.set(lock.releases.get() - 1);
        if begun {
            lock.releasing.set(false);
            lock.ceiling.set(LockMode::Write);
        }
        if lock.releases.get() == 0 {
            lock.admit_waiting();
        }
        lock.changed.wake_all();
        self.locks.forget_if_null(lock);
    }

    /// Begins to give back the oldest idle locks when there are too many.
    pub(crate) fn shrink_locks(self: &Rc<Self>) {
        if self.locks.len() <= self.options.max_idle_locks || self.shrinking.replace(true) {
            return;
        }
        let client = self.clone();
        env::spawn("give locks back", async move {
            while client.locks.len() > client.options.max_idle_locks && !client.is_dead() {
                let excess = client.locks.len() - client.options.max_idle_locks;
                // Some more than needed, so that this does not run for each new lock.
                let target = (excess + client.options.max_idle_locks / 16).clamp(1, GIVE_BACK);
                let oldest = client.locks.oldest_idle(target);
                if oldest.is_empty() {
                    break;
                }
                client.give_back(oldest).await;
            }
            client.shrinking.set(false);
        });
    }

    async fn give_back(self: &Rc<Self>, locks: Vec<Rc<Lock>>) {
        // All are idle now, and all are closed now: to wait for the users of one while another is closed could close a
        // circle, when a user of the one waits for the other.
        for lock in &locks {
            lock.releases.set(lock.releases.get() + 1);
            lock.releasing.set(true);
            lock.ceiling.set(LockMode::Null);
        }
        let mut to = Vec::with_capacity(locks.len());
        for lock in &locks {
            self.weaken(lock, LockMode::Null).await;
            to.push(LockWant { name: lock.name, mode: LockMode::Null });
        }
        count(&self.counters.locks_given_back, to.len() as u64);
        // Nothing is asked for under these names before the engine has taken them back.
        to.sort_by_key(|w| w.name);
        match self.port.call(Request::Unlock { to }, None).await.map(|r| r.body) {
            Ok(Response::Unlocked) => {}
            Ok(other) => tracing::warn!(?other, "giving locks back was refused"),
            Err(error) => tracing::debug!(%error, "giving locks back"),
        }
        for lock in &locks {
            self.release_done(lock, true);
        }
    }
}
