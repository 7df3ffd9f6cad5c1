//! Taking locks.
//!
//! Locks are used in ascending order: a task waits for one only while it uses none above it, so that no circle of
//! waiting clients can close. For the same reason each lock is asked for by itself, when its turn has come.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use vellum_base::probe;
use vellum_wire::{LockMode, LockName, LockWant, Request, Response};

use super::guard::Used;
use super::table::{PendingRequest, Ticket};
use super::{Lock, LockGuard};
use crate::fact::Fact;
use crate::port::Reply;
use crate::stats::count;
use crate::{Client, ClientError, env};

/// Leaves the line (or the lock, when just admitted) if the task is cancelled.
struct InLine {
    lock: Rc<Lock>,
    ticket: Rc<Ticket>,
    done: bool,
}

impl Drop for InLine {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if self.ticket.admitted.get() {
            self.lock.drop_user(self.ticket.mode);
        } else {
            self.lock.waiting.borrow_mut().retain(|t| !Rc::ptr_eq(t, &self.ticket));
        }
    }
}

impl Client {
    /// Locks all of `wants` (each name once or more; the strongest mode counts). From memory when the leases are held.
    ///
    /// Errors: the connection is closed, this client is fenced or has failed.
    pub async fn lock(self: &Rc<Self>, wants: &[(LockName, LockMode)]) -> Result<LockGuard, ClientError> {
        let mut sorted: Vec<LockWant> = wants.iter().map(|&(name, mode)| LockWant { name, mode }).collect();
        sorted.sort_by_key(|w| (w.name, std::cmp::Reverse(w.mode)));
        sorted.dedup_by_key(|w| w.name);
        sorted.retain(|w| w.mode != LockMode::Null);
        self.lease().await?;
        let mut guard =
            LockGuard { used: Vec::with_capacity(sorted.len()), table: self.locks.clone(), era: self.data.era() };
        for at in 0..sorted.len() {
            let want = sorted[at];
            let lock = self.locks.get_or_new(want.name);
            let from_memory = lock.usable(want.mode);
            if from_memory {
                lock.add_user(want.mode);
                count(&self.counters.lock_hits, 1);
            } else {
                self.wait_for(&lock, &sorted[at..]).await?;
            }
            guard.used.push(Used { lock, mode: want.mode, counted: true });
            if !from_memory {
                // A grant renews no lease, and the process may have been stopped between the two.
                self.lease().await?;
            }
            probe::tell(|| Fact::Used { rid: self.rid(), name: want.name, mode: want.mode });
        }
        Ok(guard)
    }

    /// Returns when this task is counted as a user of `lock`; `wants[0]` is its want, the others come later.
    async fn wait_for(self: &Rc<Self>, lock: &Rc<Lock>, wants: &[LockWant]) -> Result<(), ClientError> {
        let mode = wants[0].mode;
        let ticket = Rc::new(Ticket { mode, admitted: Cell::new(false), error: RefCell::new(None) });
        lock.waiting.borrow_mut().push_back(ticket.clone());
        let mut line = InLine { lock: lock.clone(), ticket, done: false };
        loop {
            self.check_alive()?;
            if lock.usable(mode) && !line.ticket.admitted.get() {
                lock.admit_waiting(); // a release ended without weakening it enough to matter
            }
            if line.ticket.admitted.get() {
                line.done = true;
                return Ok(());
            }
            if lock.requested.get() == LockMode::Null && lock.releases.get() == 0 {
                // One lock a request: an answer comes when all of it is granted, so a lock in a request with a lower one
                // would wait for that, and tasks that need only the higher one with it, while they use others.
                self.request_missing(&wants[..1]);
            }
            lock.changed
                .until(|| {
                    let free = lock.requested.get() == LockMode::Null && lock.releases.get() == 0;
                    let ready = line.ticket.admitted.get() || line.ticket.error.borrow().is_some();
                    (ready || free || self.is_dead()).then_some(())
                })
                .await;
            if let Some(error) = line.ticket.error.borrow_mut().take() {
                return Err(error);
            }
            // A grant came and went, or a release is over: look again.
        }
    }

