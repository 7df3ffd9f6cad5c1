//! Wake-ups without a value.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::waiters::{Waiters, wake_all};

#[derive(Default)]
struct State {
    waiters: Waiters,
    /// A `notify_one` that found nobody: the next waiter passes at once.
    permit: bool,
}

/// `notify_one` lets one waiter pass (the next one, if nobody waits); `notify_all` all that wait now.
#[derive(Default)]
pub struct Notify {
    state: RefCell<State>,
}

impl Notify {
    pub fn new() -> Notify {
        Notify::default()
    }

    pub fn notify_one(&self) {
        let mut state = self.state.borrow_mut();
        match state.waiters.pop() {
            Some(waker) => {
                drop(state);
                waker.wake();
            }
            None => state.permit = true,
        }
    }

    pub fn notify_all(&self) {
        let wakers = self.state.borrow_mut().waiters.take_all();
        wake_all(wakers);
    }

    /// Waits from the call on (not from the first poll): create it before looking at the condition.
    pub fn notified(&self) -> impl Future<Output = ()> + '_ {
        let mut state = self.state.borrow_mut();
        let mut ticket = None;
        if !std::mem::take(&mut state.permit) {
            state.waiters.wait(&mut ticket, std::task::Waker::noop());
        }
        Notified { notify: self, ticket, done: false }
    }
}

struct Notified<'a> {
    notify: &'a Notify,
    /// `None` when it had the permit.
    ticket: Option<u64>,
    done: bool,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.notify.state.borrow_mut();
        if let Some(ticket) = self.ticket
            && state.waiters.is_waiting(ticket)
        {
            let mut ticket = Some(ticket);
            state.waiters.wait(&mut ticket, cx.waker());
            return Poll::Pending;
        }
        drop(state);
        self.done = true;
        Poll::Ready(())
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let still_waiting = self.ticket.is_some_and(|ticket| self.notify.state.borrow_mut().waiters.leave(ticket));
        if !still_waiting {
            self.notify.notify_one(); // it was let through and did not go: the next one may
        }
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Notify({} wait)", self.state.borrow().waiters.len())
    }
}
