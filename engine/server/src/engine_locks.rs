//! Locks that the engine takes for itself, on the reactor that owns them: as a client would, without a session.
//!
//! Who holds what is in the lock table like everything else, under [`Rid::ENGINE`]. Other holders are invalidated, and the
//! engine's turn comes in the order of requests. What it is asked to give up it gives up when it is done, which is soon:
//! nothing is held while another lock is waited for.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use vellum_base::Rid;
use vellum_rt::local::{OneshotSender, oneshot};
use vellum_rt::now;
use vellum_store::LocalFuture;
use vellum_wire::{LockMode, LockName, LockWant};

use crate::reactor::Reactor;
use crate::table_queue::Step;

#[derive(Default)]
pub(crate) struct EngineLocks {
    next_request: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, OneshotSender<Hold>>>,
    held: RefCell<BTreeMap<LockName, Held>>,
}

#[derive(Default)]
struct Held {
    holds: usize,
    /// Somebody waits for it.
    asked_for: bool,
}

/// WRITE on a lock, until it is dropped.
pub(crate) struct Hold {
    reactor: Weak<Reactor>,
    name: LockName,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(reactor) = self.reactor.upgrade() {
            reactor.engine_lets_go(self.name);
        }
    }
}

impl Reactor {
    /// Ends when the engine holds WRITE on the inode group, which this reactor owns. `None` when the node stops.
    pub(crate) fn hold_group(self: &Rc<Self>, group: u64) -> LocalFuture<'static, Option<Box<dyn Any>>> {
        let (send, receive) = oneshot();
        if !self.stopping.get() {
            let locks = &self.engine_locks;
            let request = locks.next_request.get();
            locks.next_request.set(request + 1);
            locks.waiting.borrow_mut().insert(request, send);
            let want = LockWant { name: LockName::Group(group), mode: LockMode::Write };
            self.table.borrow_mut().at(vellum_proto::Time(now().0));
            self.on_tables(Some(Rid::ENGINE), Step::Lock { request, want });
        }
        Box::pin(async move { receive.await.ok().map(|hold| Box::new(hold) as Box<dyn Any>) })
    }

    pub(crate) fn engine_granted(self: &Rc<Self>, request: u64, name: LockName) {
        self.engine_locks.held.borrow_mut().entry(name).or_default().holds += 1;
        let hold = Hold { reactor: Rc::downgrade(self), name };
        let waiting = self.engine_locks.waiting.borrow_mut().remove(&request);
        if let Some(waiting) = waiting {
            let _ = waiting.send(hold); // dropped, and so given back, when nobody waits any more
        }
    }

    pub(crate) fn engine_invalidated(&self, name: LockName) {
        if let Some(held) = self.engine_locks.held.borrow_mut().get_mut(&name) {
            held.asked_for = true;
        }
    }

    fn engine_lets_go(self: &Rc<Self>, name: LockName) {
        let asked_for = {
            let mut all = self.engine_locks.held.borrow_mut();
            let Some(held) = all.get_mut(&name) else { return };
            held.holds -= 1;
            if held.holds > 0 {
                return;
            }
            all.remove(&name).is_some_and(|held| held.asked_for)
        };
        {
            let mut table = self.table.borrow_mut();
            if asked_for {
                table.invalidated(Rid::ENGINE, name);
            }
            table.unlock(Rid::ENGINE, &[LockWant { name, mode: LockMode::Null }]);
        }
        self.drive_table();
    }
}