    /// Sends one request for the first of `wants`, and for those behind it that are missing and that nobody has asked for.
    ///
    /// The first is asked for although a request in flight may ask for it behind others: that one waits for lower locks
    /// too, and to wait for those while using one in between could close a circle.
    fn request_missing(self: &Rc<Self>, wants: &[LockWant]) {
        let mut missing = Vec::new();
        for (at, want) in wants.iter().enumerate() {
            let lock = self.locks.get_or_new(want.name);
            let asked = if at == 0 { lock.requested.get() != LockMode::Null } else { lock.asked.get() > 0 };
            if !asked && lock.releases.get() == 0 && !lock.held.get().covers(want.mode) {
                // Those in line may want more than we do: one request serves all.
                let strongest = lock.waiting.borrow().iter().map(|t| t.mode).max();
                missing.push(LockWant { name: want.name, mode: want.mode.max(strongest.unwrap_or_default()) });
            } else if at == 0 {
                return;
            }
        }
        for (at, want) in missing.iter().enumerate() {
            let lock = self.locks.get_or_new(want.name);
            lock.asked.set(lock.asked.get() + 1);
            if at == 0 {
                lock.requested.set(want.mode);
            }
        }
        if missing.is_empty() {
            return;
        }
        count(&self.counters.lock_requests, 1);
        let reply = self.port.call(Request::Lock { wants: missing.clone() }, None);
        let pending =
            Rc::new(PendingRequest { wants: missing, reply: RefCell::new(Some(reply)), driver: RefCell::new(None) });
        self.locks.pending.borrow_mut().push(pending.clone());
        let client = self.clone();
        // A task of its own: the request outlives a cancelled caller.
        env::spawn("lock request", async move {
            poll_fn(|cx| {
                *pending.driver.borrow_mut() = Some(cx.waker().clone());
                client.poll_request(&pending, cx)
            })
            .await;
        });
    }

    fn poll_request(self: &Rc<Self>, pending: &Rc<PendingRequest>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(mut reply) = pending.reply.borrow_mut().take() else { return Poll::Ready(()) };
        match reply.as_mut().poll(cx) {
            Poll::Pending => {
                *pending.reply.borrow_mut() = Some(reply);
                Poll::Pending
            }
            Poll::Ready(result) => {
                self.locks.pending.borrow_mut().retain(|p| !Rc::ptr_eq(p, pending));
                self.lock_answered(&pending.wants, result);
                Poll::Ready(())
            }
        }
    }

    /// Takes note of every lock answer that has arrived. Called before anything that was sent after them is handled.
    pub(crate) fn take_lock_answers(self: &Rc<Self>) {
        let pending: Vec<_> = self.locks.pending.borrow().clone();
        for request in pending {
            let driver = request.driver.borrow().clone();
            let waker = driver.as_ref().unwrap_or(Waker::noop());
            if self.poll_request(&request, &mut Context::from_waker(waker)).is_ready() {
                waker.wake_by_ref(); // the driver finds its work done
            }
        }
    }

    fn lock_answered(self: &Rc<Self>, wants: &[LockWant], result: Result<Reply, ClientError>) {
        let answer = result.and_then(|reply| {
            // A grant of a leader that is gone is worth nothing, unless it was noted before the recovery told of it.
            let current = reply.term == self.port.durable().0 || self.recovery_reports.get();
            match reply.body {
                Response::Granted { grants, opens } => Ok(current.then_some((grants, opens))),
                Response::Error(e) => Err(ClientError::Engine(e)),
                _ => Err(ClientError::Protocol { request: "Lock" }),
            }
        });
        for (at, want) in wants.iter().enumerate() {
            let lock = self.locks.get_or_new(want.name);
            lock.asked.set(lock.asked.get() - 1);
            if at == 0 {
                lock.requested.set(LockMode::Null);
            }
            match &answer {
                Ok(Some((grants, opens))) => {
                    let grant = grants.iter().find(|g| g.name == want.name);
                    // Of two answers that are noted together the later grant counts.
                    if let Some(grant) = grant.filter(|g| g.write_seq > lock.write_seq.get()) {
                        let had = lock.held.replace(grant.mode);
                        probe::tell(|| {
                            let dirty = had == LockMode::Null && self.is_dirty(want.name);
                            Fact::Granted { rid: self.rid(), grant: *grant, dirty }
                        });
                        lock.write_seq.set(grant.write_seq);
                        lock.used_at.set(self.locks.tick());
                        if let LockName::Group(group) = want.name {
                            self.know_unused_inodes(group, grant.mode);
                            if grant.mode == LockMode::Write {
                                self.opens.granted(group, opens);
                            }
                        }
                    }
                    lock.admit_waiting();
                }
                Ok(None) => lock.changed.wake_all(),
                Err(error) => lock.fail_waiting(error),
            }
            self.locks.forget_if_null(&lock);
        }
        self.shrink_locks();
    }
}
