//! Trackers: the slots that keep an operation's memory and its waiter from submission to completion.
//!
//! Invariants: a slot is reused only after its outcome was taken or forgotten *and* the device has answered; a ticket
//! carries the slot's generation, so a stale ticket is noticed. Wakers are run and dropped by the queue outside of its
//! borrow, because either may drop a task whose futures come back to `forget`.

use std::cell::{RefCell, RefMut};
use std::task::{Context, Poll, Waker};

use crate::{DeviceError, IoDone};

/// Bound of the operations that one queue holds, at the device and waiting for it.
pub const MAX_TRACKERS: usize = 1 << 16;

/// Names a submitted operation within its queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket {
    pub(crate) slot: u32,
    generation: u32,
}

/// The ticket of an operation that found no room.
const REFUSED: Ticket = Ticket { slot: u32::MAX, generation: 0 };

/// The ticket of an operation that a closed [`crate::Valve`] did not let pass; no queue knows it.
pub(crate) const CLOSED: Ticket = Ticket { slot: u32::MAX - 1, generation: 0 };

const _: () = assert!(MAX_TRACKERS < u32::MAX as usize - 1);

enum State<T> {
    Free,
    Running { op: T, waker: Option<Waker>, forgotten: bool },
    Done(IoDone),
}

struct Slot<T> {
    generation: u32,
    state: State<T>,
}

pub(crate) struct Trackers<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    in_flight: usize,
    to_wake: Vec<Waker>,
}

impl<T> Trackers<T> {
    /// What one operation touches here: its slot, and its place in the free list.
    pub const BYTES_PER_OPERATION: usize = size_of::<Slot<T>>() + 2 * size_of::<u32>();

    pub fn new(depth: u32) -> Self {
        let depth = (depth as usize).clamp(1, MAX_TRACKERS);
        let mut trackers = Trackers {
            slots: Vec::with_capacity(depth),
            free: Vec::with_capacity(depth),
            in_flight: 0,
            to_wake: Vec::with_capacity(depth),
        };
        trackers.grow(depth);
        trackers
    }

    fn grow(&mut self, by: usize) {
        let start = self.slots.len();
        let end = (start + by).min(MAX_TRACKERS);
        self.slots.extend((start..end).map(|_| Slot { generation: 0, state: State::Free }));
        self.free.extend((start as u32..end as u32).rev());
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn take_slot(&mut self, state: State<T>) -> Ticket {
        if self.free.is_empty() {
            self.grow(self.slots.len());
        }
        let Some(slot) = self.free.pop() else { return REFUSED };
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.state = state;
        Ticket { slot, generation: entry.generation }
    }

    /// False: no room; the op is dropped and its ticket answers so.
    pub fn start(&mut self, op: T) -> (Ticket, bool) {
        let ticket = self.take_slot(State::Running { op, waker: None, forgotten: false });
        let accepted = ticket != REFUSED;
        self.in_flight += usize::from(accepted);
        (ticket, accepted)
    }

    /// A ticket that is answered already.
    pub fn start_done(&mut self, done: IoDone) -> Ticket {
        self.take_slot(State::Done(done))
    }

    /// The running operation in `slot`.
    pub fn op(&mut self, slot: u32) -> Option<&mut T> {
        match self.slots.get_mut(slot as usize) {
            Some(Slot { state: State::Running { op, .. }, .. }) => Some(op),
            _ => None,
        }
    }

    /// Slots of the operations that are running.
    pub fn running(&self) -> impl Iterator<Item = u32> + '_ {
        let running =
            |(slot, entry): (usize, &Slot<T>)| matches!(entry.state, State::Running { .. }).then_some(slot as u32);
        self.slots.iter().enumerate().filter_map(running)
    }

    /// The device has answered. Call `take_wakers` after.
    pub fn finish(&mut self, slot: u32, outcome: impl FnOnce(T) -> IoDone) {
        let Some(entry) = self.slots.get_mut(slot as usize) else { return };
        match std::mem::replace(&mut entry.state, State::Free) {
            State::Running { op, waker, forgotten } => {
                self.in_flight -= 1;
                let done = outcome(op);
                if forgotten {
                    self.free.push(slot);
                } else {
                    entry.state = State::Done(done);
                }
                self.to_wake.extend(waker);
            }
            other => entry.state = other,
        }
    }

    /// The waiters of what finished: swap in an empty list, wake outside of any borrow, and give the list back.
    pub fn take_wakers(&mut self, empty: Vec<Waker>) -> Vec<Waker> {
        std::mem::replace(&mut self.to_wake, empty)
    }

