//! A queue of a fault device: when operations complete, and how.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::cache::{Content, Effect, Event};
use super::config::{Delay, Fault};
use super::device::{Shared, State};
use crate::tracker::{Trackers, wake_all};
use crate::{DeviceError, Geometry, IoDone, IoOp, Queue, Ticket};

struct Pending {
    op: IoOp,
    id: u64,
    /// In polls or nanoseconds.
    due: u64,
    fault: Option<Fault>,
}

struct Inner {
    trackers: Trackers<Pending>,
    running: Vec<u32>,
}

pub(super) struct FaultQueue {
    shared: Arc<Shared>,
    inner: RefCell<Inner>,
    wakers: RefCell<Vec<Waker>>,
    me: Weak<FaultQueue>,
    /// The end of a stall that it will come back at.
    armed_for: Cell<u64>,
}

impl FaultQueue {
    pub fn open(shared: Arc<Shared>, depth: u32) -> Rc<FaultQueue> {
        let inner = Inner { trackers: Trackers::new(depth), running: Vec::new() };
        Rc::new_cyclic(|me| FaultQueue {
            shared,
            inner: RefCell::new(inner),
            wakers: RefCell::default(),
            me: me.clone(),
            armed_for: Cell::new(0),
        })
    }

    fn now(&self, state: &State) -> u64 {
        match &self.shared.config.delay {
            Delay::Polls { .. } => state.polls,
            Delay::Time { hook, .. } => hook.now_ns(),
        }
    }

    /// With virtual time: comes back at `due`. Called without a borrow or lock, as the hook may call at once.
    fn come_back_at(&self, due: u64) {
        if let Delay::Time { hook, .. } = &self.shared.config.delay {
            let me = self.me.clone();
            hook.call_at(
                due,
                Box::new(move || {
                    if let Some(queue) = me.upgrade() {
                        queue.process_completions();
                    }
                }),
            );
        }
    }

    fn begin(&self, op: IoOp, state: &mut State) -> Pending {
        let fault = state.choose_fault(&op, &self.shared.config, self.shared.geometry.size_bytes);
        let id = state.next_id;
        state.next_id += 1;
        let (min, max) = self.shared.config.delay.range();
        // A poll-counted delay of 0 is the next poll, which counts itself first.
        let base = match &self.shared.config.delay {
            Delay::Polls { .. } => state.polls + 1,
            Delay::Time { hook, .. } => hook.now_ns(),
        };
        let mut due = base + min + state.prng.below(max.saturating_sub(min).saturating_add(1).max(1));
        if let Some(Fault::Slow(extra)) = fault {
            due = due.saturating_add(extra);
        }
        let due = due.max(state.stalled_until);
        match &op {
            IoOp::Read { .. } => state.stats.reads += 1,
            IoOp::Write { at_bytes, data, fua } => {
                state.stats.writes += 1;
                let content = Content::Data(data.clone());
                state.event(Event::WriteBegin { id, at_bytes: *at_bytes, content, fua: *fua });
            }
            IoOp::Flush => {
                state.stats.flushes += 1;
                state.event(Event::FlushBegin { id });
            }
            IoOp::Discard { at_bytes, len_bytes } => {
                state.stats.discards += 1;
                let content = Content::Garbage { seed: state.prng.next_u64(), len_bytes: *len_bytes };
                state.event(Event::WriteBegin { id, at_bytes: *at_bytes, content, fua: false });
            }
        }
        state.stats.faults += u64::from(fault.is_some());
        Pending { op, id, due, fault }
    }

