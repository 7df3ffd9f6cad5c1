//! The ring: submission with a backlog, waiting, and answers sorted by lane.
#![allow(unsafe_code)] // entries carry raw pointers: whoever pushes one has promised what Lane::push asks for

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, cqueue, opcode, squeue};

use crate::Lane;

/// Answers to cancellations: nobody waits for them. No lane has this index.
const IGNORED: u64 = u64::MAX;
const LANES: usize = u16::MAX as usize;
/// Files that can be registered: those of the first lanes.
const FILES: u32 = 64;
/// Completion queue entries for each submission queue entry: those of a burst need no second look.
const COMPLETIONS: u32 = 8;
/// Longest wait between two looks in [`Ring::drain`].
const DRAIN_STEP: Duration = Duration::from_millis(10);

/// How a ring's answers are waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// By [`Ring::wait`]: the kernel's work for an answer is done in the thread's own system calls (DEFER_TASKRUN).
    Waited,
    /// By whoever polls [`Ring::wake_fd`]. Not DEFER_TASKRUN: with it poll(2) and another ring's poll on the descriptor were not
    /// woken by finished work (Linux 6.18; the test `another_ring_can_sleep_on_the_wake_descriptor` of the device queue hung).
    Watched,
    /// By entering the kernel, which asks the device (IOPOLL): nothing announces them.
    Polled,
}

/// The kernel's answer to an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    pub key: u64,
    /// As a system call's: negative is an errno.
    pub result: i32,
    /// More answers to the same entry follow.
    pub more: bool,
}

#[derive(Default)]
struct LaneState {
    open: bool,
    in_flight: usize,
    answers: Vec<Answer>,
}

struct Inner {
    uring: IoUring,
    lanes: Vec<LaneState>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    /// Answers were sorted since the owner's last [`Ring::reap`]: it looks at its lanes before it sleeps.
    news: bool,
    has_files: bool,
}

/// An io_uring of one thread.
pub struct Ring {
    inner: RefCell<Inner>,
    kind: Kind,
    /// See [`Ring::hold_back`].
    held_back: Cell<bool>,
}

fn build(entries: u32, kind: Kind) -> io::Result<IoUring> {
    let with = |setup: &dyn Fn(&mut Builder)| {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(entries.saturating_mul(COMPLETIONS)).setup_clamp();
        if kind == Kind::Polled {
            builder.setup_iopoll();
        }
        setup(&mut builder);
        builder.build(entries)
    };
    // Single issuer (6.0) with deferred (6.1) or cooperative task work (5.19), and a flag in shared memory that says when to enter.
    with(&|builder| {
        builder.setup_single_issuer().setup_taskrun_flag().setup_submit_all();
        match kind {
            Kind::Waited => builder.setup_defer_taskrun(),
            Kind::Watched | Kind::Polled => builder.setup_coop_taskrun(),
        };
    })
    .or_else(|_| {
        with(&|builder| {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        })
    })
    .or_else(|_| with(&|_| ()))
}

