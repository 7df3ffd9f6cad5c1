//! The io_uring of one reactor and all its operations in flight.
//!
//! Invariants, which make the interface safe:
//! - Memory that the kernel may touch (buffers, message headers, the file) is owned by the operation's slot, whose
//!   address is stable (boxed), from submission until the kernel's completion has been reaped. A dropped [`Op`] only
//!   marks its slot abandoned and asks the kernel to cancel.
//! - The ring is dropped only when nothing is in flight; slots that the kernel does not give back are leaked.
//! - A completion names its slot and generation, so none is taken for another's.
#![allow(unsafe_code)] // submissions carry raw pointers into the slots; the argument is above, and at each block

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use vellum_base::DmaBuf;

use crate::kernel::Parts;
use crate::poller::Watch;

/// Completions of cancellations: nobody waits for them.
const IGNORED: u64 = u64::MAX;
const DOORBELL: u64 = u64::MAX - 1;
/// `IORING_RECVSEND_POLL_FIRST` of the kernel's interface.
const RECVSEND_POLL_FIRST: u16 = 1;
/// How long a dying ring waits for the kernel to give the buffers back.
const DRAIN_STEP: Duration = Duration::from_millis(10);
const DRAIN_STEPS: usize = 200;

/// An operation's slot and generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpId {
    slot: u32,
    generation: u32,
}

impl OpId {
    fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }
}

/// What the kernel may touch while the operation is in flight.
pub(super) enum Hold {
    None,
    File { _file: Rc<OwnedFd> },
    Recv { buf: DmaBuf, _file: Rc<OwnedFd> },
    Send { parts: Parts, _file: Rc<OwnedFd> },
    Watch(Rc<Watch>),
}

enum State {
    Free,
    Waiting(Option<Waker>),
    Done(i32),
    /// Its future is gone; the slot is freed by the completion.
    Abandoned,
}

struct Slot {
    generation: u32,
    state: State,
    hold: Hold,
    iov: [libc::iovec; 2],
    msg: libc::msghdr,
}

impl Slot {
    fn new() -> Box<Slot> {
        let iov = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: a msghdr of zeros (null pointers, zero lengths) is valid.
        let msg = unsafe { std::mem::zeroed() };
        Box::new(Slot { generation: 0, state: State::Free, hold: Hold::None, iov: [iov; 2], msg })
    }

    fn free(&mut self) -> Hold {
        self.state = State::Free;
        self.generation = self.generation.wrapping_add(1);
        std::mem::replace(&mut self.hold, Hold::None)
    }
}

struct Inner {
    uring: IoUring,
    #[expect(clippy::vec_box, reason = "the kernel holds the slots' addresses")]
    slots: Vec<Box<Slot>>,
    free: Vec<u32>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    /// Slots that the kernel has not answered.
    in_flight: usize,
    doorbell: Arc<OwnedFd>,
    doorbell_armed: bool,
}

pub(crate) struct Ring {
    inner: RefCell<Inner>,
    /// Scratch of [`Ring::reap`].
    wakers: Cell<Vec<Waker>>,
}

