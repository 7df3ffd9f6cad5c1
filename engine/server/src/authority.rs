//! The store's question at each key of a batch: may this client write it (L10)?

use std::any::Any;
use std::cell::RefCell;
use std::rc::{Rc, Weak};

use vellum_base::{Bucket, Ino, Key, ReactorId, Rid, Zone};
use vellum_proto::LockTable;
use vellum_store::{HandOver, LocalFuture};
use vellum_wire::{LockMode, LockName};

use crate::reactor::Reactor;

/// Answers from the lock table of the reactor that owns the key. The store starts before the table can be made (it says
/// the term), so the table is connected afterwards; until then nobody may write.
#[derive(Clone, Default)]
pub struct TableAuthority {
    table: Rc<RefCell<Weak<RefCell<LockTable>>>>,
    reactor: Rc<RefCell<Weak<Reactor>>>,
}

impl TableAuthority {
    pub(crate) fn connect(&self, table: &Rc<RefCell<LockTable>>) {
        *self.table.borrow_mut() = Rc::downgrade(table);
    }

    pub(crate) fn connect_reactor(&self, reactor: Weak<Reactor>) {
        *self.reactor.borrow_mut() = reactor;
    }

    /// See [`vellum_store::Authority::hold`].
    pub fn hold(&self, group: u64) -> LocalFuture<'static, Option<Box<dyn Any>>> {
        match self.reactor.borrow().upgrade() {
            Some(reactor) => reactor.hold_group(group),
            None => Box::pin(async { None }),
        }
    }

    /// See [`vellum_store::Authority::hand_over`].
    pub fn hand_over(
        &self,
        buckets: (Bucket, Bucket),
        to: ReactorId,
    ) -> LocalFuture<'static, Option<Box<dyn HandOver>>> {
        match self.reactor.borrow().upgrade() {
            Some(reactor) => Box::pin(reactor.begin_hand_over(buckets, to)),
            None => Box::pin(async { None }),
        }
    }

    /// The client holds WRITE on the key's group in this term; a grant under invalidation counts until it is answered.
    pub fn may_write(&self, rid: Rid, key: &Key) -> bool {
        let ino = Ino(key.first());
        let client_zone = matches!(key.zone(), Some(Zone::Fs | Zone::Orphan));
        if !client_zone || key.bucket().0 != ino.bucket() {
            return false;
        }
        let table = self.table.borrow().upgrade();
        table.is_some_and(|table| table.borrow().mode(rid, LockName::of(ino)) == LockMode::Write)
    }
}
