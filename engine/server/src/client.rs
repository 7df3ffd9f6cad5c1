//! What the home reactor knows of one client in this term.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use vellum_base::{BatchNo, Epoch, Rid};
use vellum_link::{Responder, Session};
use vellum_proto::GrantOrder;
use vellum_wire::{LockGrant, LockWant};

use crate::commits::Commits;
use crate::crew::Seat;
use crate::identity::Identity;
use crate::pages::Pages;

/// How far a client has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Known from the term before; it has to say its locks first.
    Recovering,
    Serving,
    /// It said farewell, or is being reclaimed.
    Leaving,
}

/// A `Lock` request that gets its locks one by one.
pub(crate) struct OpenLock {
    pub wants: Vec<LockWant>,
    pub grants: Vec<LockGrant>,
    pub responder: Responder,
}

pub(crate) struct Client {
    pub rid: Rid,
    pub session: Rc<Session>,
    pub identity: Identity,
    pub phase: Cell<Phase>,
    pub order: RefCell<GrantOrder>,
    pub locks: RefCell<BTreeMap<u64, OpenLock>>,
    pub next_lock: Cell<u64>,
    pub commits: Rc<Commits>,
    /// Applied batches that are not durable yet, ascending.
    pub undurable: RefCell<VecDeque<(BatchNo, Epoch)>>,
    pub pages: Pages,
    /// Newest batch that was applied.
    pub applied: Cell<BatchNo>,
    /// Of a worker.
    seat: Option<Rc<Seat>>,
}

impl Client {
    pub(crate) fn new(rid: Rid, session: Rc<Session>, identity: Identity, phase: Phase, last: BatchNo) -> Rc<Client> {
        Rc::new(Client {
            rid,
            session,
            identity,
            phase: Cell::new(phase),
            order: RefCell::default(),
            locks: RefCell::default(),
            next_lock: Cell::new(1),
            commits: Rc::default(),
            undurable: RefCell::default(),
            pages: Pages::default(),
            applied: Cell::new(last),
            seat: identity.is_worker.then(Rc::default),
        })
    }

    pub(crate) fn seat(&self) -> Option<Rc<Seat>> {
        self.seat.clone()
    }

    /// A batch was applied in `epoch`.
    pub(crate) fn note_applied(&self, number: BatchNo, epoch: Epoch, durable: Epoch) {
        if number > self.applied.get() {
            self.applied.set(number);
            if epoch > durable {
                self.undurable.borrow_mut().push_back((number, epoch));
            }
        }
    }

    /// Forgets what is durable now; true when that was anything, so that the client is told.
    pub(crate) fn note_durable(&self, durable: Epoch) -> bool {
        let mut undurable = self.undurable.borrow_mut();
        let before = undurable.len();
        while undurable.front().is_some_and(|(_, epoch)| *epoch <= durable) {
            undurable.pop_front();
        }
        undurable.len() < before
    }

    /// The epoch that must be durable so that every batch up to `through` is; none when they are.
    pub(crate) fn epoch_of(&self, through: BatchNo) -> Option<Epoch> {
        self.undurable.borrow().iter().rev().find(|(number, _)| *number <= through).map(|(_, epoch)| *epoch)
    }
}
