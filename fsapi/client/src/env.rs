//! The client's needs of the runtime, in one place.

use std::future::Future;
use std::time::Duration;

use vellum_rt::Class;

pub(crate) use vellum_rt::random_u64;

pub(crate) fn now_ns() -> u64 {
    vellum_rt::now().0
}

pub(crate) fn spawn(name: &'static str, task: impl Future<Output = ()> + 'static) {
    vellum_rt::spawn(Class::Request, name, task).detach();
}

pub(crate) async fn sleep(time: Duration) {
    vellum_rt::sleep(time).await;
}

/// Waits for `done`, but not longer than `time`.
pub(crate) async fn or_timeout(time: Duration, done: impl Future<Output = ()>) {
    let _ = vellum_rt::timeout(time, done).await; // either way it is over
}
