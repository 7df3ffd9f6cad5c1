//! Waking: how a task becomes ready, from its own reactor's thread and from any other.
//!
//! A task's waker is one `Arc<WakeCell>` made at spawn, so that a wake allocates nothing. On the task's own thread a
//! wake is a push to the local ready queue. From elsewhere it goes through the reactor's bounded lock-free remote
//! queue, and the eventfd is written only if the reactor has declared that it sleeps.
//!
//! Sleep protocol (Dekker): the reactor stores `sleeping`, fences, and looks at the queue once more; the waker pushes,
//! fences, and looks at `sleeping`. One of the two sees the other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;

use crate::Class;
use crate::reactor;
use crate::task::TaskId;

/// Remote wakes queued without a lock; more (rare: each task is queued at most once) go to a locked list.
const REMOTE_QUEUE: usize = 1024;

/// Ends a reactor's sleep; called from any thread.
pub(crate) trait Doorbell: Send + Sync {
    fn ring(&self);
}

/// The part of a reactor that other threads may touch.
pub(crate) struct Remote {
    wakes: SyncSender<(Class, TaskId)>,
    overflow: Mutex<Vec<(Class, TaskId)>>,
    overflowed: AtomicUsize,
    sleeping: AtomicBool,
    doorbell: Box<dyn Doorbell>,
}

/// The reactor's end of its remote wakes.
pub(crate) struct RemoteWakes {
    wakes: Receiver<(Class, TaskId)>,
    remote: Arc<Remote>,
}

pub(crate) fn remote(doorbell: Box<dyn Doorbell>) -> RemoteWakes {
    let (sender, wakes) = sync_channel(REMOTE_QUEUE);
    let remote = Arc::new(Remote {
        wakes: sender,
        overflow: Mutex::new(Vec::new()),
        overflowed: AtomicUsize::new(0),
        sleeping: AtomicBool::new(false),
        doorbell,
    });
    RemoteWakes { wakes, remote }
}

impl Remote {
    fn push(&self, class: Class, task: TaskId) {
        match self.wakes.try_send((class, task)) {
            Ok(()) => {}
            Err(TrySendError::Full(wake)) => {
                let mut overflow = self.overflow.lock().unwrap_or_else(PoisonError::into_inner);
                overflow.push(wake);
                self.overflowed.store(overflow.len(), Ordering::Release);
            }
            Err(TrySendError::Disconnected(_)) => return, // the reactor is gone, and the task with it
        }
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            self.doorbell.ring();
        }
    }
}

impl RemoteWakes {
    pub fn remote(&self) -> &Arc<Remote> {
        &self.remote
    }

    /// Hands every queued wake to `ready`; returns how many.
    pub fn drain(&self, mut ready: impl FnMut(Class, TaskId)) -> usize {
        let mut count = 0;
        while let Ok((class, task)) = self.wakes.try_recv() {
            ready(class, task);
            count += 1;
        }
        if self.remote.overflowed.load(Ordering::Acquire) > 0 {
            let mut overflow = self.remote.overflow.lock().unwrap_or_else(PoisonError::into_inner);
            self.remote.overflowed.store(0, Ordering::Release);
            for (class, task) in overflow.drain(..) {
                ready(class, task);
                count += 1;
            }
        }
        count
    }

    /// Declares that the reactor is about to sleep. The caller drains once more afterwards and stays awake if that
    /// finds anything.
    pub fn set_sleeping(&self) {
        self.remote.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub fn set_awake(&self) {
        self.remote.sleeping.store(false, Ordering::Release);
    }
}

/// Shared state of one task: what its wakers and its handle hold.
pub(crate) struct WakeCell {
    remote: Arc<Remote>,
    task: TaskId,
    class: Class,
    queued: AtomicBool,
    cancelled: AtomicBool,
}

impl WakeCell {
    pub fn new(remote: Arc<Remote>, task: TaskId, class: Class) -> WakeCell {
        WakeCell { remote, task, class, queued: AtomicBool::new(false), cancelled: AtomicBool::new(false) }
    }

    /// Called by the reactor just before it polls: wakes from here on queue the task again.
    pub fn begin_poll(&self) {
        self.queued.swap(false, Ordering::AcqRel);
    }

    pub fn cancel(self: &Arc<Self>) {
        self.cancelled.store(true, Ordering::Release);
        self.wake_by_ref();
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

impl Wake for WakeCell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        if !reactor::make_ready_if_current(&self.remote, self.class, self.task) {
            self.remote.push(self.class, self.task);
        }
    }
}
