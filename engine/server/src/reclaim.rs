//! The end of a client: farewell, or fenced because it did not come back.
//!
//! Order (F1, F3): its batches in work end, its pending extents go, then, durably, its record, the last persistent trace;
//! and only when it is gone its locks, on every reactor. Were they released before, another client could get them, the
//! node fail, and the next leader find the record and take the first one back, with what it had cached (found by the
//! simulation: F1). Each step may be repeated by the next leader.

use std::rc::Rc;
use std::time::Duration;

use vellum_base::{BatchNo, Mutant, Rid, mutant, probe};
use vellum_format::Origin;
use vellum_link::Responder;
use vellum_rt::{Class, sleep, spawn};
use vellum_wire::Response;

use crate::client::{Client, Phase};
use crate::fact::Fact;
use crate::mesh::{Absent, Message};
use crate::process;
use crate::reactor::{COORDINATOR, Reactor};

/// A client that said farewell is kept at most so long for the answer to arrive; then its missing record is the answer.
const LINGER_STEPS: u32 = 40;
/// How often it is looked whether a client's process has ended, while its connection is lost.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

impl Reactor {
    /// Its reconnect window is over (its lease too), or its process: it uses nothing any more.
    pub(crate) fn reclaim_expired(self: &Rc<Self>, rid: Rid) {
        let Some(client) = self.client(rid) else { return };
        client.session.end();
        if client.phase.replace(Phase::Leaving) == Phase::Leaving {
            // Its farewell is being worked on, or only the answer was not taken.
            return;
        }
        if client.seat().is_some() {
            return self.worker_lost(&client);
        }
        tracing::warn!(%rid, "the client did not come back: it is reclaimed");
        probe::tell(|| Fact::Reclaims { term: self.backend.term(), rid });
        let reactor = self.clone();
        spawn(Class::Request, "reclaim", async move {
            reactor.settle(&client).await;
            if !reactor.release(rid).await {
                return;
            }
            reactor.forget(&client);
            reactor.reclaimed.set(reactor.reclaimed.get() + 1);
            reactor.send(COORDINATOR, Message::Returned { rid });
        })
        .detach();
    }

    /// A client whose process ends is not waited for: it has no other way to the device than its lost connection.
    pub(crate) fn watch_process(self: &Rc<Self>, client: &Rc<Client>) {
        let Origin::Process(process) = client.identity.origin else { return };
        let (reactor, client) = (self.clone(), client.clone());
        spawn(Class::Request, "watch process", async move {
            loop {
                client.session.down().await;
                if client.session.has_ended() {
                    return;
                }
                if !client.session.is_up() && process::is_gone(&process) {
                    return reactor.reclaim_expired(client.rid);
                }
                sleep(LOOK).await;
            }
        })
        .detach();
    }

    /// A client of the term before that did not greet within the recovery window, or never can.
    pub(crate) fn reclaim_absent(self: &Rc<Self>, rid: Rid, why: Absent) {
        if let Some(client) = self.client(rid) {
            if why == Absent::Gone {
                return; // it was here: its process is watched
            }
            // It is here but did not say its locks: it loses its socket now and the rest when its new lease is over.
            if client.phase.get() == Phase::Recovering {
                client.session.evict();
            }
            return;
        }
        if self.known.borrow_mut().remove(&rid).is_none() {
            return; // being reclaimed already
        }
        tracing::warn!(%rid, ?why, "the client of an earlier term did not return: it is reclaimed");
        probe::tell(|| Fact::Reclaims { term: self.backend.term(), rid });
        self.reclaiming.borrow_mut().insert(rid);
        let reactor = self.clone();
        spawn(Class::Request, "reclaim", async move {
            if !reactor.release(rid).await {
                return;
            }
            reactor.reclaiming.borrow_mut().remove(&rid);
            reactor.tell_mounted();
            reactor.reclaimed.set(reactor.reclaimed.get() + 1);
            reactor.send(COORDINATOR, Message::Returned { rid });
        })
        .detach();
    }

    /// A worker of a term before that did not greet in this one and is quiet.
    pub(crate) fn reclaim_old_worker_here(self: &Rc<Self>, rid: Rid) {
        if self.client(rid).is_some() || self.known.borrow_mut().remove(&rid).is_none() {
            return; // it is here, or is being reclaimed already
        }
        tracing::info!(%rid, "a worker of an earlier term is quiet");
        let reactor = self.clone();
        spawn(Class::Request, "reclaim", async move {
            if !reactor.release(rid).await {
                return;
            }
            reactor.reclaimed.set(reactor.reclaimed.get() + 1);
            reactor.send(COORDINATOR, Message::WorkerQuiet { rid });
        })
        .detach();
    }

    pub(crate) fn farewell(self: &Rc<Self>, client: &Rc<Client>, responder: Responder) {
        probe::tell(|| Fact::Farewell { term: self.backend.term(), rid: client.rid });
        let before = client.phase.replace(Phase::Leaving);
        self.worker_leaves(client);
        let (reactor, client) = (self.clone(), client.clone());
        spawn(Class::Request, "farewell", async move {
            let rid = client.rid;
            reactor.settle(&client).await;
            reactor.release(rid).await;
            if before == Phase::Recovering {
                reactor.send(COORDINATOR, Message::Returned { rid });
            }
            if client.seat().is_some() {
                reactor.send(COORDINATOR, Message::WorkerQuiet { rid });
            }
            responder.send(Response::Farewelled, None);
            for _ in 0..LINGER_STEPS {
                // A client that has its answer closes its socket; one that lost it finds its record gone, which says the
                // same.
                if client.session.is_drained() || !client.session.is_up() {
                    break;
                }
                sleep(reactor.options.timers.keepalive / 4).await;
            }
            reactor.forget(&client);
        })
        .detach();
    }

    /// All batches of the client are applied and durable: whoever takes its locks next must not see what a crash undoes.
    /// (Found by the simulation, seed 157706961.)
    async fn settle(&self, client: &Client) {
        if mutant::active(Mutant::ReleaseBeforeSettled) {
            return;
        }
        client.commits.settled(BatchNo(u64::MAX)).await;
        if let Some(epoch) = client.epoch_of(client.applied.get())
            && let Err(error) = self.backend.wait_durable(epoch).await
        {
            // The store has failed: nobody is granted anything that a batch could follow from.
            tracing::error!(rid = %client.rid, %error, "a leaving client's last batches");
        }
    }

    /// Pending extents, the record, locks everywhere. False when the record could not be removed: then its locks stay,
    /// nobody is granted them here, and the next leader finds the record and does it again.
    pub(crate) async fn release(self: &Rc<Self>, rid: Rid) -> bool {
        if mutant::active(Mutant::ReleaseBeforeTombstone) {
            self.release_locks(rid).await;
        }
        if let Err(error) = self.backend.close_rid(rid).await {
            tracing::error!(%rid, %error, "the client's record could not be removed");
            return false;
        }
        self.release_locks(rid).await;
        true
    }

    pub(crate) fn forget(&self, client: &Rc<Client>) {
        client.session.end();
        client.commits.stop();
        client.locks.borrow_mut().clear();
        client.file_requests.borrow_mut().clear();
        self.undurable.borrow_mut().remove(&client.rid);
        self.clients.borrow_mut().remove(&client.rid);
        self.tell_mounted();
    }
}
