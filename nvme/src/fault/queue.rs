//! Operations on their way through a misbehaving device.
//!
//! An operation's faults and delay are drawn at its submission; its effect is at its completion. What a dropped queue had
//! in flight may yet land: see [`super::FaultDevice::process_died`].

use std::cell::{RefCell, RefMut};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use vellum_base::prng::Prng;
use vellum_base::{DmaBuf, probe};

use super::cache::{Event, Payload, SECTOR_BYTES};
use super::rules::{Fault, faults};
use super::sharing::{Fact, ProcessId};
use super::{Shared, State};
use crate::tracker::{Operation, Trackers, Tracking};
use crate::{DeviceError, Geometry, IoDone, IoOp, Queue, Ticket};

/// What a process hears that was fenced: the reservation is another's (EBADE).
const REFUSED: i32 = libc::EBADE;

struct Running {
    id: u64,
    op: IoOp,
    faults: Vec<Fault>,
}

type Due = Arc<Mutex<Vec<u32>>>;

/// Says once that the operation in `slot` has taken its time.
struct Timer {
    slot: u32,
    due: Due,
    fired: AtomicBool,
}

impl Wake for Timer {
    fn wake(self: Arc<Self>) {
        if !self.fired.swap(true, Relaxed) {
            self.due.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
        }
    }
}

pub(super) struct FaultQueue {
    shared: Arc<Shared>,
    process: ProcessId,
    trackers: RefCell<Trackers<Running>>,
    /// Slots that may complete now.
    due: Due,
    /// Kept for its capacity between polls.
    wakers: RefCell<Vec<Waker>>,
}

impl FaultQueue {
    pub fn open(shared: Arc<Shared>, process: ProcessId, depth: u32) -> Rc<FaultQueue> {
        Rc::new(FaultQueue {
            shared,
            process,
            trackers: RefCell::new(Trackers::new(depth)),
            due: Due::default(),
            wakers: RefCell::default(),
        })
    }

    /// Tells the model; gives the faults and the time that the operation takes.
    fn begin(&self, id: u64, op: &IoOp, state: &mut State) -> (Vec<Fault>, Duration) {
        state.land_some();
        let faults = faults(&mut state.rules, op, self.process);
        let mut delay = state.delays.draw(op, &mut state.prng);
        let mut lost = false;
        let mut moved_by = 0;
        for fault in &faults {
            match *fault {
                Fault::Stall { time } => delay += time,
                Fault::Lose => lost = true,
                Fault::Misdirect { by_bytes } => moved_by = by_bytes,
                _ => {}
            }
        }
        match op {
            IoOp::Write { at_bytes, data, fua } if !lost => {
                let end = at_bytes.saturating_add(moved_by).saturating_add(data.len() as u64);
                let at_bytes = if end > self.shared.geometry.size_bytes { 0 } else { at_bytes + moved_by };
                state.sharing.submitted(id, self.process);
                probe::tell(|| Fact::Writes { process: self.process, id, at_bytes, data: data.clone() });
                state.happen(Event::Write { id, at_bytes, payload: Payload::Data(data.clone()), fua: *fua });
            }
            IoOp::Discard { at_bytes, len_bytes } => {
                let payload = Payload::Zeros { len_bytes: *len_bytes };
                state.sharing.submitted(id, self.process);
                state.happen(Event::Write { id, at_bytes: *at_bytes, payload, fua: false });
            }
            IoOp::Flush => state.happen(Event::Flush { id }),
            IoOp::Write { .. } | IoOp::Read { .. } => {}
        }
        (faults, delay)
    }

    fn complete(&self, running: &mut Running) -> Result<(), DeviceError> {
        let (id, is_write) = (running.id, matches!(running.op, IoOp::Write { .. }));
        let result = self.end(running);
        if is_write {
            probe::tell(|| Fact::Written { process: self.process, id, landed: result.is_ok() });
        }
        result
    }

