//! How a long computation shares its core.

use std::task::Poll;

use crate::reactor;

/// Lets other ready tasks and the IO run before this task goes on.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// True when the current task has been polled for longer than the reactor's time slice.
pub fn slice_used_up() -> bool {
    reactor::with(|reactor| reactor.slice_used_up())
}

/// Yields if the time slice is used up: for loops over much data, once per item of some microseconds.
pub async fn yield_if_needed() {
    if slice_used_up() {
        yield_now().await;
    }
}
