//! The queue pair of one reactor, behind the [`Queue`] trait.
//!
//! A command id is an index into `slots` and a generation, so that an answer that comes twice, or for an earlier command
//! of the slot, is noticed. Such an answer, as any nonsense, costs the controller a reset.
//!
//! Here: submission and completion. [`command`]: what an operation is to the controller; [`recovery`]: timeouts, resets, death.

mod command;
mod recovery;

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use vellum_base::dma::{Arena, arena};

use self::command::{Command, build, fail, succeed};
use self::recovery::Attach;
use super::controller::{Controller, DEAD, state_of};
use super::device::Shared;
use super::pages::CommandPages;
use super::rings::Rings;
use super::{ControllerError, Transport};
use crate::spec::{Completion, Status, Submission};
use crate::tracker::{Trackers, Tracking};
use crate::{DeviceError, Geometry, IoDone, IoOp, Queue, Ticket};

/// Most commands at the device, per queue. With [`INDEX_BITS`], command id 0xffff is never used (it means "none" in the
/// error log).
const MAX_DEPTH: u32 = 1023;
const INDEX_BITS: u32 = 10;
const INDEX_MASK: u16 = (1 << INDEX_BITS) - 1;
const GENERATION_MASK: u16 = u16::MAX >> INDEX_BITS;
const _: () = assert!(MAX_DEPTH <= INDEX_MASK as u32);
/// Times that a command is given to the device before its error is final.
const MAX_ATTEMPTS: u8 = 4;
/// How long a queue that is dropped waits for its commands, in polls with a yield each.
const MAX_DROP_POLLS: u32 = 200_000;
/// Most LBAs of one Write Zeroes (NLB has 16 bits).
pub const MAX_ZERO_LBAS: u64 = 1 << 16;

/// A command id.
#[derive(Clone, Copy, Default)]
struct Slot {
    tracker: u32,
    /// Tick of its submission.
    tick: u32,
    generation: u16,
    running: bool,
    aborting: bool,
}

struct Inner {
    /// The controller's life in which this queue exists at the controller.
    life: u32,
    polls_to_tick: u32,
    rings: Rings,
    free: Vec<u16>,
    slots: Vec<Slot>,
    trackers: Trackers<Command>,
    waiting: VecDeque<u32>,
    pages: CommandPages,
    arena: &'static Arena,
    // Cold from here on.
    tick: u32,
    last_tick_ms: u64,
    looked_at_tick: u32,
    /// A command succeeded since the last tick.
    progress: bool,
    /// What the controller answered and could not have.
    nonsense: Option<&'static str>,
    doorbells: u64,
    attach: Attach,
    attach_deadline_ms: u64,
}

pub struct NvmeQueue<T: Transport> {
    inner: RefCell<Inner>,
    shared: Arc<Shared<T>>,
    qid: u16,
    /// Kept for its capacity between polls.
    wakers: RefCell<Vec<Waker>>,
}

impl<T: Transport> NvmeQueue<T> {
    pub(super) fn open(shared: Arc<Shared<T>>, depth: u32) -> Result<NvmeQueue<T>, ControllerError> {
        let controller = &shared.controller;
        let most = controller.capabilities().max_queue_entries() - 1;
        let depth = depth.clamp(1, MAX_DEPTH).min(most);
        let qid = controller.take_queue_id()?;
        match Self::create(&shared, qid, depth) {
            Ok(inner) => Ok(NvmeQueue { inner: RefCell::new(inner), shared, qid, wakers: RefCell::default() }),
            Err(err) => {
                controller.give_queue_id(qid);
                Err(err)
            }
        }
    }

