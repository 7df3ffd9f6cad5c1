//! Trackers: the slots that keep an operation's memory and its waiter from submission to completion.
//!
//! Invariants: a slot is reused only after its outcome was taken or forgotten *and* the device has answered; a ticket
//! carries the slot's generation, so a stale ticket is noticed. Wakers are run and dropped by the queue outside of its
//! borrow, because either may drop a task whose futures come back to `forget`.

use std::cell::{RefCell, RefMut};
use std::task::{Context, Poll, Waker};

use vellum_base::DmaBuf;

use crate::{DeviceError, IoDone, IoOp};

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

/// What a queue keeps of an operation.
pub(crate) trait Operation {
    /// The buffer of a read, for its caller.
    fn take_buf(&mut self) -> Option<DmaBuf>;
}

impl Operation for IoOp {
    #[inline]
    fn take_buf(&mut self) -> Option<DmaBuf> {
        IoOp::take_buf(self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Free,
    Running,
    /// Running, and nobody waits for it.
    Forgotten,
    Done,
}

/// An operation stays where it is until its outcome is taken. A move reads in other widths than the fields were just
/// written in, so it waits for those writes; a few of them were a third of the driver's cost.
struct Slot<T> {
    op: Option<T>,
    waker: Option<Waker>,
    error: Option<Box<DeviceError>>,
    generation: u32,
    stage: Stage,
}

pub(crate) struct Trackers<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    in_flight: usize,
    to_wake: Vec<Waker>,
}

impl<T: Operation> Trackers<T> {
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

    #[cold]
    fn grow(&mut self, by: usize) {
        let start = self.slots.len();
        let end = (start + by).min(MAX_TRACKERS);
        let free = || Slot { op: None, waker: None, error: None, generation: 0, stage: Stage::Free };
        self.slots.extend((start..end).map(|_| free()));
        self.free.extend((start as u32..end as u32).rev());
    }

    #[inline]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    #[inline(always)]
    fn take_slot(&mut self, op: T, stage: Stage) -> Ticket {
        if self.free.is_empty() {
            self.grow(self.slots.len());
        }
        let Some(slot) = self.free.pop() else { return REFUSED };
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.stage = stage;
        entry.op = Some(op);
        Ticket { slot, generation: entry.generation }
    }

    /// False: no room; the op is dropped and its ticket answers so.
    #[inline(always)]
    pub fn start(&mut self, op: T) -> (Ticket, bool) {
        let ticket = self.take_slot(op, Stage::Running);
        let accepted = ticket != REFUSED;
        self.in_flight += usize::from(accepted);
        (ticket, accepted)
    }

    /// A ticket that is answered already.
    pub fn start_done(&mut self, op: T, result: Result<(), DeviceError>) -> Ticket {
        let ticket = self.take_slot(op, Stage::Done);
        if let (Err(err), Some(entry)) = (result, self.slots.get_mut(ticket.slot as usize)) {
            entry.error = Some(Box::new(err));
        }
        ticket
    }

    /// The running operation in `slot`.
    #[inline]
    pub fn op(&mut self, slot: u32) -> Option<&mut T> {
        let entry = self.slots.get_mut(slot as usize)?;
        if matches!(entry.stage, Stage::Running | Stage::Forgotten) { entry.op.as_mut() } else { None }
    }

    /// Slots of the operations that are running.
    pub fn running(&self) -> impl Iterator<Item = u32> + '_ {
        let running = |(slot, entry): (usize, &Slot<T>)| {
            matches!(entry.stage, Stage::Running | Stage::Forgotten).then_some(slot as u32)
        };
        self.slots.iter().enumerate().filter_map(running)
    }

    /// The device has answered. Call `take_wakers` after.
    #[inline]
    pub fn finish(&mut self, slot: u32, outcome: impl FnOnce(&mut T) -> Result<(), DeviceError>) {
        let Some(entry) = self.slots.get_mut(slot as usize) else { return };
        let (Stage::Running | Stage::Forgotten, Some(op)) = (entry.stage, &mut entry.op) else { return };
        self.in_flight -= 1;
        let result = outcome(op);
        if entry.stage == Stage::Forgotten {
            entry.op = None;
            entry.stage = Stage::Free;
            self.free.push(slot);
            return;
        }
        entry.stage = Stage::Done;
        if let Err(err) = result {
            entry.error = Some(Box::new(err));
        }
        self.to_wake.extend(entry.waker.take());
    }

    /// The waiters of what finished: swap in an empty list, wake outside of any borrow, and give the list back.
    pub fn take_wakers(&mut self, empty: Vec<Waker>) -> Vec<Waker> {
        std::mem::replace(&mut self.to_wake, empty)
    }

