//! A queue of SPDK's behind the [`Queue`] trait. Data is copied through memory of SPDK's: its controllers address no other.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::Shared;
use super::controller::{Command, QueuePair};
use crate::spec::Status;
use crate::tracker::{Trackers, Tracking};
use crate::{DeviceError, Geometry, IoDone, IoOp, Queue, Ticket};

/// Most commands with SPDK at once; SPDK's own default queue size is 256.
const MAX_DEPTH: u32 = 256;
/// Polls between two looks at the controller's admin queue (keep-alive, events).
const TEND_POLLS: u32 = 1 << 14;
/// How long a queue that is dropped waits for its commands, in polls with a yield each.
const MAX_DROP_POLLS: u32 = 200_000;
/// Most LBAs of one range of a deallocation.
const MAX_RANGE_LBAS: u64 = u32::MAX as u64;

struct Inner {
    trackers: Trackers<IoOp>,
    waiting: VecDeque<u32>,
    pair: QueuePair,
    /// Slots of the pair without a command.
    free: Vec<usize>,
    /// Those with one, and its operation.
    busy: Vec<(usize, u32)>,
    polls_to_tend: u32,
}

pub(super) struct SpdkQueue {
    inner: RefCell<Inner>,
    /// Kept for its capacity between polls.
    wakers: RefCell<Vec<Waker>>,
    shared: Arc<Shared>,
}

impl SpdkQueue {
    pub fn open(shared: Arc<Shared>, depth: u32) -> Result<SpdkQueue, DeviceError> {
        let slots = depth.clamp(1, MAX_DEPTH) as usize;
        let pair = QueuePair::new(shared.controller.clone(), shared.namespace, slots).ok_or_else(|| {
            shared.error("SPDK gives no IO queue pair: they are all in use (start with fewer reactors, --cores)".into())
        })?;
        let inner = Inner {
            trackers: Trackers::new(depth),
            waiting: VecDeque::with_capacity(slots),
            pair,
            free: (0..slots).rev().collect(),
            busy: Vec::with_capacity(slots),
            polls_to_tend: TEND_POLLS,
        };
        Ok(SpdkQueue { inner: RefCell::new(inner), wakers: RefCell::default(), shared })
    }
}

fn command<'a>(op: &'a IoOp, lba_bytes: u64) -> Command<'a> {
    let (at_bytes, len_bytes) = op.extent();
    let (lba, lbas) = (at_bytes / lba_bytes, (len_bytes / lba_bytes).min(MAX_RANGE_LBAS) as u32);
    match op {
        IoOp::Read { buf, .. } => Command::Read { lba, lbas, len: buf.len() },
        IoOp::Write { data, fua, .. } => Command::Write { lba, lbas, data, fua: *fua },
        IoOp::Flush => Command::Flush,
        IoOp::Discard { .. } => Command::Deallocate { lba, lbas },
    }
}

impl Inner {
    fn start_waiting(&mut self, shared: &Shared) {
        while let (Some(&tracker), Some(&slot)) = (self.waiting.front(), self.free.last()) {
            let Some(op) = self.trackers.op(tracker) else {
                self.waiting.pop_front();
                continue;
            };
            match self.pair.submit(slot, command(op, u64::from(shared.namespace.lba_bytes))) {
                Ok(()) => {
                    self.free.pop();
                    self.busy.push((slot, tracker));
                }
                // Its queue is full: again at the next poll.
                Err(errno) if errno == -libc::ENOMEM && !self.busy.is_empty() => return,
                Err(errno) => {
                    let err = match op {
                        IoOp::Flush => shared.health.fail(format!("flush of {}: errno {errno}", shared.geometry.name)),
                        op => op.error(-errno),
                    };
                    self.trackers.finish(tracker, |_| Err(err));
                }
            }
            self.waiting.pop_front();
        }
    }