    fn create(shared: &Shared<T>, qid: u16, depth: u32) -> Result<Inner, ControllerError> {
        let controller = &shared.controller;
        let transport = controller.transport();
        let arena = arena::activate().map_err(|_| ControllerError::NoMemory)?;
        let capabilities = controller.capabilities();
        let entries = depth + 1;
        let completion_entries = (2 * entries).min(capabilities.max_queue_entries()).max(entries);
        let mut rings = Rings::new(qid, entries, completion_entries, capabilities.doorbell_stride_shift())?;
        let pages = CommandPages::new(depth as usize, transport)?;
        let life = controller.life();
        rings.restart(controller.buffers());
        let (submissions, completions) = rings.addresses(transport)?;
        let create = Submission::create_completion_queue(qid, rings.completion_entries, completions);
        controller.execute("create IO completion queue", create, false)?;
        let create = Submission::create_submission_queue(qid, rings.entries, submissions);
        if let Err(err) = controller.execute("create IO submission queue", create, false) {
            if controller
                .execute("delete IO completion queue", Submission::delete_completion_queue(qid), false)
                .is_err()
            {
                controller.keep(rings.memory());
            }
            return Err(err);
        }
        Ok(Inner {
            life,
            polls_to_tick: controller.options.polls_per_tick,
            rings,
            free: (0..depth as u16).rev().collect(),
            slots: vec![Slot::default(); depth as usize],
            trackers: Trackers::new(depth),
            waiting: VecDeque::with_capacity(depth as usize),
            pages,
            arena,
            tick: 0,
            last_tick_ms: 0,
            looked_at_tick: 0,
            progress: false,
            nonsense: None,
            doorbells: 0,
            attach: Attach::No,
            attach_deadline_ms: 0,
        })
    }

    /// Write Zeroes of at most [`MAX_ZERO_LBAS`]; answered as a discard is.
    pub fn write_zeroes(&self, at_bytes: u64, len_bytes: u64) -> Ticket {
        let (nsid, shift) = (self.shared.namespace.nsid, self.shared.namespace.lba_shift);
        let entry = Submission::write_zeroes(nsid, at_bytes >> shift, (len_bytes >> shift) as u32, false);
        self.take(IoOp::Discard { at_bytes, len_bytes }, Some(entry))
    }

    /// The same, to its end. Not for a reactor's tasks.
    pub fn write_zeroes_and_wait(&self, at_bytes: u64, len_bytes: u64) -> Result<(), DeviceError> {
        self.wait(self.write_zeroes(at_bytes, len_bytes)).0
    }

    /// Sends `entry`, whose data is what `op` reads or writes. Not for a reactor's tasks.
    pub(super) fn execute_and_wait(&self, entry: Submission, op: IoOp) -> IoDone {
        self.wait(self.take(op, Some(entry)))
    }

    fn wait(&self, ticket: Ticket) -> IoDone {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            self.process_completions();
            if let Poll::Ready(done) = self.poll_done(ticket, &mut cx) {
                return done;
            }
            std::thread::yield_now();
        }
    }

    /// Doorbell registers written so far.
    pub fn doorbells(&self) -> u64 {
        self.inner.borrow().doorbells
    }

    /// Cache lines that one read of up to two pages touches in the driver, by the sizes of what it touches: entry and
    /// completion, the command's slot and id, and the tracker. Not counted: lines that every command shares.
    pub fn cache_lines_per_read() -> f64 {
        let bytes = size_of::<Submission>()
            + size_of::<Completion>()
            + size_of::<Slot>()
            + 2 * size_of::<u16>()
            + Trackers::<Command>::BYTES_PER_OPERATION;
        bytes as f64 / 64.0
    }

    pub fn controller(&self) -> &Arc<Controller<T>> {
        &self.shared.controller
    }

    #[inline]
    fn take(&self, op: IoOp, instead: Option<Submission>) -> Ticket {
        let shared = &*self.shared;
        let inner = &mut *self.inner.borrow_mut();
        let checked = shared
            .controller
            .health
            .check()
            .and_then(|()| op.check(&shared.geometry, shared.size.get(), shared.read_only));
        if checked.is_err() || (instead.is_none() && shared.is_nothing(&op)) {
            return inner.trackers.start_done(Command::new(op, None), checked);
        }
        let (ticket, accepted) = inner.trackers.start(Command::new(op, instead));
        if accepted {
            if inner.waiting.is_empty() && !inner.free.is_empty() {
                inner.place(ticket.slot, shared);
            } else {
                inner.waiting.push_back(ticket.slot);
            }
        }
        ticket
    }
}

