//! The table of locks and the state of one.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::Waker;

use vellum_base::{Mutant, mutant};
use vellum_wire::{LockGrant, LockMode, LockName, LockWant};

use crate::ClientError;
use crate::port::CallFuture;
use crate::wait::WakeList;

/// A task in line for a lock. It is counted as a user in the moment of the grant, not when it runs next: otherwise an
/// invalidation right behind the grant would send it round for ever.
pub(crate) struct Ticket {
    pub mode: LockMode,
    pub admitted: Cell<bool>,
    pub error: RefCell<Option<ClientError>>,
}

pub(crate) struct Lock {
    pub name: LockName,
    pub held: Cell<LockMode>,
    pub write_seq: Cell<u64>,
    pub readers: Cell<u32>,
    pub writers: Cell<u32>,
    /// Mode of the request in flight that asks for this lock first; Null when there is none.
    pub requested: Cell<LockMode>,
    /// Requests in flight that ask for it, first or behind others.
    pub asked: Cell<u32>,
    /// Strongest mode that new users may have: lowered by a queued invalidation.
    pub ceiling: Cell<LockMode>,
    /// Releases that wait or run; one runs at a time.
    pub releases: Cell<u32>,
    pub releasing: Cell<bool>,
    pub waiting: RefCell<VecDeque<Rc<Ticket>>>,
    /// The table's clock when it was used last.
    pub used_at: Cell<u64>,
    pub changed: WakeList,
}

impl Lock {
    fn new(name: LockName) -> Lock {
        Lock {
            name,
            held: Cell::default(),
            write_seq: Cell::default(),
            readers: Cell::default(),
            writers: Cell::default(),
            requested: Cell::default(),
            asked: Cell::default(),
            ceiling: Cell::new(LockMode::Write),
            releases: Cell::default(),
            releasing: Cell::default(),
            waiting: RefCell::default(),
            used_at: Cell::default(),
            changed: WakeList::default(),
        }
    }

    pub fn usable(&self, mode: LockMode) -> bool {
        self.held.get().covers(mode) && self.ceiling.get().covers(mode)
    }

    pub fn add_user(&self, mode: LockMode) {
        let users = if mode == LockMode::Write { &self.writers } else { &self.readers };
        users.set(users.get() + 1);
    }

    pub fn drop_user(&self, mode: LockMode) {
        let users = if mode == LockMode::Write { &self.writers } else { &self.readers };
        assert!(users.get() > 0, "{:?} has no user to drop", self.name);
        users.set(users.get() - 1);
        if users.get() == 0 && self.releases.get() > 0 {
            self.changed.wake_all();
        }
    }

    /// Nobody uses it in a mode that `to` forbids.
    pub fn free_for(&self, to: LockMode) -> bool {
        self.writers.get() == 0 && (to == LockMode::Read || self.readers.get() == 0)
    }

    pub fn is_idle(&self) -> bool {
        self.free_for(LockMode::Null)
            && self.waiting.borrow().is_empty()
            && self.asked.get() == 0
            && self.releases.get() == 0
    }

    /// Counts those in line whom the held mode now satisfies as users.
    pub fn admit_waiting(&self) {
        self.waiting.borrow_mut().retain(|ticket| {
            let admit = self.usable(ticket.mode);
            if admit {
                self.add_user(ticket.mode);
                ticket.admitted.set(true);
            }
            !admit
        });
        self.changed.wake_all();
    }

    pub fn fail_waiting(&self, error: &ClientError) {
        for ticket in self.waiting.borrow_mut().drain(..) {
            *ticket.error.borrow_mut() = Some(error.clone());
        }
        self.changed.wake_all();
    }
}

/// A lock request on its way. Whoever must know its outcome first may poll it: see [`Upcalls`](crate::port::Upcalls).
pub(crate) struct PendingRequest {
    pub wants: Vec<LockWant>,
    pub reply: RefCell<Option<CallFuture>>,
    /// The task that drives it.
    pub driver: RefCell<Option<Waker>>,
}

/// One lock as this client sees it: for people who ask who waits for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockView {
    pub name: LockName,
    pub held: LockMode,
    /// Mode that the engine was asked for and has not answered; Null when nothing was asked.
    pub requested: LockMode,
    pub readers: u32,
    pub writers: u32,
    /// Tasks in line.
    pub waiting: usize,
    /// Invalidations, or givings back, that wait or run.
    pub releases: u32,
}

#[derive(Default)]
pub(crate) struct LockTable {
    pub locks: RefCell<HashMap<LockName, Rc<Lock>>>,
    pub pending: RefCell<Vec<Rc<PendingRequest>>>,
    clock: Cell<u64>,
}

impl LockTable {
    pub fn get(&self, name: LockName) -> Option<Rc<Lock>> {
        self.locks.borrow().get(&name).cloned()
    }

    pub fn get_or_new(&self, name: LockName) -> Rc<Lock> {
        self.locks.borrow_mut().entry(name).or_insert_with(|| Rc::new(Lock::new(name))).clone()
    }

    pub fn len(&self) -> usize {
        self.locks.borrow().len()
    }

    pub fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// Forgets a lock about which nothing needs to be known.
    pub fn forget_if_null(&self, lock: &Rc<Lock>) {
        if lock.held.get() == LockMode::Null && lock.is_idle() {
            self.locks.borrow_mut().remove(&lock.name);
        }
    }

    /// All that is held, ascending. A lock under release counts with its old mode (L6).
    pub fn held(&self) -> Vec<LockGrant> {
        let locks = self.locks.borrow();
        let new_mode = mutant::active(Mutant::ReportNewMode);
        let mode = |l: &Lock| if new_mode { l.held.get().min(l.ceiling.get()) } else { l.held.get() };
        let held = locks.values().filter(|l| mode(l) != LockMode::Null);
        let mut held: Vec<_> =
            held.map(|l| LockGrant { name: l.name, mode: mode(l), write_seq: l.write_seq.get() }).collect();
        held.sort_by_key(|w| w.name);
        held
    }

    /// Every lock of the table, ascending.
    pub fn views(&self) -> Vec<LockView> {
        let locks = self.locks.borrow();
        let mut views: Vec<_> = locks
            .values()
            .map(|l| LockView {
                name: l.name,
                held: l.held.get(),
                requested: l.requested.get(),
                readers: l.readers.get(),
                writers: l.writers.get(),
                waiting: l.waiting.borrow().len(),
                releases: l.releases.get(),
            })
            .collect();
        views.sort_by_key(|v| v.name);
        views
    }

    /// The `count` idle locks that were used longest ago.
    pub fn oldest_idle(&self, count: usize) -> Vec<Rc<Lock>> {
        let locks = self.locks.borrow();
        let mut idle: Vec<_> =
            locks.values().filter(|l| l.held.get() != LockMode::Null && l.is_idle()).cloned().collect();
        if idle.len() > count && count > 0 {
            idle.select_nth_unstable_by_key(count - 1, |l| (l.used_at.get(), l.name));
            idle.truncate(count);
        }
        idle.sort_unstable_by_key(|l| l.name); // not in the map's order: runs of the simulation repeat themselves
        idle
    }
}