    fn reap(&mut self, shared: &Shared) -> usize {
        let before = self.busy.len();
        let (pair, trackers, free) = (&self.pair, &mut self.trackers, &mut self.free);
        self.busy.retain(|&(slot, tracker)| {
            let Some(status) = pair.outcome(slot) else { return true };
            free.push(slot);
            trackers.finish(tracker, |op| {
                if let (true, IoOp::Read { buf, .. }) = (status.is_success(), &mut *op) {
                    pair.copy_to(slot, buf);
                }
                judge(op, status, shared)
            });
            false
        });
        before - self.busy.len()
    }

    /// SPDK has lost the controller: what it still has of ours stays lent to it until the queue is dropped.
    fn fail(&mut self, shared: &Shared, reason: String) {
        let err = shared.health.fail(reason);
        for tracker in std::mem::take(&mut self.waiting) {
            self.trackers.finish(tracker, |_| Err(err.clone()));
        }
        for &(_, tracker) in &self.busy {
            self.trackers.finish(tracker, |_| Err(err.clone()));
        }
        // Their slots are not used again; the data is SPDK's copy, so the operations' own memory is free.
        self.busy.clear();
    }
}

fn judge(op: &IoOp, status: Status, shared: &Shared) -> Result<(), DeviceError> {
    let (at_bytes, len_bytes) = op.extent();
    match op {
        _ if status.is_success() => Ok(()),
        IoOp::Flush => Err(shared.health.fail(format!("flush of {}: {status}", shared.geometry.name))),
        // A hint; not every controller takes it.
        IoOp::Discard { .. } if matches!(status.code(), 0x001 | 0x002) => Ok(()),
        op => Err(DeviceError::Command { op: op.name(), at_bytes, len_bytes, status }),
    }
}

impl Tracking<IoOp> for SpdkQueue {
    fn trackers(&self) -> RefMut<'_, Trackers<IoOp>> {
        RefMut::map(self.inner.borrow_mut(), |inner| &mut inner.trackers)
    }

    fn spare_wakers(&self) -> &RefCell<Vec<Waker>> {
        &self.wakers
    }
}

impl Queue for SpdkQueue {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    fn submit(&self, op: IoOp) -> Ticket {
        let inner = &mut *self.inner.borrow_mut();
        let geometry = self.geometry();
        let in_order = || op.check(geometry, geometry.size_bytes, self.shared.read_only);
        let checked = self.shared.health.check().and_then(|()| in_order());
        if checked.is_err() || (op.extent().1 == 0 && !matches!(op, IoOp::Flush)) {
            return inner.trackers.start_done(op, checked);
        }
        let (ticket, accepted) = inner.trackers.start(op);
        if accepted {
            inner.waiting.push_back(ticket.slot);
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
        let mut borrowed = self.inner.borrow_mut();
        let (inner, shared) = (&mut *borrowed, &*self.shared);
        inner.start_waiting(shared);
        let mut count = 0;
        if !inner.busy.is_empty() {
            let answered = inner.pair.process();
            count = inner.reap(shared);
            if answered < 0 {
                inner.fail(shared, format!("{}: SPDK lost the queue pair ({answered})", shared.geometry.name));
            }
        }
        inner.polls_to_tend -= 1;
        if inner.polls_to_tend == 0 {
            inner.polls_to_tend = TEND_POLLS;
            if !shared.controller.tend() {
                inner.fail(shared, format!("{}: SPDK lost the controller", shared.geometry.name));
            }
        }
        let events = count.max(usize::from(!inner.busy.is_empty() || !inner.waiting.is_empty()));
        drop(borrowed);
        self.wake_waiters();
        events
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn in_flight(&self) -> usize {
        self.inner.borrow().trackers.in_flight()
    }
}

impl Drop for SpdkQueue {
    fn drop(&mut self) {
        for _ in 0..MAX_DROP_POLLS {
            if self.inner.borrow().busy.is_empty() && self.inner.borrow().waiting.is_empty() {
                break;
            }
            self.process_completions();
            std::thread::yield_now();
        }
    }
}
