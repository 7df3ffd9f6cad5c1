//! A device whose users can be stopped at once: what a node that lost its leadership does before anything else.
//!
//! A closed valve refuses every new operation on every queue, from any thread. What was submitted before goes on; when
//! [`Valve::in_flight`] is 0 after [`Valve::close`], the last operation has ended and no other will come.
//!
//! A queue that is dropped with operations in flight is kept, for its thread, until they have ended ([`Valve::reap`]).
//!
//! Invariant: an operation is counted before the valve is looked at, and the valve is closed before the count is read,
//! so that no operation slips between the two.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use crate::reservation::Reservations;
use crate::tracker::CLOSED;
use crate::{Device, DeviceError, Geometry, IoDone, IoOp, Queue, Ticket};

#[derive(Default)]
struct State {
    closed: AtomicBool,
    in_flight: AtomicUsize,
    queues: AtomicUsize,
}

pub struct Valve {
    device: Arc<dyn Device>,
    state: Arc<State>,
}

impl Valve {
    pub fn new(device: Arc<dyn Device>) -> Arc<Valve> {
        Arc::new(Valve { device, state: Arc::default() })
    }

    /// No operation is taken any more; for good.
    pub fn close(&self) {
        self.state.closed.store(true, SeqCst);
    }

    pub fn is_closed(&self) -> bool {
        self.state.closed.load(SeqCst)
    }

    /// Takes the completions of queues that were dropped on this thread before their operations had ended. To be called
    /// until nothing is in flight.
    pub fn reap(&self) {
        ORPHANS.with(|orphans| {
            orphans.borrow_mut().retain(|orphan| {
                let Some(state) = orphan.state.upgrade() else { return false };
                if Arc::ptr_eq(&state, &self.state) {
                    let before = orphan.queue.in_flight();
                    orphan.queue.process_completions();
                    let now = orphan.queue.in_flight();
                    state.in_flight.fetch_sub(before - now, SeqCst);
                }
                orphan.queue.in_flight() > 0
            });
        });
    }

    /// Operations of all queues that the device has not answered.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.load(SeqCst)
    }

    /// Queues that are open.
    pub fn queues(&self) -> usize {
        self.state.queues.load(SeqCst)
    }
}

impl Device for Valve {
    fn geometry(&self) -> &Geometry {
        self.device.geometry()
    }

    fn open_queue(&self, depth: u32) -> Result<Rc<dyn Queue>, DeviceError> {
        if self.is_closed() {
            return Err(DeviceError::Closed);
        }
        let queue = self.device.open_queue(depth)?;
        self.state.queues.fetch_add(1, SeqCst);
        Ok(Rc::new(ValveQueue { queue, state: self.state.clone(), counted: Cell::new(0) }))
    }

    fn slot_has_io(&self, slot: u8) -> Result<Option<bool>, DeviceError> {
        self.device.slot_has_io(slot)
    }

    fn reservations(&self) -> Option<&dyn Reservations> {
        self.device.reservations()
    }
}

/// A queue without an owner, with operations in flight.
struct Orphan {
    queue: Rc<dyn Queue>,
    state: Weak<State>,
}

thread_local! {
    static ORPHANS: RefCell<Vec<Orphan>> = const { RefCell::new(Vec::new()) };
}

struct ValveQueue {
    queue: Rc<dyn Queue>,
    state: Arc<State>,
    /// Its share of `in_flight`.
    counted: Cell<usize>,
}

impl ValveQueue {
    fn count(&self) {
        let (before, now) = (self.counted.replace(self.queue.in_flight()), self.counted.get());
        match now >= before {
            true => self.state.in_flight.fetch_add(now - before, SeqCst),
            false => self.state.in_flight.fetch_sub(before - now, SeqCst),
        };
    }
}

impl Queue for ValveQueue {
    fn geometry(&self) -> &Geometry {
        self.queue.geometry()
    }

    fn look_at_size(&self) -> Result<u64, DeviceError> {
        self.queue.look_at_size()
    }