fn build(entries: u32) -> io::Result<IoUring> {
    let mut error = None;
    // Single issuer with deferred task run (6.1), cooperative task run (5.19), anything.
    for level in [2, 1, 0] {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(entries * 8).setup_clamp();
        match level {
            2 => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            1 => {
                builder.setup_coop_taskrun().setup_taskrun_flag();
            }
            _ => {}
        }
        match builder.build(entries) {
            Ok(ring) => return Ok(ring),
            Err(e) => error = Some(e),
        }
    }
    Err(error.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
}

impl Ring {
    /// A ring for the calling thread, which alone may use it.
    pub fn new(entries: u32, doorbell: Arc<OwnedFd>) -> io::Result<Ring> {
        let uring = build(entries)?;
        if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old (5.11 needed)"));
        }
        let inner = Inner {
            uring,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            in_flight: 0,
            doorbell,
            doorbell_armed: false,
        };
        Ok(Ring { inner: RefCell::new(inner), wakers: Cell::default() })
    }

    /// Receives into `buf[range]`; holds `buf` and `file` until the kernel answers. The kernel waits
    /// before it tries: the caller has just tried.
    pub(super) fn recv(self: &Rc<Self>, file: &Rc<OwnedFd>, mut buf: DmaBuf, range: Range<usize>) -> Op {
        let part = &mut buf[range];
        let (at, len) = (part.as_mut_ptr(), u32::try_from(part.len()).unwrap_or(u32::MAX));
        let entry = opcode::Recv::new(Fd(file.as_raw_fd()), at, len).ioprio(RECVSEND_POLL_FIRST).build();
        self.start(Hold::Recv { buf, _file: file.clone() }, |_| entry)
    }

    /// Sends `parts` without their first `skip` bytes.
    pub(super) fn send(self: &Rc<Self>, file: &Rc<OwnedFd>, parts: Parts, skip: usize) -> Op {
        let fd = Fd(file.as_raw_fd());
        self.start(Hold::Send { parts, _file: file.clone() }, |slot| {
            let Hold::Send { parts, .. } = &slot.hold else { unreachable!("set by start") };
            slot.iov = parts
                .after(skip)
                .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
            // SAFETY: a msghdr of zeros is valid.
            slot.msg = unsafe { std::mem::zeroed() };
            slot.msg.msg_iov = slot.iov.as_mut_ptr();
            slot.msg.msg_iovlen = slot.iov.len();
            opcode::SendMsg::new(fd, &slot.msg).flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32).build()
        })
    }

    /// Waits until `file` has one of the poll `events`.
    pub(super) fn poll(self: &Rc<Self>, file: &Rc<OwnedFd>, events: i16) -> Op {
        let entry = opcode::PollAdd::new(Fd(file.as_raw_fd()), events as u32).build();
        self.start(Hold::File { _file: file.clone() }, |_| entry)
    }

    /// Puts a one-shot poll of the watched fd into the kernel. A closed fd answers at once with an error.
    pub(super) fn arm_watch(&self, watch: &Rc<Watch>) {
        let entry = opcode::PollAdd::new(Fd(watch.fd), libc::POLLIN as u32).build();
        let op = self.inner.borrow_mut().start(Hold::Watch(watch.clone()), |_| entry);
        watch.armed.set(Some(op));
    }

    fn start(self: &Rc<Self>, hold: Hold, entry: impl FnOnce(&mut Slot) -> squeue::Entry) -> Op {
        let id = self.inner.borrow_mut().start(hold, entry);
        Op { ring: self.clone(), id, finished: false }
    }

    /// Asks the kernel to end an operation early; its completion comes as usual.
    pub fn cancel(&self, op: OpId) {
        let entry = opcode::AsyncCancel::new(op.user_data()).build().user_data(IGNORED);
        self.inner.borrow_mut().push(entry);
    }

    /// Submits what is queued and runs what the kernel deferred to us. No system call when there is neither.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.inner.borrow_mut().flush()
    }

    /// Wakes the owners of finished operations; returns the number of completions.
    pub(super) fn reap(&self) -> usize {
        let mut wakers = self.wakers.take();
        let count = self.inner.borrow_mut().reap(&mut wakers);
        for waker in wakers.drain(..) {
            waker.wake(); // outside the borrow: wakers are foreign code
        }
        self.wakers.set(wakers);
        count
    }

    /// Sleeps until a completion, a ring of the doorbell, or `timeout`.
    pub(super) fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        let mut inner = self.inner.borrow_mut();
        inner.arm_doorbell();
        inner.wait(timeout)
    }
}

