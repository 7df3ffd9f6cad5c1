//! Workers of the terms before: until the last of them is quiet, what no segment holds may still be written to.

use std::collections::BTreeMap;
use std::rc::Rc;

use vellum_base::Rid;
use vellum_format::ClientIdentity;
use vellum_rt::{Class, sleep, spawn};

use crate::identity::{is_same_worker, is_this_process};
use crate::mesh::Ask;
use crate::reactor::Reactor;
use crate::reclaim::LOOK;

/// On the coordinator.
#[derive(Default)]
pub(crate) struct OldWorkers {
    missing: BTreeMap<Rid, ClientIdentity>,
}

impl OldWorkers {
    pub fn new(known: impl Iterator<Item = (Rid, ClientIdentity)>) -> OldWorkers {
        OldWorkers { missing: known.filter(|(_, identity)| identity.worker.is_some()).collect() }
    }

    pub fn missing(&self) -> usize {
        self.missing.len()
    }
}

impl Reactor {
    /// On the coordinator, once: releases what is withheld as soon as that is right.
    pub(crate) fn watch_old_workers(self: &Rc<Self>) {
        let missing = self.old_workers.borrow().missing();
        if missing == 0 {
            self.release_withheld();
            return;
        }
        tracing::info!(
            missing,
            "workers of the terms before may still be writing: unused segment space waits for them"
        );
        let reactor = self.clone();
        spawn(Class::Request, "old workers", async move {
            while reactor.old_workers.borrow().missing() > 0 && !reactor.stopping.get() {
                let missing: Vec<_> =
                    reactor.old_workers.borrow().missing.iter().map(|(r, i)| (*r, i.clone())).collect();
                for (rid, identity) in missing {
                    // This process was a worker, and stopped working (with its last write) before it began to lead.
                    if is_this_process(&identity) || reactor.is_gone(&identity, None) {
                        reactor.reclaim_old_worker(rid).await;
                    }
                }
                sleep(LOOK).await;
            }
        })
        .detach();
    }

    async fn reclaim_old_worker(self: &Rc<Self>, rid: Rid) {
        // Its home removes the record; one that has greeted in this term meanwhile is its home's business.
        self.ask(self.backend.home_of(rid), Ask::ReclaimWorker { rid }).await;
    }

    /// On the coordinator (a no-op elsewhere): this one is quiet as far as the terms before are concerned.
    pub(crate) fn worker_quiet(self: &Rc<Self>, rid: Rid) {
        let last = {
            let mut old = self.old_workers.borrow_mut();
            old.missing.remove(&rid).is_some() && old.missing.is_empty()
        };
        if last {
            self.release_withheld();
        }
    }

    /// A worker with this identity works under another rid: its older ones are quiet.
    pub(crate) fn old_workers_came_back(self: &Rc<Self>, identity: &ClientIdentity, rid: Rid) {
        let same: Vec<Rid> = {
            let old = self.old_workers.borrow();
            old.missing.iter().filter(|(r, i)| **r != rid && is_same_worker(i, identity)).map(|(r, _)| *r).collect()
        };
        if same.is_empty() {
            return;
        }
        let reactor = self.clone();
        spawn(Class::Request, "old workers", async move {
            for rid in same {
                reactor.reclaim_old_worker(rid).await;
            }
        })
        .detach();
    }

    fn release_withheld(self: &Rc<Self>) {
        let backend = self.backend.clone();
        spawn(Class::Request, "withheld space", async move {
            if let Err(error) = backend.release_withheld().await {
                tracing::warn!(%error, "withheld space");
            }
        })
        .detach();
    }
}
