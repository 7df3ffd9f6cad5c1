//! Waiting for a condition on one reactor.
//!
//! No lost wakeups: the condition is checked in the same poll that registers the waker, and nothing else runs between
//! the two. Waking wakes all; whoever finds its condition unmet waits again.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Tasks that wait for some state to change.
#[derive(Default)]
pub(crate) struct WakeList {
    wakers: RefCell<Vec<Waker>>,
    /// Counts wakings, so that a waiter knows whether its place in `wakers` is still its own.
    round: Cell<u64>,
}

impl WakeList {
    pub fn wake_all(&self) {
        if self.wakers.borrow().is_empty() {
            return;
        }
        self.round.set(self.round.get() + 1);
        let wakers = std::mem::take(&mut *self.wakers.borrow_mut());
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until `check` gives something. It is asked at once and after every waking.
    pub fn until<'a, T, F: FnMut() -> Option<T> + Unpin + 'a>(&'a self, check: F) -> impl Future<Output = T> + 'a
    where
        T: 'a,
    {
        Until { list: self, check, place: None }
    }
}

struct Until<'a, F> {
    list: &'a WakeList,
    check: F,
    /// Round and index of our waker in the list.
    place: Option<(u64, usize)>,
}

impl<T, F: FnMut() -> Option<T> + Unpin> Future for Until<'_, F> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = self.get_mut();
        if let Some(value) = (this.check)() {
            return Poll::Ready(value);
        }
        let round = this.list.round.get();
        let mut wakers = this.list.wakers.borrow_mut();
        match this.place {
            Some((r, at)) if r == round && at < wakers.len() => wakers[at].clone_from(cx.waker()),
            _ => {
                this.place = Some((round, wakers.len()));
                wakers.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}