impl Ring {
    /// A ring for the calling thread, with so many submission queue entries; more are kept until there is room.
    pub fn new(entries: u32, kind: Kind) -> io::Result<Ring> {
        let uring = build(entries.next_power_of_two(), kind)?;
        if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old (5.11 needed)"));
        }
        let has_files = uring.submitter().register_files_sparse(FILES).is_ok(); // 5.19
        let (lanes, backlog) = (Vec::new(), VecDeque::new());
        let inner = Inner { uring, lanes, backlog, news: false, has_files };
        Ok(Ring { inner: RefCell::new(inner), kind, held_back: Cell::new(false) })
    }

    /// Readable as soon as there is something to [`Ring::enter`] or [`Ring::reap`] for; only of a [`Kind::Watched`] ring.
    pub fn wake_fd(&self) -> RawFd {
        self.inner.borrow().uring.as_raw_fd()
    }

    /// While set, [`Lane::look`] submits nothing: the owner is about to [`Ring::wait`], and takes it all along.
    pub fn hold_back(&self, yes: bool) {
        self.held_back.set(yes);
    }

    pub fn is_held_back(&self) -> bool {
        self.held_back.get()
    }

    /// Submits what is queued and runs what the kernel has deferred to us. No system call when there is neither.
    pub fn enter(&self) -> io::Result<()> {
        self.inner.borrow_mut().enter(self.kind)
    }

    #[inline]
    pub(crate) fn look(&self) -> io::Result<()> {
        let inner = &mut *self.inner.borrow_mut();
        if !self.held_back.get() || inner.wants_to_run() {
            inner.enter(self.kind)?;
        }
        inner.news |= inner.reap() > 0;
        Ok(())
    }

    /// Something is queued that the kernel has not taken.
    pub fn has_unsubmitted(&self) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        !inner.backlog.is_empty() || !inner.uring.submission().is_empty()
    }

    /// Submits what is queued, and sleeps until there is something to reap, or for so long.
    pub fn wait(&self, at_most: Option<Duration>) -> io::Result<()> {
        let inner = &mut *self.inner.borrow_mut();
        if inner.news { inner.enter(self.kind) } else { inner.wait(at_most) }
    }

    /// Gives each lane its answers. For the ring's owner, who then has the lanes looked at.
    #[inline]
    pub fn reap(&self) {
        let inner = &mut *self.inner.borrow_mut();
        inner.reap();
        inner.news = false;
    }

    pub(crate) fn open_lane(&self, answers: usize) -> io::Result<u16> {
        let lanes = &mut self.inner.borrow_mut().lanes;
        let unused = lanes.iter().position(|lane| !lane.open && lane.in_flight == 0);
        let index = unused.unwrap_or(lanes.len());
        if index >= LANES {
            return Err(io::Error::other(format!("{LANES} queues of one ring are open")));
        }
        if index == lanes.len() {
            lanes.push(LaneState::default());
        }
        lanes[index].open = true;
        lanes[index].answers.reserve(answers);
        Ok(index as u16)
    }

    pub(crate) fn close_lane(&self, index: u16) {
        let inner = &mut *self.inner.borrow_mut();
        if inner.has_files && u32::from(index) < FILES {
            // Else the ring would keep the file open. It fails only where nothing was registered.
            let _ = inner.uring.submitter().register_files_update(u32::from(index), &[-1]);
        }
        let lane = &mut inner.lanes[usize::from(index)];
        lane.open = false;
        lane.answers.clear();
    }

    pub(crate) fn register(&self, index: u16, fd: RawFd) -> bool {
        let inner = self.inner.borrow();
        let fits = inner.has_files && u32::from(index) < FILES;
        fits && inner.uring.submitter().register_files_update(u32::from(index), &[fd]).is_ok_and(|count| count == 1)
    }

    /// # Safety
    /// As [`Lane::push`] says.
    #[inline]
    pub(crate) unsafe fn push(&self, index: u16, entry: squeue::Entry, key: u64) {
        let inner = &mut *self.inner.borrow_mut();
        inner.lanes[usize::from(index)].in_flight += 1;
        // SAFETY: passed on.
        unsafe { inner.push(entry.user_data(tag(index, key))) };
    }

    pub(crate) fn cancel(&self, index: u16, key: u64) {
        let entry = opcode::AsyncCancel::new(tag(index, key)).build().user_data(IGNORED);
        // SAFETY: the entry points to no memory.
        unsafe { self.inner.borrow_mut().push(entry) };
    }

    #[inline]
    pub(crate) fn in_flight(&self, index: u16) -> usize {
        self.inner.borrow().lanes[usize::from(index)].in_flight
    }

    #[inline]
    pub(crate) fn take(&self, index: u16, answers: &mut Vec<Answer>) {
        let inner = &mut *self.inner.borrow_mut();
        std::mem::swap(&mut inner.lanes[usize::from(index)].answers, answers);
    }

    pub(crate) fn drain(&self, index: u16, at_most: Duration) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        let deadline = Instant::now() + at_most;
        while inner.lanes[usize::from(index)].in_flight > 0 {
            if Instant::now() >= deadline || inner.wait(Some(DRAIN_STEP)).is_err() {
                return false;
            }
            inner.news |= inner.reap() > 0;
        }
        true
    }
}

fn tag(index: u16, key: u64) -> u64 {
    u64::from(index) << Lane::KEY_BITS | (key & ((1 << Lane::KEY_BITS) - 1))
}

impl Inner {
    /// # Safety
    /// As [`Lane::push`] says.
    #[inline]
    unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller's promise.
        if !self.backlog.is_empty() || unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    fn refill(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        let mut queue = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: promised when it was pushed.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// The kernel has work that only an enter lets it do.
    fn wants_to_run(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Nothing but an enter finds out what a polled device has done.
    fn asks_device(&mut self, kind: Kind) -> bool {
        kind == Kind::Polled && self.lanes.iter().any(|lane| lane.in_flight > 0) && self.uring.completion().is_empty()
    }

    fn enter(&mut self, kind: Kind) -> io::Result<()> {
        loop {
            self.refill();
            if self.uring.submission().is_empty() && !self.wants_to_run() && !self.asks_device(kind) {
                return Ok(());
            }
            match self.uring.submit() {
                Ok(_) => {}
                // A signal, or short of kernel memory, or completions must be reaped first: the next turn goes on.
                Err(err) if is_transient(&err) => return Ok(()),
                Err(err) => return Err(err),
            }
            if self.backlog.is_empty() {
                return Ok(());
            }
        }
    }

    fn wait(&mut self, at_most: Option<Duration>) -> io::Result<()> {
        self.refill();
        let waited = match at_most {
            None => self.uring.submit_and_wait(1),
            Some(at_most) => {
                let timespec = Timespec::from(at_most);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        };
        match waited {
            Err(err) if !is_transient(&err) && err.raw_os_error() != Some(libc::ETIME) => Err(err),
            _ => Ok(()),
        }
    }

    fn reap(&mut self) -> usize {
        let mut count = 0;
        for completion in self.uring.completion() {
            count += 1;
            let tag = completion.user_data();
            let Some(lane) = self.lanes.get_mut((tag >> Lane::KEY_BITS) as usize).filter(|_| tag != IGNORED) else {
                continue;
            };
            let more = cqueue::more(completion.flags());
            lane.in_flight -= usize::from(!more);
            if lane.open {
                lane.answers.push(Answer { key: tag & ((1 << Lane::KEY_BITS) - 1), result: completion.result(), more });
            }
        }
        count
    }
}

fn is_transient(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("kind", &self.kind).finish_non_exhaustive()
    }
}
