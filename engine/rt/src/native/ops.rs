//! The operations of one reactor's tasks in its io_uring.
//!
//! Invariants, which make the interface safe:
//! - Memory that the kernel may touch (buffers, message headers, the file) is owned by the operation's slot, whose
//!   address is stable (boxed), from submission until the kernel's completion has been reaped. A dropped [`Op`] only
//!   marks its slot abandoned and asks the kernel to cancel.
//! - They are dropped only when nothing is in flight; slots that the kernel does not give back are leaked.
//! - A completion names its slot and generation, so none is taken for another's.
#![allow(unsafe_code)] // submissions carry raw pointers into the slots; the argument is above, and at each block

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use vellum_base::DmaBuf;
use vellum_uring::types::Fd;
use vellum_uring::{Answer, Lane, opcode, squeue};

use crate::kernel::Parts;
use crate::poller::Watch;

/// The key of the doorbell's poll; slots and generations have [`HALF`] bits each, and never so many ones.
const DOORBELL: u64 = (1 << Lane::KEY_BITS) - 1;
const HALF: u32 = Lane::KEY_BITS / 2;
/// `IORING_RECVSEND_POLL_FIRST` of the kernel's interface.
const RECVSEND_POLL_FIRST: u16 = 1;
/// How long a dying reactor waits for the kernel to give the buffers back.
const DRAIN: Duration = Duration::from_secs(2);

/// An operation's slot and generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpId {
    slot: u32,
    generation: u32,
}

impl OpId {
    fn key(self) -> u64 {
        u64::from(self.generation) << HALF | u64::from(self.slot)
    }

    fn of(key: u64) -> OpId {
        OpId { slot: (key & ((1 << HALF) - 1)) as u32, generation: (key >> HALF) as u32 }
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
        self.generation = (self.generation + 1) % ((1 << HALF) - 1);
        std::mem::replace(&mut self.hold, Hold::None)
    }
}

struct Inner {
    lane: Lane,
    #[expect(clippy::vec_box, reason = "the kernel holds the slots' addresses")]
    slots: Vec<Box<Slot>>,
    free: Vec<u32>,
    doorbell: Arc<OwnedFd>,
    doorbell_armed: bool,
}

/// The tasks' lane of the reactor's ring.
pub(crate) struct Ops {
    inner: RefCell<Inner>,
    /// Scratch of [`Ops::reap`].
    answers: Cell<Vec<Answer>>,
    wakers: Cell<Vec<Waker>>,
}

impl Ops {
    pub fn new(lane: Lane, doorbell: Arc<OwnedFd>) -> Ops {
        let inner = Inner { lane, slots: Vec::new(), free: Vec::new(), doorbell, doorbell_armed: false };
        Ops { inner: RefCell::new(inner), answers: Cell::default(), wakers: Cell::default() }
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
        Op { ops: self.clone(), id, finished: false }
    }

    /// Asks the kernel to end an operation early; its completion comes as usual.
    pub fn cancel(&self, op: OpId) {
        self.inner.borrow().lane.cancel(op.key());
    }

    /// Wakes the owners of operations that the ring has an answer for; returns how many answers there were.
    pub(super) fn reap(&self) -> usize {
        let (mut answers, mut wakers) = (self.answers.take(), self.wakers.take());
        self.inner.borrow_mut().reap(&mut answers, &mut wakers);
        let count = answers.len();
        answers.clear();
        for waker in wakers.drain(..) {
            waker.wake(); // outside the borrow: wakers are foreign code
        }
        self.answers.set(answers);
        self.wakers.set(wakers);
        count
    }

    /// Has the doorbell end the ring's waits.
    pub(super) fn arm_doorbell(&self) {
        self.inner.borrow_mut().arm_doorbell();
    }
}

impl Inner {
    fn start(&mut self, hold: Hold, entry: impl FnOnce(&mut Slot) -> squeue::Entry) -> OpId {
        let index = self.free.pop().unwrap_or_else(|| {
            assert!(self.slots.len() < (1 << HALF) - 1, "more operations in flight than there are names for");
            self.slots.push(Slot::new());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.state = State::Waiting(None);
        slot.hold = hold;
        let id = OpId { slot: index, generation: slot.generation };
        let entry = entry(slot);
        // SAFETY: all pointers in the entry lead into its slot's hold, iov and msg, which live until it completes.
        unsafe { self.lane.push(entry, id.key()) };
        id
    }

    fn arm_doorbell(&mut self) {
        if !self.doorbell_armed {
            // Multishot, and the counter is never read: each ring of the bell is an event of its own.
            let poll = opcode::PollAdd::new(Fd(self.doorbell.as_raw_fd()), libc::POLLIN as u32).multi(true);
            // SAFETY: a poll points to no memory, and the doorbell is open until the lane was drained.
            unsafe { self.lane.push(poll.build(), DOORBELL) };
            self.doorbell_armed = true;
        }
    }

    fn reap(&mut self, answers: &mut Vec<Answer>, wakers: &mut Vec<Waker>) {
        self.lane.take(answers);
        for answer in answers {
            if answer.key == DOORBELL {
                self.doorbell_armed &= answer.more;
                continue;
            }
            let id = OpId::of(answer.key);
            let Some(slot) = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)
            else {
                continue;
            };
            match std::mem::replace(&mut slot.state, State::Done(answer.result)) {
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
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for (index, slot) in self.slots.iter().enumerate() {
            if matches!(slot.state, State::Waiting(_) | State::Abandoned) {
                self.lane.cancel(OpId { slot: index as u32, generation: slot.generation }.key());
            }
        }
        self.lane.cancel(DOORBELL);
        if !self.lane.drain(DRAIN) {
            // The kernel may still write into these: better lost than used again.
            for slot in self.slots.drain(..) {
                Box::leak(slot);
            }
        }
    }
}

/// The kernel's answer, and what it was allowed to touch.
pub(super) struct Completion {
    /// As a system call's: negative is an errno.
    pub result: i32,
    pub hold: Hold,
}

/// One operation in flight. Dropping it cancels the operation; its memory stays in its slot until the kernel answers.
pub(super) struct Op {
    ops: Rc<Ops>,
    id: OpId,
    finished: bool,
}

impl Future for Op {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion> {
        let Op { ops, id, finished } = &mut *self;
        assert!(!*finished, "polled after it was done");
        let mut inner = ops.inner.borrow_mut();
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
        let mut inner = self.ops.inner.borrow_mut();
        let inner = &mut *inner;
        let slot = &mut inner.slots[self.id.slot as usize];
        match slot.state {
            State::Done(_) => {
                slot.free();
                inner.free.push(self.id.slot);
            }
            _ => {
                slot.state = State::Abandoned;
                inner.lane.cancel(self.id.key());
            }
        }
    }
}
