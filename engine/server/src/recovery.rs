//! After a restart: who held locks in the term before must come back before anybody is granted one (L7, R1).

use std::collections::BTreeSet;
use std::rc::Rc;

use vellum_base::Rid;
use vellum_rt::{Class, Instant, now, sleep, spawn};

use crate::client::{Client, Phase};
use crate::mesh::{Ask, Message};
use crate::reactor::{COORDINATOR, Reactor};

pub(crate) struct Recovery {
    missing: BTreeSet<Rid>,
    began: Instant,
}

impl Recovery {
    pub(crate) fn new(expected: impl Iterator<Item = Rid>) -> Recovery {
        Recovery { missing: expected.collect(), began: now() }
    }

    pub(crate) fn missing(&self) -> usize {
        self.missing.len()
    }
}

impl Reactor {
    /// On the coordinator: waits for the clients of the term before, and gives up those that don't come.
    pub(crate) fn start_recovery(self: &Rc<Self>) {
        let Some(missing) = self.recovery.borrow().as_ref().map(Recovery::missing) else { return };
        tracing::info!(missing, "waiting for the clients of the term before");
        let reactor = self.clone();
        spawn(Class::Request, "recovery window", async move {
            sleep(reactor.options.timers.recovery_window).await;
            let late: Vec<Rid> =
                reactor.recovery.borrow().as_ref().map(|r| r.missing.iter().copied().collect()).unwrap_or_default();
            for rid in late {
                reactor.ask(reactor.backend.home_of(rid), Ask::Reclaim { rid }).await;
            }
        })
        .detach();
    }

    /// At the client's home: all its locks are in the tables.
    pub(crate) fn has_recovered(self: &Rc<Self>, client: &Client) {
        if client.phase.get() == Phase::Recovering {
            client.phase.set(Phase::Serving);
        }
        self.send(COORDINATOR, Message::Returned { rid: client.rid });
    }

    /// At the coordinator: one less to wait for. Told once per client, or more often.
    pub(crate) fn returned(self: &Rc<Self>, rid: Rid) {
        let complete = match self.recovery.borrow_mut().as_mut() {
            Some(recovery) => {
                recovery.missing.remove(&rid);
                recovery.missing.is_empty().then(|| recovery.began.elapsed())
            }
            None => None,
        };
        if let Some(took) = complete {
            *self.recovery.borrow_mut() = None;
            tracing::info!(?took, "all clients are back or reclaimed: locks are granted");
            for reactor in self.mesh.all() {
                self.send(reactor, Message::Recovered);
            }
        }
    }
}