    fn entry(&mut self, ticket: Ticket) -> &mut Slot<T> {
        let entry = self.slots.get_mut(ticket.slot as usize).expect("a ticket of this queue");
        assert!(entry.generation == ticket.generation, "a ticket was used after its outcome was taken");
        entry
    }

    /// The second part is a waker to drop outside of the borrow.
    pub fn poll_done(&mut self, ticket: Ticket, cx: &mut Context<'_>) -> (Poll<IoDone>, Option<Waker>) {
        if ticket == REFUSED {
            return (Poll::Ready((Err(DeviceError::QueueFull { max: MAX_TRACKERS }), None)), None);
        }
        let entry = self.entry(ticket);
        match std::mem::replace(&mut entry.state, State::Free) {
            State::Done(done) => {
                entry.generation = entry.generation.wrapping_add(1);
                self.free.push(ticket.slot);
                (Poll::Ready(done), None)
            }
            State::Running { op, waker, forgotten } => {
                let (keep, old) = match waker {
                    Some(waker) if waker.will_wake(cx.waker()) => (waker, None),
                    old => (cx.waker().clone(), old),
                };
                entry.state = State::Running { op, waker: Some(keep), forgotten };
                (Poll::Pending, old)
            }
            State::Free => panic!("a ticket was used after its outcome was taken"),
        }
    }

    /// Returns a waker to drop outside of the borrow.
    #[must_use]
    pub fn forget(&mut self, ticket: Ticket) -> Option<Waker> {
        if ticket == REFUSED {
            return None;
        }
        let entry = self.entry(ticket);
        match &mut entry.state {
            State::Running { waker, forgotten, .. } => {
                *forgotten = true;
                waker.take()
            }
            State::Done(_) => {
                entry.state = State::Free;
                entry.generation = entry.generation.wrapping_add(1);
                self.free.push(ticket.slot);
                None
            }
            State::Free => None,
        }
    }
}

/// What every queue over trackers answers alike: wakers are run and dropped when nothing is borrowed.
pub(crate) trait Tracking<T> {
    fn trackers(&self) -> RefMut<'_, Trackers<T>>;

    /// A list kept for its capacity between polls.
    fn spare_wakers(&self) -> &RefCell<Vec<Waker>>;

    /// For [`crate::Queue::poll_done`].
    fn poll_ticket(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<IoDone> {
        let (poll, old_waker) = self.trackers().poll_done(ticket, cx);
        drop(old_waker);
        poll
    }

    /// For [`crate::Queue::forget`].
    fn forget_ticket(&self, ticket: Ticket) {
        let old_waker = self.trackers().forget(ticket);
        drop(old_waker);
    }

    /// After completions were reaped.
    fn wake_waiters(&self) {
        let mut wakers = self.trackers().take_wakers(self.spare_wakers().take());
        for waker in wakers.drain(..) {
            waker.wake();
        }
        self.spare_wakers().replace(wakers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn a_forgotten_slot_is_reused_only_after_the_device_answered() {
        let mut trackers = Trackers::<&str>::new(1);
        let (a, _) = trackers.start("a");
        assert!(trackers.forget(a).is_none());
        let (b, _) = trackers.start("b");
        assert_ne!(a.slot, b.slot, "the device still owns the first slot");
        trackers.finish(a.slot, |_| (Ok(()), None));
        let (c, _) = trackers.start("c");
        assert_eq!(a.slot, c.slot);
        assert_eq!(trackers.in_flight(), 2);
    }

    #[test]
    fn the_bound_is_an_error_and_not_a_crash() {
        let mut trackers = Trackers::<()>::new(MAX_TRACKERS as u32 * 2);
        for _ in 0..MAX_TRACKERS {
            assert!(trackers.start(()).1);
        }
        let (ticket, accepted) = trackers.start(());
        assert!(!accepted);
        assert!(matches!(
            trackers.poll_done(ticket, &mut cx()).0,
            Poll::Ready((Err(DeviceError::QueueFull { .. }), None))
        ));
    }

    #[test]
    #[should_panic(expected = "after its outcome was taken")]
    fn a_stale_ticket_is_our_bug() {
        let mut trackers = Trackers::<()>::new(1);
        let (ticket, _) = trackers.start(());
        trackers.finish(ticket.slot, |()| (Ok(()), None));
        assert!(trackers.poll_done(ticket, &mut cx()).0.is_ready());
        let _ = trackers.poll_done(ticket, &mut cx());
    }
}
