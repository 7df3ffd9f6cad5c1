//! STUB, not committed.
use std::future::Future;
use std::time::Duration;
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Instant(pub u64);
impl Instant { pub fn elapsed(self) -> Duration { unreachable!() } }
pub struct WallTime { pub secs: i64, pub nanos: u32 }
pub enum Class { Request, Commit, Compaction, Scrub }
pub struct JoinHandle<T>(std::marker::PhantomData<T>);
impl<T> JoinHandle<T> { pub fn detach(self) {} pub fn cancel(&self) {} }
pub fn spawn<F: Future + 'static>(_c: Class, _n: &'static str, _f: F) -> JoinHandle<F::Output> { unreachable!() }
pub fn now() -> Instant { unreachable!() }
pub fn wall_clock() -> WallTime { unreachable!() }
pub async fn sleep(_d: Duration) {}
pub async fn yield_if_needed() {}
