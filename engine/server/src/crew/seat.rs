//! One worker at the home of its rid: what it has in hand, and whether it is quiet.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use vellum_base::Rid;
use vellum_format::ClientIdentity;
use vellum_link::{LinkError, Responder};
use vellum_rt::local::{Event, oneshot};
use vellum_rt::{Class, Instant, now, sleep, spawn, timeout};
use vellum_wire::{ErrorCode, Request, Response};

use super::{Hand, MOST_JOBS};
use crate::client::{Client, Phase};
use crate::identity::{is_same_worker, process_is_gone};
use crate::mesh::{Answer, Ask, Message};
use crate::reactor::{COORDINATOR, Reactor};
use crate::reclaim::LOOK;

/// A job has the time of `Limits::job`, and that for its bytes at this rate.
const JOB_BYTES_PER_S: u64 = 2 << 20;
/// Between the end of a worker's process and the belief that the device has answered all it had begun. (The kernel ends a
/// process only when its requests have ended.)
const GRACE: Duration = Duration::from_secs(1);

/// How a job ended at its worker's home.
#[derive(Debug)]
pub(crate) enum JobEnd {
    /// It has no room, or takes no jobs.
    Busy,
    Done {
        outcome: Bytes,
        number: u64,
    },
    /// The worker says so: it writes nothing of it any more.
    Failed {
        reason: String,
    },
    Lost {
        reason: String,
        number: u64,
    },
}

#[derive(Default)]
pub(crate) struct Seat {
    /// Jobs it takes at a time; 0 until it says `Work`, and when it is not trusted any more.
    most: Cell<u32>,
    next: Cell<u64>,
    /// Handed over and not answered; the event says that the device has heard the last of it.
    jobs: RefCell<BTreeMap<u64, Rc<Event>>>,
    /// The worker writes nothing any more, for good.
    quiet: Event,
    /// Since when it is given up.
    lost: Cell<Option<Instant>>,
}

impl Seat {
    pub fn in_hand(&self) -> usize {
        self.jobs.borrow().len()
    }

    /// Given up, and not known to be quiet.
    pub fn is_lost(&self) -> bool {
        self.lost.get().is_some() && !self.is_quiet()
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet.is_set()
    }

    fn begin(&self) -> Option<(u64, Rc<Event>)> {
        let mut jobs = self.jobs.borrow_mut();
        if self.quiet.is_set() || jobs.len() >= self.most.get() as usize {
            return None;
        }
        let number = self.next.get() + 1;
        self.next.set(number);
        let over = Rc::new(Event::new());
        jobs.insert(number, over.clone());
        Some((number, over))
    }

    fn over(&self, number: u64) {
        let over = self.jobs.borrow_mut().remove(&number);
        if let Some(over) = over {
            over.set();
        }
    }

    /// Everything it had is over.
    fn make_quiet(&self) {
        self.most.set(0);
        self.quiet.set();
        let jobs = self.jobs.take();
        jobs.into_values().for_each(|over| over.set());
    }

    /// Waits for the end of one job, or of all.
    async fn wait_quiet(&self, job: Option<u64>) {
        let over = job.and_then(|number| self.jobs.borrow().get(&number).cloned());
        match (job, over) {
            (None, _) => self.quiet.wait().await,
            (Some(_), Some(over)) => over.wait().await,
            (Some(_), None) => {} // answered meanwhile
        }
    }
}

impl Reactor {
    /// A worker says that it works, and that nothing runs that it did before.
    pub(crate) fn work(self: &Rc<Self>, client: &Rc<Client>, jobs: u32, responder: Responder) {
        let Some(seat) = client.seat() else {
            return responder.fail(ErrorCode::NotPermitted, "it did not greet as a worker");
        };
        if seat.is_quiet() {
            return responder.fail(ErrorCode::Stopping, "it is given up: come with another rid");
        }
        let (rid, jobs) = (client.rid, jobs.clamp(1, MOST_JOBS));
        seat.most.set(jobs);
        tracing::info!(%rid, jobs, mark = ?client.identity.worker, "a worker");
        let hand = Hand { rid, home: self.me, jobs };
        for reactor in self.mesh.all() {
            self.send(reactor, Message::WorkerUp { hand, identity: client.identity.clone() });
        }
        self.send(COORDINATOR, Message::WorkerQuiet { rid });
        self.reply(client, responder, Response::Working);
    }

    /// On every reactor: there is one more, and whoever it was before is quiet.
    pub(crate) fn worker_up(self: &Rc<Self>, hand: Hand, identity: ClientIdentity) {
        let before: Vec<Rc<Client>> = {
            let clients = self.clients.borrow();
            let same = |client: &&Rc<Client>| client.rid != hand.rid && is_same_worker(&client.identity, &identity);
            clients.values().filter(same).cloned().collect()
        };
        for client in before {
            self.worker_is_quiet(&client, "it has come back");
        }
        self.old_workers_came_back(&identity, hand.rid);
        self.crew.up(hand);
        self.backend.helpers_have_room();
    }