    fn end(&self, running: &mut Running) -> Result<(), DeviceError> {
        let Running { id, op, faults } = running;
        let id = *id;
        self.shared.health.check()?;
        let state = &mut *self.shared.state();
        state.sharing.ended(id);
        if state.sharing.is_fenced(self.process) {
            return Err(op.error(REFUSED));
        }
        let errno = faults.iter().find_map(|fault| match fault {
            Fault::Error { errno } => Some(*errno),
            _ => None,
        });
        if let Some(errno) = errno {
            let error = op.error(errno);
            if let IoOp::Write { data, .. } = op {
                let sectors = state.prng.below((data.len() / SECTOR_BYTES) as u64 + 1) as usize;
                state.happen(Event::WriteFailed { id, sectors });
            }
            return Err(match op {
                IoOp::Flush => self.shared.health.fail(error.to_string()),
                _ => error,
            });
        }
        match op {
            IoOp::Read { at_bytes, buf } => {
                let old = faults.contains(&Fault::OldData);
                let image = if old { state.cache.medium() } else { state.cache.visible() };
                image.read(*at_bytes, buf);
                if faults.contains(&Fault::FlipBit) && !buf.is_empty() {
                    flip_some_bit(buf, &mut state.prng);
                }
            }
            IoOp::Write { .. } | IoOp::Discard { .. } => state.happen(Event::Written { id }),
            IoOp::Flush => state.happen(Event::Flushed { id }),
        }
        Ok(())
    }

    /// Slots to complete now, out of order.
    fn take_due(&self) -> Vec<u32> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if due.is_empty() {
            return Vec::new();
        }
        let prng = &mut self.shared.state().prng;
        let mut now = std::mem::take(&mut *due);
        for i in (1..now.len()).rev() {
            now.swap(i, prng.below(i as u64 + 1) as usize);
        }
        if self.shared.hook.is_none() {
            // Some wait for the next poll.
            let keep = now.len() - prng.below(now.len() as u64) as usize;
            *due = now.split_off(keep);
        }
        now
    }
}

fn flip_some_bit(buf: &mut [u8], prng: &mut Prng) {
    let at = prng.below(buf.len() as u64) as usize;
    buf[at] ^= 1 << prng.below(8);
}

impl Operation for Running {
    fn take_buf(&mut self) -> Option<DmaBuf> {
        self.op.take_buf()
    }
}

impl Tracking<Running> for FaultQueue {
    fn trackers(&self) -> RefMut<'_, Trackers<Running>> {
        self.trackers.borrow_mut()
    }

    fn spare_wakers(&self) -> &RefCell<Vec<Waker>> {
        &self.wakers
    }
}

impl Queue for FaultQueue {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    fn submit(&self, op: IoOp) -> Ticket {
        let fenced = self.shared.state().sharing.is_fenced(self.process).then(|| op.error(REFUSED));
        let checked = op
            .check(&self.shared.geometry, self.shared.geometry.size_bytes, false)
            .and_then(|()| self.shared.health.check());
        let checked = checked.and(fenced.map_or(Ok(()), Err));
        if let Err(err) = checked {
            return self.trackers.borrow_mut().start_done(Running { id: 0, op, faults: Vec::new() }, Err(err));
        }
        let running = Running { id: 0, op, faults: Vec::new() };
        let (ticket, accepted) = self.trackers.borrow_mut().start(running);
        if !accepted {
            return ticket;
        }
        let delay = {
            let state = &mut *self.shared.state();
            let mut trackers = self.trackers.borrow_mut();
            let Some(running) = trackers.op(ticket.slot) else { return ticket };
            running.id = state.next_id;
            state.next_id += 1;
            let (faults, delay) = self.begin(running.id, &running.op, state);
            running.faults = faults;
            delay
        };
        let timer = Arc::new(Timer { slot: ticket.slot, due: self.due.clone(), fired: AtomicBool::new(false) });
        match &self.shared.hook {
            Some(hook) if !delay.is_zero() => hook(delay, Waker::from(timer)),
            _ => timer.wake(),
        }
        ticket
    }

    fn poll_done(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<IoDone> {
        self.poll_ticket(ticket, cx)
    }

    fn forget(&self, ticket: Ticket) {
        self.forget_ticket(ticket);
    }

    fn process_completions(&self) -> usize {
        let due = self.take_due();
        let count = due.len();
        for slot in due {
            self.trackers.borrow_mut().finish(slot, |running| self.complete(running));
        }
        self.wake_waiters();
        // The hook's wake announces what is in flight; without one, only polling does.
        let unannounced = self.shared.hook.is_none() && self.in_flight() > 0;
        count.max(usize::from(unannounced))
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn in_flight(&self) -> usize {
        self.trackers.borrow().in_flight()
    }
}