impl Inner {
    /// Gives the operation in `tracker` to the device: there is a free command id.
    #[inline]
    fn place<T: Transport>(&mut self, tracker: u32, shared: &Shared<T>) {
        let Some(index) = self.free.pop() else {
            self.waiting.push_front(tracker);
            return;
        };
        let Some(command) = self.trackers.op(tracker) else {
            self.free.push(index);
            return;
        };
        command.attempts += 1;
        match build(command, usize::from(index), &self.pages, self.arena, shared) {
            Ok(entry) => {
                let slot = &mut self.slots[usize::from(index)];
                slot.tracker = tracker;
                slot.tick = self.tick;
                slot.running = true;
                slot.aborting = false;
                let cid = index | slot.generation << INDEX_BITS;
                if command.is_rare() {
                    self.rings.push(&command.instead_of(entry), cid);
                } else {
                    self.rings.push(&entry, cid);
                }
            }
            Err(err) => {
                self.free.push(index);
                self.trackers.finish(tracker, |_| Err(err));
            }
        }
    }

    fn place_waiting<T: Transport>(&mut self, shared: &Shared<T>) {
        while !self.free.is_empty()
            && let Some(tracker) = self.waiting.pop_front()
        {
            self.place(tracker, shared);
        }
    }

    #[inline]
    fn reap<T: Transport>(&mut self, shared: &Shared<T>) -> usize {
        let mut count = 0;
        // As many as there can be: a controller that writes without end does not hold the reactor.
        while count < self.rings.completion_entries as usize
            && let Some(done) = self.rings.pop()
        {
            count += 1;
            if !self.answered(&done, shared) && shared.controller.life() != self.life {
                break; // the device has failed: nothing more is acknowledged
            }
        }
        count
    }

    /// True when a command succeeded.
    #[inline]
    fn answered<T: Transport>(&mut self, done: &Completion, shared: &Shared<T>) -> bool {
        let cid = done.cid.get();
        let index = cid & INDEX_MASK;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            self.nonsense = Some("a completion with a command id that there is not");
            return false;
        };
        if !slot.running || slot.generation != cid >> INDEX_BITS {
            self.nonsense = Some("a completion of a command that is not at the device");
            return false;
        }
        if done.sq_id.get() != self.rings.qid {
            self.nonsense = Some("a completion of another queue's command");
            return false;
        }
        let (tracker, aborting) = (slot.tracker, slot.aborting);
        slot.running = false;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        self.free.push(index);
        let status = done.status();
        if status.is_success() {
            self.progress = true;
            self.trackers.finish(tracker, |command| {
                succeed(command, shared);
                Ok(())
            });
        } else {
            self.failed(tracker, status, aborting, shared);
        }
        status.is_success()
    }

    fn failed<T: Transport>(&mut self, tracker: u32, status: Status, aborting: bool, shared: &Shared<T>) {
        let Some(command) = self.trackers.op(tracker) else { return };
        // A flush that failed is not tried again: nobody knows what it has lost. One that we aborted did not fail.
        let was_aborted = aborting && status.code() == Status::ABORT_REQUESTED.code();
        let is_flush = matches!(command.op, IoOp::Flush);
        // Another host has the namespace: no attempt will change that.
        let conflict = status.code() == Status::RESERVATION_CONFLICT.code();
        let worth_it = !status.do_not_retry() && !conflict && (!is_flush || was_aborted);
        let again = command.attempts < MAX_ATTEMPTS && worth_it;
        if again {
            shared.controller.counters.retried.fetch_add(1, Ordering::Relaxed);
            self.waiting.push_back(tracker);
            return;
        }
        let (at_bytes, len_bytes) = command.op.extent();
        let err = if is_flush {
            shared.controller.give_up(format!("flush of {}: {status}", shared.geometry.name))
        } else {
            DeviceError::Command { op: command.op.name(), at_bytes, len_bytes, status }
        };
        self.trackers.finish(tracker, |command| fail(command, err, shared));
    }

    fn at_device(&self) -> bool {
        self.free.len() < self.slots.len()
    }
}

