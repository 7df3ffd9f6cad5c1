//! The future that a reactor on the kernel is run for.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::Class;
use crate::reactor::Reactor;

/// It may borrow, so it is no task of the slab: a stand-in task is scheduled for it and lends it its waker.
pub(crate) struct MainFuture<F> {
    future: Pin<Box<F>>,
    due: Rc<RefCell<Option<Waker>>>,
}

impl<F: Future> MainFuture<F> {
    /// Its stand-in becomes a task of the current reactor.
    pub fn new(future: F) -> MainFuture<F> {
        let due: Rc<RefCell<Option<Waker>>> = Rc::default();
        let stand_in = due.clone();
        crate::spawn(Class::Request, "main", async move {
            poll_fn(|cx| {
                *stand_in.borrow_mut() = Some(cx.waker().clone());
                Poll::<()>::Pending
            })
            .await;
        })
        .detach();
        MainFuture { future: Box::pin(future), due }
    }

    /// Polls it if its stand-in has run since; its output when it is done.
    pub fn poll_if_due(&mut self, reactor: &Reactor) -> Option<F::Output> {
        let waker = self.due.borrow_mut().take()?;
        let mut output = None;
        reactor.run_as("main", Class::Request, || {
            if let Poll::Ready(done) = self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
                output = Some(done);
            }
        });
        output
    }
}
