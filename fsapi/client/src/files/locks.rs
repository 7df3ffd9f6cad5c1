//! Advisory file locks (flock, fcntl, open file descriptions): each request goes to the engine, which alone decides.
//!
//! What is kept here is a copy of what the engine has of ours, for the next engine. It changes when answers arrive, in
//! their order; answers that have arrived are noted before anything that the engine sent after them is handled.
//!
//! Invariant: what is reported to a new engine is never more than what the old one had [L2]: an unanswered request that
//! may have weakened a lock counts as done, one that may have been granted does not.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use vellum_base::Ino;
use vellum_proto::files::{Held, Owner, Ranges};
use vellum_wire::{FileLock, FileLockMode, FileLockOutcome, FileLockSpace, HeldFileLock, Request, Response};

use crate::port::{CallFuture, Reply};
use crate::wait::WakeList;
use crate::{Client, ClientError, env};

/// A request whose answer was not noted yet.
struct Asked {
    ino: Ino,
    lock: FileLock,
    ticket: Option<Rc<Ticket>>,
    reply: RefCell<Option<CallFuture>>,
    outcome: RefCell<Option<Result<FileLockOutcome, ClientError>>>,
    driver: RefCell<Option<Waker>>,
    noted: WakeList,
}

/// A request that may wait at the engine.
struct Ticket {
    number: u64,
    ino: Ino,
    lock: FileLock,
    /// How it ended.
    outcome: Cell<Option<FileLockOutcome>>,
    /// The engine has said that it waits; a new one must be asked again.
    queued: Cell<bool>,
    cancelled: Cell<bool>,
    changed: WakeList,
}

#[derive(Default)]
pub(crate) struct FileLocks {
    held: RefCell<BTreeMap<(Ino, FileLockSpace), Ranges>>,
    asked: RefCell<Vec<Rc<Asked>>>,
    tickets: RefCell<BTreeMap<u64, Rc<Ticket>>>,
    next_ticket: Cell<u64>,
}

impl FileLocks {
    fn change(&self, ino: Ino, space: FileLockSpace, change: impl FnOnce(&mut Ranges)) {
        let mut held = self.held.borrow_mut();
        let ranges = held.entry((ino, space)).or_default();
        change(ranges);
        if ranges.is_empty() {
            held.remove(&(ino, space));
        }
    }

    fn set(&self, ino: Ino, lock: &FileLock, client: &Client) {
        self.change(ino, lock.space, |ranges| ranges.set(&as_held(client, lock)));
    }

    fn resolve(&self, ticket: &Ticket, outcome: FileLockOutcome) {
        self.tickets.borrow_mut().remove(&ticket.number);
        ticket.outcome.set(Some(outcome));
        ticket.changed.wake_all();
    }

    /// Nothing is held, asked for or waited for by this owner.
    fn is_free(&self, ino: Ino, owner: Owner, space: FileLockSpace) -> bool {
        let held = self.held.borrow();
        let mine = |lock: &FileLock| lock.owner == owner.id && lock.space == space;
        held.get(&(ino, space)).is_none_or(|ranges| !ranges.has_owner(owner))
            && !self.asked.borrow().iter().any(|asked| asked.ino == ino && mine(&asked.lock))
            && !self.tickets.borrow().values().any(|ticket| ticket.ino == ino && mine(&ticket.lock))
    }
}

fn as_held(client: &Client, lock: &FileLock) -> Held {
    let owner = Owner { rid: client.rid(), id: lock.owner };
    Held { owner, pid: lock.pid, start: lock.start, end: lock.end, mode: lock.mode }
}

/// What may be lost of the lock's range by an unanswered request for `lock`.
fn weakest(lock: &FileLock) -> FileLockMode {
    // A conversion of a whole-file lock may have given it up.
    if lock.space == FileLockSpace::Flock && lock.mode == FileLockMode::Exclusive {
        FileLockMode::Unlocked
    } else {
        lock.mode
    }
}

/// Takes a waiting request back when its caller is gone.
struct Abandon {
    client: Rc<Client>,
    ticket: Rc<Ticket>,
}

impl Drop for Abandon {
    fn drop(&mut self) {
        let ticket = &self.ticket;
        if ticket.outcome.get().is_some() || ticket.cancelled.replace(true) || self.client.is_dead() {
            return;
        }
        // Queued at once, behind the request: what its owner gives up later comes after both.
        let (client, ticket) = (self.client.clone(), self.ticket.clone());
        let call = client.cancel_call(&ticket);
        env::spawn("abandoned file lock", async move {
            if let Ok(FileLockOutcome::Cancelled) = call.await {
                client.file_locks.resolve(&ticket, FileLockOutcome::Cancelled);
            }
        });
    }
}

