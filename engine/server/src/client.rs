//! What the home reactor knows of one client in this term.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use vellum_base::{BatchNo, Epoch, Ino, Rid};
use vellum_format::ClientIdentity;
use vellum_keys::Subtree;
use vellum_link::{Responder, Session};
use vellum_proto::GrantOrder;
use vellum_rt::Instant;
use vellum_wire::{LockGrant, LockWant, MAX_ITEMS};

use crate::commits::Commits;
use crate::confine::Confined;
use crate::crew::Seat;
use crate::identity::Access;
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
    pub begun: Instant,
    pub wants: Vec<LockWant>,
    pub grants: Vec<LockGrant>,
    pub opens: Vec<Ino>,
    pub responder: Responder,
}

impl OpenLock {
    /// More than one answer holds is told as "any".
    pub(crate) fn add_opens(&mut self, opens: Vec<Ino>) {
        let any = self.opens.first() == Some(&Ino::NONE);
        if !any && self.opens.len() + opens.len() <= MAX_ITEMS {
            self.opens.extend(opens);
        } else {
            self.opens = vec![Ino::NONE];
        }
    }
}

pub(crate) struct Client {
    pub rid: Rid,
    pub session: Rc<Session>,
    pub identity: ClientIdentity,
    /// Of its current socket: a renewed certificate may allow something else.
    pub access: Cell<Access>,
    /// Of all its sockets: a certificate with another path is refused.
    pub confined: Option<Rc<Confined>>,
    pub phase: Cell<Phase>,
    pub order: RefCell<GrantOrder>,
    pub locks: RefCell<BTreeMap<u64, OpenLock>>,
    /// Requests about file locks that a table has not answered.
    pub file_requests: RefCell<BTreeMap<u64, Responder>>,
    /// Number of the next request that a table answers.
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
    pub(crate) fn new(
        rid: Rid,
        session: Rc<Session>,
        (identity, access): (ClientIdentity, Access),
        confined: Option<Rc<Confined>>,
        (phase, last): (Phase, BatchNo),
    ) -> Rc<Client> {
        let seat = identity.worker.is_some().then(Rc::default);
        Rc::new(Client {
            rid,
            session,
            identity,
            access: Cell::new(access),
            confined,
            phase: Cell::new(phase),
            order: RefCell::default(),
            locks: RefCell::default(),
            file_requests: RefCell::default(),
            next_lock: Cell::new(1),
            commits: Rc::default(),
            undurable: RefCell::default(),
            pages: Pages::default(),
            applied: Cell::new(last),
            seat,
        })
    }

    /// Where its paths begin.
    pub(crate) fn root(&self) -> Ino {
        self.confined.as_ref().map_or(Ino::ROOT, |confined| confined.root)
    }

    /// Whether a socket with this certificate may go on with the session: it is confined as before.
    pub(crate) fn is_confined_to(&self, path: Option<&Subtree>) -> bool {
        self.confined.as_ref().map(|confined| &confined.path) == path
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