    /// At the home: hands over a job. Answers when it has ended one way or another.
    pub(crate) async fn job(self: Rc<Self>, rid: Rid, job: Bytes, input_bytes: u64) -> JobEnd {
        let Some(client) = self.client(rid).filter(|client| client.phase.get() == Phase::Serving) else {
            return JobEnd::Busy;
        };
        let Some(seat) = client.seat() else { return JobEnd::Busy };
        let Some((number, _)) = seat.begin() else { return JobEnd::Busy };
        let limit = self.options.limits.job + Duration::from_secs(input_bytes / JOB_BYTES_PER_S);
        let (sender, answer) = oneshot();
        let call = client.session.call(Request::Compact { job });
        spawn(Class::Request, "job", async move {
            let reply = call.await;
            if matches!(reply, Ok(_) | Err(LinkError::Remote(_))) {
                seat.over(number); // late or not: the worker is done with it
            }
            let _ = sender.send(reply); // who waited may have given up
        })
        .detach();
        match timeout(limit, answer).await {
            Ok(Ok(Ok(reply))) => match reply.body {
                Response::Compacted { outcome } => JobEnd::Done { outcome, number },
                other => JobEnd::Failed { reason: format!("worker {rid} answers {other:?}") },
            },
            Ok(Ok(Err(LinkError::Remote(error)))) => JobEnd::Failed { reason: format!("worker {rid}: {error}") },
            Ok(_) => JobEnd::Lost { reason: format!("worker {rid} is lost"), number },
            Err(_) => JobEnd::Lost { reason: format!("worker {rid} has not answered within {limit:?}"), number },
        }
    }

    /// At the home: answers when the worker, or that job of it, is quiet.
    pub(crate) fn when_quiet(self: &Rc<Self>, rid: Rid, job: Option<u64>, answer: impl FnOnce() + 'static) {
        let seat = self.client(rid).and_then(|client| client.seat());
        spawn(Class::Request, "quiet", async move {
            // One that is not known any more was quiet before it was forgotten.
            if let Some(seat) = seat {
                seat.wait_quiet(job).await;
            }
            answer();
        })
        .detach();
    }

    /// At the home: it gets no more jobs, and loses its connection; what it was is fenced like any that is lost.
    pub(crate) fn distrust(self: &Rc<Self>, rid: Rid, why: &str) {
        let Some(client) = self.client(rid) else { return };
        tracing::error!(%rid, why, "a worker that cannot be trusted");
        if let Some(seat) = client.seat() {
            seat.most.set(0);
        }
        self.worker_down(rid);
        client.session.evict();
    }

    fn worker_down(self: &Rc<Self>, rid: Rid) {
        for reactor in self.mesh.all() {
            self.send(reactor, Message::WorkerDown { rid });
        }
    }

    /// At the home: its reconnect window is over. Its jobs are lost; its record stays until it is quiet.
    pub(crate) fn worker_lost(self: &Rc<Self>, client: &Rc<Client>) {
        let (rid, Some(seat)) = (client.rid, client.seat()) else { return };
        tracing::warn!(%rid, jobs = seat.in_hand(), "a worker is lost");
        seat.most.set(0);
        seat.lost.set(Some(now()));
        self.worker_down(rid);
        let (reactor, client) = (self.clone(), client.clone());
        spawn(Class::Request, "lost worker", async move {
            loop {
                if client.seat().is_none_or(|seat| seat.is_quiet()) || reactor.stopping.get() {
                    return;
                }
                if reactor.is_gone(&client.identity, client.seat().and_then(|seat| seat.lost.get())) {
                    sleep(GRACE).await;
                    return reactor.worker_is_quiet(&client, "it is gone");
                }
                sleep(LOOK).await;
            }
        })
        .detach();
    }

    /// At the home: it writes nothing any more. Its record goes last.
    pub(crate) fn worker_is_quiet(self: &Rc<Self>, client: &Rc<Client>, why: &'static str) {
        let (rid, Some(seat)) = (client.rid, client.seat()) else { return };
        if seat.is_quiet() {
            return;
        }
        tracing::info!(%rid, why, jobs = seat.in_hand(), "a worker is quiet");
        client.phase.set(Phase::Leaving);
        client.session.end();
        self.worker_down(rid);
        seat.make_quiet();
        let (reactor, client) = (self.clone(), client.clone());
        spawn(Class::Request, "reclaim", async move {
            if !reactor.release(rid).await {
                return;
            }
            reactor.forget(&client);
            reactor.reclaimed.set(reactor.reclaimed.get() + 1);
            reactor.send(COORDINATOR, Message::WorkerQuiet { rid });
        })
        .detach();
    }

    /// A farewell of a worker says that nothing of it is on its way to the device.
    pub(crate) fn worker_leaves(self: &Rc<Self>, client: &Client) {
        if let Some(seat) = client.seat() {
            seat.make_quiet();
            self.worker_down(client.rid);
        }
    }

    /// Its process, or its slot's, does not exist any more.
    pub(crate) fn is_gone(&self, identity: &ClientIdentity, lost: Option<Instant>) -> bool {
        let probe = self.options.worker_probe.as_ref();
        let slot = identity.worker.and_then(|worker| worker.slot);
        let fenced = slot.zip(probe).is_some_and(|(slot, probe)| probe.is_gone(slot, lost));
        fenced || process_is_gone(identity)
    }
}

/// Of the asks that are answered later.
pub(crate) fn answer_later(reactor: &Rc<Reactor>, token: u64, from: vellum_base::ReactorId, ask: Ask) {
    let to = reactor.clone();
    match ask {
        Ask::Job { rid, job, input_bytes } => {
            let home = reactor.clone();
            spawn(Class::Request, "job", async move {
                let end = home.job(rid, job, input_bytes).await;
                to.send(from, Message::Answer { token, answer: Answer::Job(end) });
            })
            .detach();
        }
        Ask::Quiet { rid, job } => reactor.when_quiet(rid, job, move || {
            to.send(from, Message::Answer { token, answer: Answer::Done });
        }),
        _ => {}
    }
}
