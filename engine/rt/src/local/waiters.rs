//! A queue of wakers whose members can leave from the middle.

use std::collections::BTreeMap;
use std::task::Waker;

/// Waiters in order of arrival. Tickets are never reused.
#[derive(Default)]
pub(super) struct Waiters {
    queue: BTreeMap<u64, Waker>,
    next: u64,
}

impl Waiters {
    /// Joins at the end, or renews the waker of a ticket that still waits.
    pub fn wait(&mut self, ticket: &mut Option<u64>, waker: &Waker) {
        if let Some(ticket) = ticket
            && let Some(known) = self.queue.get_mut(ticket)
        {
            known.clone_from(waker);
            return;
        }
        let new = self.next;
        self.next += 1;
        self.queue.insert(new, waker.clone());
        *ticket = Some(new);
    }

    /// Leaves the queue; false when it was taken out by a wake before.
    pub fn leave(&mut self, ticket: u64) -> bool {
        self.queue.remove(&ticket).is_some()
    }

    pub fn is_waiting(&self, ticket: u64) -> bool {
        self.queue.contains_key(&ticket)
    }

    pub fn is_first(&self, ticket: u64) -> bool {
        self.queue.first_key_value().is_some_and(|(first, _)| *first == ticket)
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// The first waiter's waker, which leaves the queue. Call it after all borrows have ended.
    #[must_use]
    pub fn pop(&mut self) -> Option<Waker> {
        self.queue.pop_first().map(|(_, waker)| waker)
    }

    /// The first waiter's waker, which stays.
    #[must_use]
    pub fn first(&self) -> Option<Waker> {
        self.queue.first_key_value().map(|(_, waker)| waker.clone())
    }

    #[must_use]
    pub fn take_all(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.queue).into_values().collect()
    }
}

pub(super) fn wake_all(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}