impl<T: Transport> Tracking<Command> for NvmeQueue<T> {
    fn trackers(&self) -> RefMut<'_, Trackers<Command>> {
        RefMut::map(self.inner.borrow_mut(), |inner| &mut inner.trackers)
    }

    fn spare_wakers(&self) -> &RefCell<Vec<Waker>> {
        &self.wakers
    }
}

impl<T: Transport> Queue for NvmeQueue<T> {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    fn look_at_size(&self) -> Result<u64, DeviceError> {
        let (controller, known) = (&self.shared.controller, &self.shared.namespace);
        let now = controller.namespace(known.nsid).map_err(|err| controller.device_error(err))?;
        if now.lba_shift == known.lba_shift {
            self.shared.size.grow(now.size_bytes());
        }
        Ok(now.size_bytes())
    }

    fn submit(&self, op: IoOp) -> Ticket {
        self.take(op, None)
    }

    fn poll_done(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<IoDone> {
        self.poll_ticket(ticket, cx)
    }

    fn forget(&self, ticket: Ticket) {
        self.forget_ticket(ticket);
    }

    fn process_completions(&self) -> usize {
        let mut borrowed = self.inner.borrow_mut();
        let inner = &mut *borrowed;
        let shared = &*self.shared;
        let controller = &*shared.controller;
        let mut events;
        if controller.life() == inner.life {
            let transport = controller.transport();
            if !inner.waiting.is_empty() {
                inner.place_waiting(shared);
            }
            let rung = inner.rings.ring_tail(transport);
            transport.turn(self.qid);
            events = inner.reap(shared);
            let rung_head = inner.rings.ring_head(transport);
            inner.doorbells += u64::from(rung) + u64::from(rung_head);
            inner.polls_to_tick = inner.polls_to_tick.saturating_sub(1);
            if inner.polls_to_tick == 0 {
                inner.tick(shared);
            }
            if let Some(what) = inner.nonsense.take() {
                controller.count_nonsense(1);
                controller.begin_reset(inner.life, &ControllerError::Nonsense { what });
            }
            events = events.max(usize::from(inner.at_device() || !inner.waiting.is_empty()));
        } else {
            events = usize::from(inner.out_of_service(shared));
        }
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

impl<T: Transport> Drop for NvmeQueue<T> {
    /// Waits for what is at the device, and takes the queue pair back. Memory goes only where the device cannot follow.
    fn drop(&mut self) {
        let controller = self.shared.controller.clone();
        for _ in 0..MAX_DROP_POLLS {
            if !self.inner.borrow().at_device() && self.inner.borrow().waiting.is_empty() {
                break;
            }
            self.process_completions();
            std::thread::yield_now();
        }
        let inner = self.inner.get_mut();
        controller.counters.doorbells.fetch_add(inner.doorbells, Ordering::Relaxed);
        if state_of(controller.life()) == DEAD {
            inner.fail_all(&self.shared);
            return;
        }
        // In another life the controller does not know the queue; deleting it fails, and is not needed.
        let known = controller.life() == inner.life;
        let delete = |what, command| controller.execute(what, command, false);
        let deleted = !known
            || delete("delete IO submission queue", Submission::delete_submission_queue(self.qid))
                .and_then(|_| delete("delete IO completion queue", Submission::delete_completion_queue(self.qid)))
                .is_ok();
        if deleted && (known || !inner.at_device()) {
            controller.give_queue_id(self.qid);
            return;
        }
        tracing::warn!(device = controller.name(), qid = self.qid, "a queue could not be deleted: its memory is kept");
        controller.keep(inner.rings.memory());
        inner.pages.memory().for_each(|pages| controller.keep(pages));
        let lent: Vec<u32> = inner.slots.iter().filter(|slot| slot.running).map(|slot| slot.tracker).collect();
        for tracker in lent {
            inner.trackers.finish(tracker, |command| {
                controller.keep(command.take_memory());
                Err(controller.device_error(ControllerError::Gone))
            });
        }
    }
}
