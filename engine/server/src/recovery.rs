//! After a restart: who held locks in the term before must come back before anybody is granted one (L7, R1).

use std::collections::BTreeMap;
use std::rc::Rc;

use vellum_base::{Rid, probe};
use vellum_format::Origin;
use vellum_rt::{Class, Instant, now, sleep, spawn};

use crate::client::{Client, Phase};
use crate::fact::Fact;
use crate::mesh::{Absent, Ask, Message};
use crate::process;
use crate::reactor::{COORDINATOR, Reactor};
use crate::reclaim::LOOK;

pub(crate) struct Recovery {
    missing: BTreeMap<Rid, Origin>,
    began: Instant,
}

impl Recovery {
    pub(crate) fn new(expected: impl Iterator<Item = (Rid, Origin)>) -> Recovery {
        Recovery { missing: expected.collect(), began: now() }
    }

    pub(crate) fn missing(&self) -> usize {
        self.missing.len()
    }

    /// Forgets where those live who can't come back, so that each is named once. They stay missing until reclaimed.
    fn take_gone(&mut self) -> Vec<Rid> {
        let mut gone = Vec::new();
        for (rid, origin) in &mut self.missing {
            let is_gone = match *origin {
                Origin::Elsewhere => false,
                Origin::Engine => true, // it died with the engine of the term before
                Origin::Process(process) => process::is_gone(&process),
            };
            if is_gone {
                *origin = Origin::Elsewhere;
                gone.push(*rid);
            }
        }
        gone
    }

    fn watches_processes(&self) -> bool {
        self.missing.values().any(|origin| *origin != Origin::Elsewhere)
    }
}

impl Reactor {
    /// On the coordinator: waits for the clients of the term before, and gives up those that don't come.
    pub(crate) fn start_recovery(self: &Rc<Self>) {
        let Some(missing) = self.recovery.borrow().as_ref().map(Recovery::missing) else { return };
        tracing::info!(missing, "waiting for the clients of the term before");
        let reactor = self.clone();
        spawn(Class::Request, "recovery window", async move {
            let end = now() + reactor.options.timers.recovery_window;
            while now() < end {
                let gone = reactor.recovery.borrow_mut().as_mut().map(Recovery::take_gone).unwrap_or_default();
                reactor.give_up(gone, Absent::Gone).await;
                let watches = match reactor.recovery.borrow().as_ref() {
                    Some(recovery) => recovery.watches_processes(),
                    None => return,
                };
                let left = end - now();
                sleep(if watches { left.min(LOOK) } else { left }).await;
            }
            let late: Vec<Rid> =
                reactor.recovery.borrow().as_ref().map(|r| r.missing.keys().copied().collect()).unwrap_or_default();
            reactor.give_up(late, Absent::Late).await;
        })
        .detach();
    }

    async fn give_up(self: &Rc<Self>, rids: Vec<Rid>, why: Absent) {
        for rid in rids {
            self.ask(self.backend.home_of(rid), Ask::Reclaim { rid, why }).await;
        }
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
        probe::tell(|| Fact::Returned { term: self.backend.term(), rid });
        let complete = match self.recovery.borrow_mut().as_mut() {
            Some(recovery) => {
                recovery.missing.remove(&rid);
                recovery.missing.is_empty().then(|| recovery.began.elapsed())
            }
            None => None,
        };
        if let Some(took) = complete {
            *self.recovery.borrow_mut() = None;
            probe::tell(|| Fact::RecoveryComplete { term: self.backend.term() });
            tracing::info!(?took, "all clients are back or reclaimed: locks are granted");
            for reactor in self.mesh.all() {
                self.send(reactor, Message::Recovered);
            }
        }
    }
}