    fn submit(&self, op: IoOp) -> Ticket {
        self.counted.set(self.counted.get() + 1);
        self.state.in_flight.fetch_add(1, SeqCst);
        let ticket = if self.state.closed.load(SeqCst) { CLOSED } else { self.queue.submit(op) };
        self.count();
        ticket
    }

    fn poll_done(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<IoDone> {
        if ticket == CLOSED {
            return Poll::Ready((Err(DeviceError::Closed), None));
        }
        self.queue.poll_done(ticket, cx)
    }

    fn forget(&self, ticket: Ticket) {
        if ticket != CLOSED {
            self.queue.forget(ticket);
        }
    }

    fn process_completions(&self) -> usize {
        let events = self.queue.process_completions();
        self.count();
        events
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.queue.wake_fd()
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }
}

impl Drop for ValveQueue {
    fn drop(&mut self) {
        self.count();
        self.state.queues.fetch_sub(1, SeqCst);
        if self.counted.get() > 0 {
            let orphan = Orphan { queue: self.queue.clone(), state: Arc::downgrade(&self.state) };
            ORPHANS.with(|orphans| {
                let mut orphans = orphans.borrow_mut();
                orphans.retain(|orphan| orphan.state.strong_count() > 0); // of valves that nobody waits for
                orphans.push(orphan);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryDevice;
    use crate::testing::block_on;
    use vellum_base::DmaBuf;

    #[test]
    fn a_closed_valve_lets_end_what_was_begun_and_nothing_else() {
        let memory = MemoryDevice::new(1 << 20);
        let valve = Valve::new(Arc::new(memory.clone()));
        let (a, b) = (valve.open_queue(4).unwrap(), valve.open_queue(4).unwrap());
        let data = || DmaBuf::copy_from(&[7; 4096], true).freeze();
        let begun = a.write(0, data(), false);
        assert_eq!((valve.in_flight(), valve.queues()), (1, 2));
        valve.close();
        assert_eq!(block_on(&b, b.write(4096, data(), false)), Err(DeviceError::Closed));
        assert!(matches!(block_on(&a, a.read(0, DmaBuf::new(4096))), Err(DeviceError::Closed)));
        drop(a.write(4096, data(), true));
        assert_eq!(valve.in_flight(), 1, "only what was begun before");
        assert_eq!(block_on(&a, begun), Ok(()));
        assert_eq!(valve.in_flight(), 0);
        assert!(matches!(valve.open_queue(1), Err(DeviceError::Closed)));
        let mut block = [0; 4096];
        memory.snapshot().read(4096, &mut block);
        assert_eq!(block, [0; 4096]);
        drop((a, b));
        assert_eq!(valve.queues(), 0);
    }

    #[test]
    fn what_a_dropped_queue_had_in_flight_is_waited_for() {
        let memory = MemoryDevice::new(1 << 20);
        let valve = Valve::new(Arc::new(memory.clone()));
        let q = valve.open_queue(4).unwrap();
        drop(q.write(0, DmaBuf::copy_from(&[7; 4096], true).freeze(), false));
        drop(q);
        assert_eq!((valve.in_flight(), valve.queues()), (1, 0));
        valve.close();
        Valve::new(Arc::new(memory.clone())).reap();
        assert_eq!(valve.in_flight(), 1, "another's");
        valve.reap();
        assert_eq!(valve.in_flight(), 0);
        let mut block = [0; 4096];
        memory.snapshot().read(0, &mut block);
        assert_eq!(block, [7; 4096]);
    }

    #[test]
    fn operations_that_fail_at_once_are_not_counted() {
        let valve = Valve::new(Arc::new(MemoryDevice::new(1 << 20)));
        let q = valve.open_queue(1).unwrap();
        let past_end = q.read(1 << 20, DmaBuf::new(4096));
        assert_eq!(valve.in_flight(), 0);
        assert!(matches!(block_on(&q, past_end), Err(DeviceError::OutOfRange { .. })));
    }
}