    #[inline]
    fn entry(&mut self, ticket: Ticket) -> &mut Slot<T> {
        let entry = self.slots.get_mut(ticket.slot as usize).expect("a ticket of this queue");
        assert!(entry.generation == ticket.generation, "a ticket was used after its outcome was taken");
        entry
    }

    #[inline]
    fn is_running(&mut self, ticket: Ticket) -> bool {
        ticket != REFUSED && matches!(self.entry(ticket).stage, Stage::Running | Stage::Forgotten)
    }

    /// The outcome of what does not run any more, once.
    #[inline(always)]
    fn take_done(&mut self, ticket: Ticket) -> IoDone {
        if ticket == REFUSED {
            return (Err(DeviceError::QueueFull { max: MAX_TRACKERS }), None);
        }
        let entry = self.entry(ticket);
        assert!(entry.stage == Stage::Done, "a ticket was used after its outcome was taken");
        let buf = entry.op.as_mut().and_then(T::take_buf);
        let error = entry.error.take();
        self.release(ticket);
        (error.map_or(Ok(()), |err| Err(*err)), buf)
    }

    #[inline]
    fn release(&mut self, ticket: Ticket) {
        let entry = &mut self.slots[ticket.slot as usize];
        entry.op = None;
        entry.stage = Stage::Free;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(ticket.slot);
    }

    /// Returns a waker to drop outside of the borrow.
    #[must_use]
    fn wait(&mut self, ticket: Ticket, waker: &Waker) -> Option<Waker> {
        let kept = &mut self.entry(ticket).waker;
        if kept.as_ref().is_some_and(|kept| kept.will_wake(waker)) { None } else { kept.replace(waker.clone()) }
    }

    /// Returns a waker to drop outside of the borrow.
    #[must_use]
    pub fn forget(&mut self, ticket: Ticket) -> Option<Waker> {
        if ticket == REFUSED {
            return None;
        }
        let entry = self.entry(ticket);
        match entry.stage {
            Stage::Running | Stage::Forgotten => {
                entry.stage = Stage::Forgotten;
                entry.waker.take()
            }
            Stage::Done => {
                entry.error = None;
                self.release(ticket);
                None
            }
            Stage::Free => None,
        }
    }
}

/// What every queue over trackers answers alike: wakers are run and dropped when nothing is borrowed.
pub(crate) trait Tracking<T: Operation> {
    fn trackers(&self) -> RefMut<'_, Trackers<T>>;

    /// A list kept for its capacity between polls.
    fn spare_wakers(&self) -> &RefCell<Vec<Waker>>;

    /// For [`crate::Queue::poll_done`].
    #[inline]
    fn poll_ticket(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<IoDone> {
        let mut trackers = self.trackers();
        if !trackers.is_running(ticket) {
            return Poll::Ready(trackers.take_done(ticket));
        }
        let old_waker = trackers.wait(ticket, cx.waker());
        drop(trackers);
        drop(old_waker);
        Poll::Pending
    }

    /// For [`crate::Queue::forget`].
    fn forget_ticket(&self, ticket: Ticket) {
        let old_waker = self.trackers().forget(ticket);
        drop(old_waker);
    }

    /// After completions were reaped.
    fn wake_waiters(&self) {
        if self.trackers().to_wake.is_empty() {
            return;
        }
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

    impl Operation for &str {
        fn take_buf(&mut self) -> Option<DmaBuf> {
            None
        }
    }

    #[test]
    fn a_forgotten_slot_is_reused_only_after_the_device_answered() {
        let mut trackers = Trackers::<&str>::new(1);
        let (a, _) = trackers.start("a");
        assert!(trackers.forget(a).is_none());
        let (b, _) = trackers.start("b");
        assert_ne!(a.slot, b.slot, "the device still owns the first slot");
        trackers.finish(a.slot, |_| Ok(()));
        let (c, _) = trackers.start("c");
        assert_eq!(a.slot, c.slot);
        assert_eq!(trackers.in_flight(), 2);
    }

    #[test]
    fn the_bound_is_an_error_and_not_a_crash() {
        let mut trackers = Trackers::<&str>::new(MAX_TRACKERS as u32 * 2);
        for _ in 0..MAX_TRACKERS {
            assert!(trackers.start("").1);
        }
        let (ticket, accepted) = trackers.start("");
        assert!(!accepted);
        assert!(matches!(trackers.take_done(ticket), (Err(DeviceError::QueueFull { .. }), None)));
    }

    #[test]
    #[should_panic(expected = "after its outcome was taken")]
    fn a_stale_ticket_is_our_bug() {
        let mut trackers = Trackers::<&str>::new(1);
        let (ticket, _) = trackers.start("");
        trackers.finish(ticket.slot, |_| Ok(()));
        assert!(trackers.take_done(ticket).0.is_ok());
        let _ = trackers.take_done(ticket);
    }
}
