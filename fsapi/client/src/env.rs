//! The client's needs of the runtime, in one place.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

pub(crate) use crate::testing::executor::{now_ns, random_u64};

pub(crate) fn spawn(name: &'static str, task: impl Future<Output = ()> + 'static) {
    let _ = name;
    crate::testing::executor::spawn_detached(task);
}

pub(crate) async fn sleep(time: Duration) {
    crate::testing::executor::sleep(time).await;
}

/// Waits for `done`, but not longer than `time`.
pub(crate) async fn or_timeout(time: Duration, done: impl Future<Output = ()>) {
    let (mut done, mut timer) = (pin!(done), pin!(sleep(time)));
    poll_fn(|cx| {
        let over = done.as_mut().poll(cx).is_ready() || timer.as_mut().poll(cx).is_ready();
        if over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
