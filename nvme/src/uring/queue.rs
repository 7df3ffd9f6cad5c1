//! A queue over a lane of the reactor's ring, or over a ring of its own (and a polled one where the device has polling): what
//! to do with each answer of the kernel.
//!
//! Invariant: while an operation's entry may be known to the kernel, the operation (and with it the memory it points to) is in its
//! tracker. A dropped queue waits for the kernel; if the kernel does not answer, the trackers are leaked rather than memory freed
//! under a running transfer.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use vellum_base::DmaBuf;
use vellum_uring::{Answer, Kind, current};

use super::Shared;
use super::transfer::{DiscardBy, Transfer, Way};
use crate::tracker::{Operation, Trackers, Tracking};
use crate::{DeviceError, Geometry, IoDone, IoOp, Queue, Ticket};

/// Most operations at the kernel at once, per queue.
const MAX_DEPTH: u32 = 4096;
/// How often an operation is given again after "try again" or a transfer in parts, before that is its error.
const MAX_TRIES: u32 = 1000;
/// How long a dropped queue waits for the kernel before it leaks what is in flight.
const DROP_WAIT: Duration = Duration::from_secs(10);

pub(super) struct UringQueue {
    inner: RefCell<Inner>,
    /// Kept for its capacity between polls.
    wakers: RefCell<Vec<Waker>>,
    /// Of a ring of its own.
    wake_fd: Option<RawFd>,
    shared: Arc<Shared>,
}

struct Inner {
    trackers: Trackers<Transfer>,
    /// Slots whose transfer is to be started as soon as there is room.
    waiting: VecDeque<u32>,
    main: Way,
    polled: Option<Way>,
    /// Scratch of [`Inner::take_answers`].
    answers: Vec<Answer>,
    discard_by: DiscardBy,
    /// Closed after the lanes are drained.
    _file: File,
}

/// What becomes of a transfer after an answer.
enum Next {
    Done(Result<(), DeviceError>),
    Again,
}

impl UringQueue {
    pub fn open(shared: Arc<Shared>, depth: u32) -> Result<UringQueue, DeviceError> {
        let depth = depth.clamp(1, MAX_DEPTH);
        let file = shared
            .file
            .reopen(shared.read_only)
            .map_err(|err| DeviceError::open(&shared.file.path, "open a queue on", &err))?;
        let shares = current().and_then(|ring| Way::new(&ring, depth, file.as_raw_fd()).ok());
        let (main, wake_fd) = match shares {
            Some(way) => (way, None),
            None => {
                let way = Way::alone(Kind::Watched, depth, file.as_raw_fd())?;
                let wake_fd = way.lane.ring().wake_fd();
                (way, Some(wake_fd))
            }
        };
        let polled = if shared.polled { Way::alone(Kind::Polled, depth, file.as_raw_fd()).ok() } else { None };
        let discard_by = if shared.file.block_device { DiscardBy::Command } else { DiscardBy::Punch };
        let inner = Inner {
            trackers: Trackers::new(depth),
            waiting: VecDeque::with_capacity(depth as usize),
            main,
            polled,
            answers: Vec::with_capacity(depth as usize),
            discard_by,
            _file: file,
        };
        Ok(UringQueue { inner: RefCell::new(inner), wakers: RefCell::default(), wake_fd, shared })
    }
}

impl Inner {
    /// Starts what waits, as far as there is room.
    fn start_waiting(&mut self, shared: &Shared) -> usize {
        let mut refused = 0;
        while let Some(&slot) = self.waiting.front() {
            if let Err(failed) = shared.health.check() {
                self.finish(slot, Err(failed));
                refused += 1;
            } else if !self.start(slot) {
                break;
            }
            self.waiting.pop_front();
        }
        refused
    }

    /// False when there is no room.
    #[allow(unsafe_code)]
    #[inline]
    fn start(&mut self, slot: u32) -> bool {
        let Some(transfer) = self.trackers.op(slot) else { return true };
        // Polling is for plain transfers: a flush, also that within a FUA write, is no polled operation.
        let pollable = !transfer.unpolled && matches!(transfer.op, IoOp::Read { .. } | IoOp::Write { fua: false, .. });
        let way = match &self.polled {
            Some(polled) if pollable => polled,
            _ => &self.main,
        };
        let has_room = way.has_room();
        if has_room {
            transfer.discard_by = self.discard_by;
            // SAFETY: the transfer's memory does not move with its tracker, which keeps it until `answered`; and dropping drains.
            unsafe { way.start(slot, transfer) };
        }
        has_room
    }

    fn finish(&mut self, slot: u32, result: Result<(), DeviceError>) {
        self.trackers.finish(slot, |_| result);
    }

