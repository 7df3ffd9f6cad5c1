//! The batches of one client: handed to the store strictly in order, several at a time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use vellum_base::{BatchNo, Epoch};
use vellum_rt::local::Notify;
use vellum_wire::WireError;

use crate::backend::BackendFuture;

/// Batches of one client that the store works on at a time; further ones wait for their turn.
const IN_FLIGHT: usize = 16;

type Done = Box<dyn FnOnce(Result<Epoch, WireError>)>;

struct Running {
    number: BatchNo,
    future: BackendFuture<Epoch>,
    done: Option<Done>,
}

#[derive(Default)]
pub(crate) struct Commits {
    running: RefCell<VecDeque<Running>>,
    /// Newest number that was handed in, applied or not.
    received: Cell<BatchNo>,
    waker: RefCell<Option<Waker>>,
    changed: Notify,
    stopped: Cell<bool>,
}

impl Commits {
    /// `done` is called when the store has applied or refused the batch.
    pub(crate) fn push(&self, number: BatchNo, future: BackendFuture<Epoch>, done: Done) {
        self.received.set(self.received.get().max(number));
        self.running.borrow_mut().push_back(Running { number, future, done: Some(done) });
        self.wake();
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Runs until [`Self::stop`].
    pub(crate) async fn run(self: Rc<Self>) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut finished = Vec::new();
            {
                let mut running = self.running.borrow_mut();
                // From the front, so that futures are polled first in the order of their numbers.
                for running in running.iter_mut().take(IN_FLIGHT) {
                    if let Poll::Ready(result) = running.future.as_mut().poll(cx) {
                        finished.extend(running.done.take().map(|done| (done, result)));
                    }
                }
                running.retain(|running| running.done.is_some());
            }
            if finished.is_empty() {
                break;
            }
            for (done, result) in finished {
                done(result);
            }
            self.changed.notify_all();
        }
        if self.stopped.get() {
            return Poll::Ready(());
        }
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits until no batch up to `through` is in work.
    pub(crate) async fn settled(&self, through: BatchNo) {
        loop {
            let changed = self.changed.notified();
            if !self.running.borrow().iter().any(|running| running.number <= through) {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn in_work(&self) -> usize {
        self.running.borrow().len()
    }

    /// Lets [`Self::run`] end; batches in work are dropped.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        let dropped = std::mem::take(&mut *self.running.borrow_mut());
        drop(dropped);
        self.changed.notify_all();
        self.wake();
    }
}
