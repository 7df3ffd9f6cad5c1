//! Open inodes.
//!
//! Opening and closing under a lease is memory only. Before a lease is given away the engine is told which inodes of its
//! group are open here, and those are reported closed when they are: then, and only then, a close is a message. Who is
//! granted WRITE on a group is told which of its inodes others have open, so that it knows at the death of a name
//! whether the inode may die with it; nobody can open more of them while it holds the lease.
//!
//! Invariant: an inode that is open here and whose lease is not held is known to the engine, or is in a message that goes
//! before the answer that gives the lease away.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;

use vellum_base::Ino;
use vellum_wire::{LockMode, LockName, Request, Response};

use crate::lock::LockGuard;
use crate::{Client, ClientError};

#[derive(Default)]
pub(crate) struct OpenInodes {
    /// Open here; true when the engine was told.
    open: RefCell<BTreeMap<Ino, bool>>,
    /// By group: what others had open when WRITE was granted.
    elsewhere: RefCell<BTreeMap<u64, BTreeSet<Ino>>>,
}

impl OpenInodes {
    /// What others have open in groups that were just granted for WRITE.
    pub fn granted(&self, group: u64, opens: &[Ino]) {
        let here: BTreeSet<Ino> =
            opens.iter().copied().filter(|ino| *ino == Ino::NONE || ino.group() == group).collect();
        let mut elsewhere = self.elsewhere.borrow_mut();
        if here.is_empty() {
            elsewhere.remove(&group);
        } else {
            elsewhere.insert(group, here);
        }
    }

    /// WRITE on the group goes: others may open from now on.
    pub fn lost(&self, group: u64) {
        self.elsewhere.borrow_mut().remove(&group);
    }

    /// What is open in a group whose lease goes; it counts as told from now on.
    fn report(&self, group: u64) -> Vec<Ino> {
        let mut open = self.open.borrow_mut();
        let range = open.range_mut(Ino::first_of_group(group)..=Ino::last_of_group(group));
        range
            .map(|(ino, told)| {
                *told = true;
                *ino
            })
            .collect()
    }

    /// What the engine was told of, for a new one.
    pub fn reported(&self) -> Vec<Ino> {
        self.open.borrow().iter().filter(|(_, told)| **told).map(|(ino, _)| *ino).collect()
    }
}

impl Client {
    /// The inode is open here from now on: its content stays when others take its last name away. The guard shows that its
    /// lease is held in this moment.
    pub fn inode_opened(&self, guard: &LockGuard, ino: Ino) {
        assert!(guard.covers(ino, LockMode::Read), "{ino} is opened without its lease");
        self.opens.open.borrow_mut().entry(ino).or_insert(false);
    }

    /// It is closed. When the engine had been told of it, it is told of this too: the future ends when it has heard, and then
    /// the inode may be an orphan that nobody else will delete.
    pub fn inode_closed(&self, ino: Ino) -> Option<impl Future<Output = Result<(), ClientError>> + use<>> {
        let told = self.opens.open.borrow_mut().remove(&ino)?;
        if !told || self.is_dead() {
            return None;
        }
        let call = self.port.call(Request::Closed { inos: vec![ino] }, None); // queued now, in order
        Some(async move {
            match call.await?.body {
                Response::Noted => Ok(()),
                Response::Error(e) => Err(ClientError::Engine(e)),
                _ => Err(ClientError::Protocol { request: "Closed" }),
            }
        })
    }

    /// Somebody else had it open when WRITE on its group was granted. False is certain while the guard lives.
    pub fn may_be_open_elsewhere(&self, guard: &LockGuard, ino: Ino) -> bool {
        assert!(guard.covers(ino, LockMode::Write), "{ino} may be opened by others at any moment");
        let elsewhere = self.opens.elsewhere.borrow();
        elsewhere.get(&ino.group()).is_some_and(|inos| inos.contains(&ino) || inos.contains(&Ino::NONE))
    }

    /// As of now, by a question when memory does not say no.
    pub async fn is_open_elsewhere(self: &Rc<Self>, guard: &LockGuard, ino: Ino) -> Result<bool, ClientError> {
        if !self.may_be_open_elsewhere(guard, ino) {
            return Ok(false);
        }
        let open = match self.port.call(Request::Openers { inos: vec![ino] }, None).await?.body {
            Response::Openers { open } => open.first().copied().unwrap_or(true),
            Response::Error(e) => return Err(ClientError::Engine(e)),
            _ => return Err(ClientError::Protocol { request: "Openers" }),
        };
        if !open && let Some(inos) = self.opens.elsewhere.borrow_mut().get_mut(&ino.group()) {
            inos.remove(&ino);
        }
        Ok(open)
    }

    /// Tells the engine what is open under a lease that is about to go.
    pub(crate) async fn report_opens(&self, name: LockName, to: LockMode) {
        let LockName::Group(group) = name else { return };
        self.opens.lost(group);
        if to != LockMode::Null || self.is_dead() {
            return;
        }
        let inos = self.opens.report(group);
        if inos.is_empty() {
            return;
        }
        // An error says that the connection is closed: then this client is given up with all it has open.
        if let Err(error) = self.port.call(Request::Opened { inos }, None).await {
            tracing::debug!(%error, group, "open inodes were not reported");
        }
    }
}