    /// Judges what the kernel has answered, on the polled ring or on the other; returns how much that was.
    fn take_answers(&mut self, polled: bool, shared: &Shared) -> usize {
        let Some(way) = (if polled { self.polled.as_ref() } else { Some(&self.main) }) else { return 0 };
        if let Err(err) = way.lane.look() {
            shared.health.fail(format!("io_uring_enter for {}: {err}", shared.file.path));
        }
        let mut answers = std::mem::take(&mut self.answers);
        way.lane.take(&mut answers);
        let count = answers.len();
        for answer in answers.drain(..) {
            self.answered(answer.key as u32, answer.result, polled, shared);
        }
        self.answers = answers;
        count
    }

    fn answered(&mut self, slot: u32, result: i32, from_polled: bool, shared: &Shared) {
        let Some(transfer) = self.trackers.op(slot) else { return };
        let next = match shared.health.check() {
            Err(failed) => Next::Done(Err(failed)),
            Ok(()) if from_polled && result == -libc::EOPNOTSUPP => {
                transfer.unpolled = true;
                Next::Again
            }
            Ok(()) => judge(transfer, &mut self.discard_by, result, shared),
        };
        match next {
            Next::Done(result) => self.finish(slot, result),
            Next::Again => self.waiting.push_back(slot),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut ways = self.polled.iter().chain([&self.main]);
        if !ways.all(|way| way.lane.drain(DROP_WAIT)) {
            tracing::error!("the kernel did not answer; the memory of its transfers is leaked");
            #[allow(clippy::mem_forget)] // the only safe end: the kernel may still write there
            std::mem::forget(std::mem::replace(&mut self.trackers, Trackers::new(1)));
        }
    }
}

fn judge(transfer: &mut Transfer, discard_by: &mut DiscardBy, result: i32, shared: &Shared) -> Next {
    let errno = -result;
    if matches!(errno, libc::EAGAIN | libc::EINTR) && transfer.tries < MAX_TRIES && !flushes(&transfer.op, shared) {
        transfer.tries += 1;
        return Next::Again;
    }
    match &transfer.op {
        op if result < 0 && flushes(op, shared) => {
            let reason = format!("{} of {}: {}", op.name(), shared.file.path, std::io::Error::from_raw_os_error(errno));
            Next::Done(Err(shared.health.fail(reason)))
        }
        IoOp::Flush => Next::Done(Ok(())),
        IoOp::Discard { .. } => judge_discard(transfer, discard_by, result),
        op if result < 0 => Next::Done(Err(op.error(errno))),
        op => {
            transfer.done_bytes += result as usize;
            transfer.tries += 1;
            let (at_bytes, len_bytes) = op.extent();
            let done_bytes = transfer.done_bytes as u64;
            if done_bytes == len_bytes {
                return Next::Done(Ok(()));
            }
            // Direct IO cannot go on within a sector, and no progress would go on for ever.
            let resumable = done_bytes.is_multiple_of(u64::from(shared.file.geometry.lba_bytes));
            if result == 0 || !resumable || transfer.tries > MAX_TRIES {
                return Next::Done(Err(DeviceError::Short { op: op.name(), at_bytes, len_bytes, done_bytes }));
            }
            Next::Again
        }
    }
}

fn judge_discard(transfer: &Transfer, discard_by: &mut DiscardBy, result: i32) -> Next {
    if result >= 0 {
        return Next::Done(Ok(()));
    }
    let unsupported = matches!(-result, libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY | libc::ENOSYS);
    match (transfer.discard_by, unsupported) {
        (DiscardBy::Command, true) => *discard_by = DiscardBy::Punch,
        (DiscardBy::Punch, true) => *discard_by = DiscardBy::Nothing,
        _ => return Next::Done(Err(transfer.op.error(-result))),
    }
    Next::Again
}

/// Operations whose failure says that *earlier* writes may be lost too. A FUA write through the page cache is one: the
/// kernel marks the pages clean after the error.
fn flushes(op: &IoOp, shared: &Shared) -> bool {
    match op {
        IoOp::Flush => true,
        IoOp::Write { fua, .. } => *fua && !shared.file.direct,
        _ => false,
    }
}

impl Operation for Transfer {
    #[inline]
    fn take_buf(&mut self) -> Option<DmaBuf> {
        self.op.take_buf()
    }
}

impl Tracking<Transfer> for UringQueue {
    fn trackers(&self) -> RefMut<'_, Trackers<Transfer>> {
        RefMut::map(self.inner.borrow_mut(), |inner| &mut inner.trackers)
    }

    fn spare_wakers(&self) -> &RefCell<Vec<Waker>> {
        &self.wakers
    }
}

impl Queue for UringQueue {
    fn geometry(&self) -> &Geometry {
        &self.shared.file.geometry
    }

    fn look_at_size(&self) -> Result<u64, DeviceError> {
        let file = &self.shared.file;
        let size_bytes = file.size_bytes().map_err(|err| DeviceError::open(&file.path, "find the size of", &err))?;
        self.shared.size.grow(size_bytes);
        Ok(size_bytes)
    }