impl Inner {
    fn start(&mut self, hold: Hold, entry: impl FnOnce(&mut Slot) -> squeue::Entry) -> OpId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::new());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.state = State::Waiting(None);
        slot.hold = hold;
        let id = OpId { slot: index, generation: slot.generation };
        let entry = entry(slot).user_data(id.user_data());
        self.in_flight += 1;
        self.push(entry);
        id
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: all pointers in the entry lead into its slot's hold, iov and msg, which live until it completes.
        if !self.backlog.is_empty() || unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    fn refill(&mut self) {
        let mut queue = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in push.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            self.refill();
            let queue = self.uring.submission();
            if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                return Ok(());
            }
            drop(queue);
            match self.uring.submit() {
                Ok(_) if self.backlog.is_empty() => return Ok(()),
                Ok(_) => {}
                // Completions must be reaped first, or a signal came: the next turn goes on.
                Err(e) if is_transient(&e) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    fn arm_doorbell(&mut self) {
        if !self.doorbell_armed {
            // Multishot, and the counter is never read: each ring of the bell is an event of its own.
            let poll = opcode::PollAdd::new(Fd(self.doorbell.as_raw_fd()), libc::POLLIN as u32).multi(true);
            self.push(poll.build().user_data(DOORBELL));
            self.doorbell_armed = true;
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.refill();
        let done = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        };
        match done {
            Err(e) if !is_transient(&e) && e.raw_os_error() != Some(libc::ETIME) => Err(e),
            _ => Ok(()),
        }
    }

    fn reap(&mut self, wakers: &mut Vec<Waker>) -> usize {
        let mut count = 0;
        for completion in self.uring.completion() {
            count += 1;
            let id = match completion.user_data() {
                IGNORED => continue,
                DOORBELL => {
                    self.doorbell_armed &= cqueue::more(completion.flags());
                    continue;
                }
                id => OpId { slot: id as u32, generation: (id >> 32) as u32 },
            };
            let Some(slot) = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)
            else {
                continue;
            };
            self.in_flight -= 1;
            match std::mem::replace(&mut slot.state, State::Done(completion.result())) {
                State::Waiting(waker) => {
                    if let Hold::Watch(watch) = &slot.hold {
                        watch.armed.set(None);
                        slot.free();
                        self.free.push(id.slot);
                    } else {
                        wakers.extend(waker);
                    }
                }
                State::Abandoned => {
                    slot.free();
                    self.free.push(id.slot);
                }
                State::Free | State::Done(_) => {}
            }
        }
        count
    }
}

fn is_transient(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

impl Drop for Inner {
    fn drop(&mut self) {
        let all = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(IGNORED);
        // What was never submitted is not in the kernel.
        let unsent = self.backlog.drain(..).filter(|entry| entry.get_user_data() < DOORBELL).count();
        self.in_flight -= unsent;
        self.push(all);
        let mut wakers = Vec::new();
        for _ in 0..DRAIN_STEPS {
            if self.in_flight == 0 {
                return;
            }
            if self.wait(Some(DRAIN_STEP)).is_err() {
                break;
            }
            self.reap(&mut wakers);
        }
        // The kernel may still write into these: better lost than used again.
        for slot in self.slots.drain(..) {
            Box::leak(slot);
        }
    }
}

/// The kernel's answer, and what it was allowed to touch.
pub(super) struct Completion {
    /// As a system call's: negative is an errno.
    pub result: i32,
    pub hold: Hold,
}

/// One operation in flight. Dropping it cancels the operation; its memory stays with the ring until the kernel answers.
pub(super) struct Op {
    ring: Rc<Ring>,
    id: OpId,
    finished: bool,
}

impl Future for Op {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion> {
        let Op { ring, id, finished } = &mut *self;
        assert!(!*finished, "polled after it was done");
        let mut inner = ring.inner.borrow_mut();
        let inner = &mut *inner;
        let slot = &mut inner.slots[id.slot as usize];
        match &mut slot.state {
            State::Done(result) => {
                let result = *result;
                let hold = slot.free();
                inner.free.push(id.slot);
                *finished = true;
                Poll::Ready(Completion { result, hold })
            }
            State::Waiting(waker) => {
                match waker {
                    Some(known) if known.will_wake(cx.waker()) => {}
                    _ => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            State::Free | State::Abandoned => unreachable!("the slot belongs to this future until it is done"),
        }
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut inner = self.ring.inner.borrow_mut();
        let inner = &mut *inner;
        let slot = &mut inner.slots[self.id.slot as usize];
        match slot.state {
            State::Done(_) => {
                slot.free();
                inner.free.push(self.id.slot);
            }
            _ => {
                slot.state = State::Abandoned;
                inner.push(opcode::AsyncCancel::new(self.id.user_data()).build().user_data(IGNORED));
            }
        }
    }
}
