//! Timers of one reactor, and the futures on them.
//!
//! An ordered map: a timeout that is dropped before it fires (almost all are) leaves nothing behind.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::reactor;
use crate::time::Instant;

#[derive(Default)]
pub(crate) struct Timers {
    pending: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next: Cell<u64>,
}

impl Timers {
    fn add(&self, deadline: Instant, waker: Waker) -> (Instant, u64) {
        let key = (deadline, self.next.get());
        self.next.set(key.1 + 1);
        self.pending.borrow_mut().insert(key, waker);
        key
    }

    /// Wakes what is due at `now`; returns how many.
    pub fn fire(&self, now: Instant) -> usize {
        let mut count = 0;
        loop {
            let waker = {
                let mut pending = self.pending.borrow_mut();
                match pending.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return count,
                }
            };
            waker.wake();
            count += 1;
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.pending.borrow().first_key_value().map(|(key, _)| key.0)
    }

    pub fn clear(&self) {
        let dropped = std::mem::take(&mut *self.pending.borrow_mut());
        drop(dropped);
    }
}

/// Completes at its deadline. Re-armable by making another.
pub struct Sleep {
    deadline: Instant,
    armed: Option<(Rc<Timers>, (Instant, u64))>,
}

impl Sleep {
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if reactor::now() >= self.deadline {
            self.disarm();
            return Poll::Ready(());
        }
        if let Some((timers, key)) = &self.armed
            && let Some(waker) = timers.pending.borrow_mut().get_mut(key)
        {
            waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        let timers = reactor::with(|reactor| reactor.timers.clone());
        let key = timers.add(self.deadline, cx.waker().clone());
        self.armed = Some((timers, key));
        Poll::Pending
    }
}

impl Sleep {
    fn disarm(&mut self) {
        if let Some((timers, key)) = self.armed.take() {
            let waker = timers.pending.borrow_mut().remove(&key);
            drop(waker);
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.disarm();
    }
}

/// Waits for `duration` from now (also across a suspend of the machine).
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(reactor::now() + duration)
}

pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, armed: None }
}

/// Wakes `waker` when `delay` has passed: for what completes later without a task of its own, such as a simulated
/// device. It cannot be taken back, and the waker must bear spare wakes.
pub fn wake_after(delay: Duration, waker: Waker) {
    reactor::with(|reactor| reactor.timers.add(reactor.backend.now() + delay, waker));
}

/// The time ran out first; the future was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the time ran out")]
pub struct Elapsed;

/// `future`'s output, unless `limit` passes first.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut limit = sleep(limit);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut limit).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}
