//! Waiting until something of this reactor is so: wakers, and a condition that is looked at again after each wake.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::task::{Poll, Waker};

#[derive(Default)]
pub struct Gate {
    waiting: RefCell<Vec<Waker>>,
}

impl Gate {
    /// Ready with the value as soon as `condition` gives one; whoever changes what it looks at calls [`Gate::open`].
    pub fn until<'a, T: 'a>(&'a self, mut condition: impl FnMut() -> Option<T> + 'a) -> impl Future<Output = T> + 'a {
        poll_fn(move |cx| match condition() {
            Some(value) => Poll::Ready(value),
            None => {
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
                    waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
        })
    }

    /// Everyone who waits looks again.
    pub fn open(&self) {
        let woken = std::mem::take(&mut *self.waiting.borrow_mut());
        woken.into_iter().for_each(Waker::wake);
    }
}
