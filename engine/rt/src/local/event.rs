//! A latch: once set, everyone passes.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::task::Poll;

use super::waiters::{Waiters, wake_all};

#[derive(Default)]
pub struct Event {
    set: Cell<bool>,
    waiters: RefCell<Waiters>,
}

impl Event {
    pub fn new() -> Event {
        Event::default()
    }

    pub fn set(&self) {
        self.set.set(true);
        let wakers = self.waiters.borrow_mut().take_all();
        wake_all(wakers);
    }

    /// Closes the latch again.
    pub fn reset(&self) {
        self.set.set(false);
    }

    pub fn is_set(&self) -> bool {
        self.set.get()
    }

    /// Waits until it is set (and returns at once if it is).
    pub async fn wait(&self) {
        let mut place = Place { event: self, ticket: None };
        std::future::poll_fn(|cx| {
            if self.set.get() {
                return Poll::Ready(());
            }
            self.waiters.borrow_mut().wait(&mut place.ticket, cx.waker());
            Poll::Pending
        })
        .await
    }
}

struct Place<'a> {
    event: &'a Event,
    ticket: Option<u64>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.event.waiters.borrow_mut().leave(ticket);
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event(set: {}, {} wait)", self.set.get(), self.waiters.borrow().len())
    }
}