    fn submit(&self, op: IoOp) -> Ticket {
        let inner = &mut *self.inner.borrow_mut();
        let checked = self
            .shared
            .health
            .check()
            .and_then(|()| op.check(self.geometry(), self.shared.size.get(), self.shared.read_only));
        let is_nothing = op.extent().1 == 0 && !matches!(op, IoOp::Flush);
        let transfer = Transfer::new(op, inner.discard_by);
        if checked.is_err() || is_nothing {
            return inner.trackers.start_done(transfer, checked);
        }
        let (ticket, accepted) = inner.trackers.start(transfer);
        if accepted && !(inner.waiting.is_empty() && inner.start(ticket.slot)) {
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
        let inner = &mut *borrowed;
        let shared = &*self.shared;
        let mut events = inner.start_waiting(shared);
        events += inner.take_answers(false, shared) + inner.take_answers(true, shared);
        // A reactor's own ring is submitted by the reactor.
        let unsubmitted = self.wake_fd.is_some() && inner.main.lane.ring().has_unsubmitted();
        let unannounced = unsubmitted || inner.polled.as_ref().is_some_and(|way| way.lane.in_flight() > 0);
        events = events.max(usize::from(unannounced));
        drop(borrowed);
        self.wake_waiters();
        events
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.wake_fd
    }

    fn in_flight(&self) -> usize {
        self.inner.borrow().trackers.in_flight()
    }
}

#[cfg(test)]
mod tests {
    //! Answers that a healthy kernel does not give on demand.
    use super::*;
    use crate::testing::block_on;
    use crate::uring::UringDevice;
    use crate::{Device, OpenMode};
    use std::rc::Rc;
    use vellum_base::DmaBuf;

    fn queue(dir: &tempfile::TempDir) -> Option<(UringDevice, Rc<UringQueue>)> {
        let path = dir.path().join("device");
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let device = UringDevice::open(path.to_str().unwrap(), OpenMode::default())
            .inspect_err(|err| eprintln!("SKIPPED: {err}"))
            .ok()?;
        let queue = Rc::new(UringQueue::open(device.shared.clone(), 4).unwrap());
        Some((device, queue))
    }

    /// Pretends that the kernel answered `result` to `op`; gives its future.
    fn answer(queue: &Rc<UringQueue>, op: IoOp, result: i32) -> crate::IoFuture {
        let queue_dyn: Rc<dyn Queue> = queue.clone();
        queue.inner.borrow_mut().waiting.push_back(u32::MAX); // of nobody: what comes now waits behind it
        let future = queue_dyn.start(op);
        let mut inner = queue.inner.borrow_mut();
        let slot = inner.waiting.pop_back().unwrap();
        inner.waiting.clear();
        inner.answered(slot, result, false, &queue.shared);
        future
    }

    #[test]
    fn a_short_or_interrupted_transfer_is_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let Some((_device, queue)) = queue(&dir) else { return };
        let dynamic: Rc<dyn Queue> = queue.clone();
        for (answered, untouched) in [(4096, 4096), (-libc::EAGAIN, 0), (-libc::EINTR, 0)] {
            let future = answer(&queue, IoOp::Read { at_bytes: 0, buf: DmaBuf::zeroed(12288) }, answered);
            let (result, buf) = block_on(&dynamic, future);
            result.unwrap();
            let buf = buf.unwrap();
            assert!(buf[..untouched].iter().all(|b| *b == 0), "what was said to be done is not done again");
            assert!(buf[untouched..].iter().all(|b| *b == 7));
        }
        let odd = answer(&queue, IoOp::Read { at_bytes: 0, buf: DmaBuf::new(12288) }, 100);
        assert!(matches!(block_on(&dynamic, odd).0, Err(DeviceError::Short { done_bytes: 100, .. })));
        let bad = answer(&queue, IoOp::Read { at_bytes: 0, buf: DmaBuf::new(4096) }, -libc::EIO);
        assert!(matches!(block_on(&dynamic, bad).0, Err(DeviceError::Io { errno: libc::EIO, .. })));
    }

    #[test]
    fn a_flush_that_fails_is_not_tried_again_and_fails_the_device() {
        for errno in [libc::EIO, libc::EAGAIN, libc::ENOSPC] {
            let dir = tempfile::tempdir().unwrap();
            let Some((device, queue)) = queue(&dir) else { return };
            let dynamic: Rc<dyn Queue> = queue.clone();
            let flush = answer(&queue, IoOp::Flush, -errno);
            let err = block_on(&dynamic, flush).0.unwrap_err();
            assert!(err.is_failed() && err.to_string().contains("flush"), "{err}");
            let other = device.open_queue(1).unwrap();
            assert!(block_on(&other, other.read(0, DmaBuf::new(4096))).unwrap_err().is_failed());
        }
    }
}