    /// The operation's end: what it did, and what it says.
    fn end(&self, pending: &mut Pending, state: &mut State) -> Result<(), DeviceError> {
        let Pending { op, id, fault, .. } = pending;
        let id = *id;
        let dead = self.shared.health.check();
        let broken = dead.is_err() || *fault == Some(Fault::Error);
        match op {
            IoOp::Read { at_bytes, buf } => {
                match *fault {
                    Some(Fault::ReadOld) => state.old.read(*at_bytes, buf),
                    Some(Fault::ReadFrom(other)) => {
                        let last = self.shared.geometry.size_bytes - buf.len() as u64;
                        state.cache.visible().read(other.min(last), buf);
                    }
                    _ => state.cache.visible().read(*at_bytes, buf),
                }
                if *fault == Some(Fault::FlipBit) && !buf.is_empty() {
                    let index = state.prng.below(buf.len() as u64) as usize;
                    buf[index] ^= 1 << state.prng.below(8);
                }
            }
            IoOp::Write { data, .. } => {
                let last = self.shared.geometry.size_bytes - data.len() as u64;
                let effect = match *fault {
                    _ if broken => Effect::Torn(state.prng.next_u64()),
                    Some(Fault::Lose) => Effect::Nothing,
                    Some(Fault::Misdirect(other)) => Effect::At(other.min(last)),
                    _ => Effect::Whole,
                };
                state.event(Event::WriteEnd { id, effect });
            }
            IoOp::Discard { .. } => {
                let effect = if broken { Effect::Nothing } else { Effect::Whole };
                state.event(Event::WriteEnd { id, effect });
            }
            IoOp::Flush => {
                let good = !broken && *fault != Some(Fault::Lose);
                state.event(Event::FlushEnd { id, good });
                if broken && dead.is_ok() {
                    return Err(self.shared.health.fail("flush: injected".to_owned()));
                }
            }
        }
        dead?;
        if broken { Err(op.error(libc::EIO)) } else { Ok(()) }
    }
}

impl Queue for FaultQueue {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    fn submit(&self, op: IoOp) -> Ticket {
        let mut inner = self.inner.borrow_mut();
        let checked = self.shared.health.check().and_then(|()| op.check(&self.shared.geometry, false));
        if checked.is_err() || (op.extent().1 == 0 && !matches!(op, IoOp::Flush)) {
            return inner.trackers.start_done(op.into_done(checked));
        }
        if !inner.trackers.has_room() {
            return inner.trackers.refuse();
        }
        let pending = self.begin(op, &mut self.shared.state());
        let due = pending.due;
        let (ticket, _) = inner.trackers.start(pending);
        inner.running.push(ticket.slot);
        drop(inner);
        self.come_back_at(due);
        ticket
    }

    fn poll_done(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<IoDone> {
        let (poll, old_waker) = self.inner.borrow_mut().trackers.poll_done(ticket, cx);
        drop(old_waker); // outside of the borrow
        poll
    }

    fn forget(&self, ticket: Ticket) {
        let old_waker = self.inner.borrow_mut().trackers.forget(ticket);
        drop(old_waker); // outside of the borrow
    }

    fn process_completions(&self) -> usize {
        let mut borrowed = self.inner.borrow_mut();
        let inner = &mut *borrowed;
        let mut state = self.shared.state();
        state.polls += 1;
        let now = self.now(&state);
        let stalled = now < state.stalled_until;
        let mut due = Vec::new();
        inner.running.retain(|&slot| {
            let ready = !stalled && inner.trackers.op(slot).is_none_or(|pending| pending.due <= now);
            if ready {
                due.push(slot);
            }
            !ready
        });
        let mut done = 0;
        while !due.is_empty() {
            let slot = due.swap_remove(state.prng.below(due.len() as u64) as usize);
            inner.trackers.finish(slot, |mut pending| {
                let result = self.end(&mut pending, &mut state);
                pending.op.into_done(result)
            });
            done += 1;
        }
        let waits = !inner.running.is_empty();
        let stalled_until = state.stalled_until;
        drop(state);
        drop(borrowed);
        wake_all(&self.wakers, |empty| self.inner.borrow_mut().trackers.take_wakers(empty));
        match &self.shared.config.delay {
            Delay::Polls { .. } => done.max(usize::from(waits)),
            Delay::Time { .. } => {
                if stalled && waits && self.armed_for.replace(stalled_until) != stalled_until {
                    self.come_back_at(stalled_until);
                }
                done
            }
        }
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn in_flight(&self) -> usize {
        self.inner.borrow().trackers.in_flight()
    }
}

/// Its owner died with operations in flight: the device does each of them, or a part, or nothing.
impl Drop for FaultQueue {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        let mut state = self.shared.state();
        for slot in std::mem::take(&mut inner.running) {
            let Some(Pending { op, id, .. }) = inner.trackers.op(slot) else { continue };
            let id = *id;
            match op {
                IoOp::Write { .. } | IoOp::Discard { .. } => {
                    let effect = match state.prng.below(3) {
                        0 => Effect::Nothing,
                        1 => Effect::Torn(state.prng.next_u64()),
                        _ => Effect::Whole,
                    };
                    state.event(Event::WriteEnd { id, effect });
                }
                IoOp::Flush => state.event(Event::FlushEnd { id, good: false }),
                IoOp::Read { .. } => {}
            }
        }
    }
}
