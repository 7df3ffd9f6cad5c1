//! Counted permits, served first come, first served: a large request is not overtaken by small ones.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::task::Poll;

use super::waiters::Waiters;

pub struct Semaphore {
    available: Cell<usize>,
    waiters: RefCell<Waiters>,
}

impl Semaphore {
    pub fn new(permits: usize) -> Semaphore {
        Semaphore { available: Cell::new(permits), waiters: RefCell::default() }
    }

    pub fn available(&self) -> usize {
        self.available.get()
    }

    pub fn waiting(&self) -> usize {
        self.waiters.borrow().len()
    }

    /// Adds permits (also beyond the initial number).
    pub fn add_permits(&self, n: usize) {
        self.available.set(self.available.get() + n);
        self.wake_first();
    }

    fn wake_first(&self) {
        let first = if self.available.get() > 0 { self.waiters.borrow().first() } else { None };
        if let Some(waker) = first {
            waker.wake();
        }
    }

    /// Takes `n` permits if nobody waits and they are there.
    pub fn try_acquire(&self, n: usize) -> Option<Permit<'_>> {
        let granted = self.waiters.borrow().is_empty() && self.take(n);
        granted.then(|| Permit { semaphore: self, permits: n }) // lazily: a dropped permit gives back
    }

    /// Waits for `n` permits. More than there will ever be waits for ever.
    pub async fn acquire(&self, n: usize) -> Permit<'_> {
        self.wait_for(n).await;
        Permit { semaphore: self, permits: n }
    }

    /// As [`Semaphore::acquire`], for a permit that outlives the borrow.
    pub async fn acquire_owned(self: &Rc<Self>, n: usize) -> OwnedPermit {
        self.wait_for(n).await;
        OwnedPermit { semaphore: self.clone(), permits: n }
    }

    fn take(&self, n: usize) -> bool {
        let enough = self.available.get() >= n;
        if enough {
            self.available.set(self.available.get() - n);
        }
        enough
    }

    async fn wait_for(&self, n: usize) {
        let mut place = Place { semaphore: self, ticket: None };
        std::future::poll_fn(|cx| {
            let mut waiters = self.waiters.borrow_mut();
            let our_turn = match place.ticket {
                Some(ticket) => waiters.is_first(ticket),
                None => waiters.is_empty(),
            };
            if our_turn && self.take(n) {
                return Poll::Ready(());
            }
            waiters.wait(&mut place.ticket, cx.waker());
            Poll::Pending
        })
        .await
    }
}

struct Place<'a> {
    semaphore: &'a Semaphore,
    ticket: Option<u64>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.semaphore.waiters.borrow_mut().leave(ticket);
            self.semaphore.wake_first(); // whoever is first now may find enough
        }
    }
}

/// Permits that return when this is dropped.
#[must_use]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    permits: usize,
}

impl Permit<'_> {
    /// Keeps the permits for good (until [`Semaphore::add_permits`] gives them back).
    pub fn forget(mut self) {
        self.permits = 0;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.permits > 0 {
            self.semaphore.add_permits(self.permits);
        }
    }
}

/// [`Permit`] without a borrow.
#[must_use]
pub struct OwnedPermit {
    semaphore: Rc<Semaphore>,
    permits: usize,
}

impl OwnedPermit {
    pub fn forget(mut self) {
        self.permits = 0;
    }
}

impl Drop for OwnedPermit {
    fn drop(&mut self) {
        if self.permits > 0 {
            self.semaphore.add_permits(self.permits);
        }
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Semaphore({} free, {} wait)", self.available(), self.waiting())
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({})", self.permits)
    }
}

impl fmt::Debug for OwnedPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnedPermit({})", self.permits)
    }
}