impl Client {
    /// Sets or removes a lock as fcntl(2) and flock(2) do; with `wait`, when its turn has come. `interrupted` ends the
    /// waiting: [`FileLockOutcome::Cancelled`], unless the lock was granted in that moment. Dropping the future takes a
    /// request that waits back.
    pub async fn file_lock(
        self: &Rc<Self>,
        ino: Ino,
        lock: FileLock,
        wait: bool,
        interrupted: impl Future<Output = ()>,
    ) -> Result<FileLockOutcome, ClientError> {
        self.check_alive()?;
        if !wait {
            return self.ask_file_lock(ino, lock, None).await;
        }
        let number = self.file_locks.next_ticket.get() + 1;
        self.file_locks.next_ticket.set(number);
        let ticket = Rc::new(Ticket {
            number,
            ino,
            lock,
            outcome: Cell::new(None),
            queued: Cell::new(false),
            cancelled: Cell::new(false),
            changed: WakeList::default(),
        });
        self.file_locks.tickets.borrow_mut().insert(number, ticket.clone());
        let _abandon = Abandon { client: self.clone(), ticket: ticket.clone() };
        match self.ask_file_lock(ino, lock, Some(ticket.clone())).await {
            Ok(FileLockOutcome::Queued) => {}
            Ok(outcome) => {
                self.file_locks.resolve(&ticket, outcome);
                return Ok(outcome);
            }
            Err(error) => {
                self.file_locks.resolve(&ticket, FileLockOutcome::Cancelled);
                return Err(error);
            }
        }
        let mut interrupted = pin!(interrupted);
        let mut done = pin!(self.ticket_done(&ticket));
        let outcome = poll_fn(|cx| match done.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending => interrupted.as_mut().poll(cx).map(|()| None),
        })
        .await;
        if let Some(outcome) = outcome {
            return outcome;
        }
        ticket.cancelled.set(true);
        if self.cancel_call(&ticket).await? == FileLockOutcome::Cancelled {
            self.file_locks.resolve(&ticket, FileLockOutcome::Cancelled);
        }
        // Else it had ended before, and that is said in a message of its own.
        self.ticket_done(&ticket).await
    }

    /// The first lock in the way of this one, and whether it is this client's own.
    pub async fn file_lock_test(&self, ino: Ino, lock: FileLock) -> Result<Option<(FileLock, bool)>, ClientError> {
        self.check_alive()?;
        match self.port.call(Request::FileLockTest { ino, lock }, None).await?.body {
            Response::FileLockFound { found, own } => Ok(found.map(|lock| (lock, own))),
            Response::Error(e) => Err(ClientError::Engine(e)),
            _ => Err(ClientError::Protocol { request: "FileLockTest" }),
        }
    }

    /// All that an owner has of a file is given up. No message when it has nothing.
    pub async fn file_unlock_all(
        self: &Rc<Self>,
        ino: Ino,
        space: FileLockSpace,
        owner: u64,
    ) -> Result<(), ClientError> {
        if self.file_locks.is_free(ino, Owner { rid: self.rid(), id: owner }, space) {
            return Ok(());
        }
        let end = vellum_wire::FILE_LOCK_MAX;
        let lock = FileLock { space, mode: FileLockMode::Unlocked, owner, pid: 0, start: 0, end };
        self.ask_file_lock(ino, lock, None).await.map(|_| ())
    }

    async fn ticket_done(&self, ticket: &Ticket) -> Result<FileLockOutcome, ClientError> {
        ticket.changed.until(|| ticket.outcome.get().map(Ok).or_else(|| self.check_alive().err().map(Err))).await
    }

    fn cancel_call(&self, ticket: &Ticket) -> impl Future<Output = Result<FileLockOutcome, ClientError>> + use<> {
        let call = self.port.call(Request::FileLockCancel { ino: ticket.ino, ticket: ticket.number }, None);
        async move { outcome_of(call.await?) }
    }

    /// One request to the engine. A task of its own notes the answer, whatever becomes of the caller.
    async fn ask_file_lock(
        self: &Rc<Self>,
        ino: Ino,
        lock: FileLock,
        ticket: Option<Rc<Ticket>>,
    ) -> Result<FileLockOutcome, ClientError> {
        let number = ticket.as_ref().map(|ticket| ticket.number);
        let call = self.port.call(Request::FileLock { ino, lock, ticket: number }, None);
        let asked = Rc::new(Asked {
            ino,
            lock,
            ticket,
            reply: RefCell::new(Some(call)),
            outcome: RefCell::new(None),
            driver: RefCell::new(None),
            noted: WakeList::default(),
        });
        self.file_locks.asked.borrow_mut().push(asked.clone());
        let (client, driven) = (self.clone(), asked.clone());
        env::spawn("file lock", async move {
            poll_fn(|cx| {
                *driven.driver.borrow_mut() = Some(cx.waker().clone());
                client.poll_file_lock(&driven, cx)
            })
            .await;
        });
        asked.noted.until(|| asked.outcome.borrow_mut().take()).await
    }

    fn poll_file_lock(&self, asked: &Rc<Asked>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(mut reply) = asked.reply.borrow_mut().take() else { return Poll::Ready(()) };
        match reply.as_mut().poll(cx) {
            Poll::Pending => {
                *asked.reply.borrow_mut() = Some(reply);
                Poll::Pending
            }
            Poll::Ready(result) => {
                self.file_locks.asked.borrow_mut().retain(|other| !Rc::ptr_eq(other, asked));
                let outcome = result.and_then(outcome_of);
                if let Ok(outcome) = &outcome {
                    self.note_file_lock(asked, *outcome);
                }
                *asked.outcome.borrow_mut() = Some(outcome);
                asked.noted.wake_all();
                Poll::Ready(())
            }
        }
    }

    fn note_file_lock(&self, asked: &Asked, outcome: FileLockOutcome) {
        let locks = &self.file_locks;
        let waits_still = asked.ticket.as_ref().is_some_and(|ticket| ticket.outcome.get().is_none());
        match outcome {
            FileLockOutcome::Done => locks.set(asked.ino, &asked.lock, self),
            FileLockOutcome::Conflict | FileLockOutcome::TooMany | FileLockOutcome::Queued
                if asked.lock.space == FileLockSpace::Flock && (asked.ticket.is_none() || waits_still) =>
            {
                locks.set(asked.ino, &FileLock { mode: FileLockMode::Unlocked, ..asked.lock }, self);
            }
            _ => {}
        }
        if outcome == FileLockOutcome::Queued
            && let Some(ticket) = &asked.ticket
        {
            ticket.queued.set(true);
        }
    }

    /// Notes every answer that has arrived. Called before anything that was sent after them is handled.
    pub(crate) fn take_file_lock_answers(&self) {
        let asked: Vec<_> = self.file_locks.asked.borrow().clone();
        for asked in asked {
            let driver = asked.driver.borrow().clone();
            let waker = driver.as_ref().unwrap_or(Waker::noop());
            if self.poll_file_lock(&asked, &mut Context::from_waker(waker)).is_ready() {
                waker.wake_by_ref(); // the driver finds its work done
            }
        }
    }

    /// The engine says how a waiting request has ended.
    pub(crate) fn file_lock_ended(&self, number: u64, outcome: FileLockOutcome) {
        self.take_file_lock_answers();
        let ticket = self.file_locks.tickets.borrow().get(&number).cloned();
        let Some(ticket) = ticket else { return };
        if outcome == FileLockOutcome::Done {
            self.file_locks.set(ticket.ino, &ticket.lock, self);
        }
        self.file_locks.resolve(&ticket, outcome);
    }

    /// What a new engine is told: never more than the old one had.
    pub(crate) fn file_locks_to_report(&self) -> Vec<HeldFileLock> {
        self.take_file_lock_answers();
        let locks = &self.file_locks;
        // Whoever gave up waiting is not asked for again; the engine that knew of it is gone.
        let cancelled: Vec<_> = locks.tickets.borrow().values().filter(|t| t.cancelled.get()).cloned().collect();
        cancelled.iter().for_each(|ticket| locks.resolve(ticket, FileLockOutcome::Cancelled));
        let mut held = locks.held.borrow().clone();
        for asked in locks.asked.borrow().iter() {
            if let Some(ranges) = held.get_mut(&(asked.ino, asked.lock.space)) {
                let owner = Owner { rid: self.rid(), id: asked.lock.owner };
                ranges.weaken(owner, asked.lock.start, asked.lock.end, weakest(&asked.lock));
            }
        }
        let all = held.iter().flat_map(|(&(ino, space), ranges)| {
            ranges.iter().map(move |h| {
                let lock = FileLock { space, mode: h.mode, owner: h.owner.id, pid: h.pid, start: h.start, end: h.end };
                HeldFileLock { ino, lock }
            })
        });
        all.collect()
    }

    /// After a recovery: requests that waited at the engine before wait at this one.
    pub(crate) fn ask_again_for_file_locks(self: &Rc<Self>) {
        let asked: Vec<u64> =
            self.file_locks.asked.borrow().iter().filter_map(|a| a.ticket.as_ref().map(|t| t.number)).collect();
        let tickets: Vec<_> = self.file_locks.tickets.borrow().values().cloned().collect();
        for ticket in tickets.into_iter().filter(|t| t.queued.get() && !asked.contains(&t.number)) {
            let client = self.clone();
            env::spawn("file lock again", async move {
                match client.ask_file_lock(ticket.ino, ticket.lock, Some(ticket.clone())).await {
                    Ok(FileLockOutcome::Queued) | Err(_) => {}
                    Ok(outcome) => client.file_locks.resolve(&ticket, outcome),
                }
            });
        }
    }

    /// This client has ended: nobody waits any more.
    pub(crate) fn fail_file_locks(&self) {
        let tickets: Vec<_> = self.file_locks.tickets.borrow().values().cloned().collect();
        tickets.iter().for_each(|ticket| ticket.changed.wake_all());
    }
}

fn outcome_of(reply: Reply) -> Result<FileLockOutcome, ClientError> {
    match reply.body {
        Response::FileLocked { outcome } => Ok(outcome),
        Response::Error(e) => Err(ClientError::Engine(e)),
        _ => Err(ClientError::Protocol { request: "FileLock" }),
    }
}
