//! Opening a socket to the one that listens, where several might: a cluster's leader.
//!
//! The endpoints are tried one after the other, from the one that is likeliest, each with a short head start; whoever
//! accepts first is greeted. So a dead host (which answers nothing) costs no more than the head start, and a living
//! follower (which refuses) nothing. One try of all of them is one attempt, after which the session backs off: neither a
//! dead leader nor its successors are hammered (scenario 18).

use std::cell::Cell;
use std::io;
use std::time::Duration;

use vellum_rt::local::channel;
use vellum_rt::net::{Endpoint, Stream};
use vellum_rt::{Class, JoinHandle, spawn, timeout};

/// One endpoint is tried alone for this part of an attempt (100 ms of a second) before the next one is tried too.
const HEAD_START: u32 = 10;
/// All head starts together take so much of an attempt at most: every endpoint is tried within one attempt, however many there are.
const HEAD_STARTS_PERCENT: u32 = 40;

/// Where to begin the next time.
#[derive(Default)]
pub(crate) struct Rotation {
    first: Cell<usize>,
    /// The one that accepted last.
    chosen: Cell<usize>,
}

impl Rotation {
    /// The engine greeted us: it is the first to be asked again.
    pub(crate) fn greeted(&self) {
        self.first.set(self.chosen.get());
    }

    /// Until it has greeted us, another one comes first: it may accept and never serve.
    fn accepted(&self, index: usize) {
        self.chosen.set(index);
        self.first.set(index + 1);
    }
}

/// Tasks that end with their owner.
struct Attempts(Vec<JoinHandle<()>>);

impl Drop for Attempts {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::cancel);
    }
}

/// The first of `endpoints` that accepts; the last one's error when none does. It is given so long as `attempt`.
pub(crate) async fn dial_any<'a>(
    endpoints: &'a [Endpoint],
    rotation: &Rotation,
    attempt: Duration,
) -> io::Result<(&'a Endpoint, Stream)> {
    let count = endpoints.len();
    let first = rotation.first.get();
    let mut rest = (0..count).map(|i| (first + i) % count).filter_map(|i| Some((i, endpoints.get(i)?.clone())));
    let (answers, mut answered) = channel(count.max(1));
    let mut attempts = Attempts(Vec::with_capacity(count));
    let all = attempt * HEAD_STARTS_PERCENT / 100;
    let head_start = (attempt / HEAD_START).min(all / u32::try_from(count.max(1)).unwrap_or(u32::MAX));
    let mut failed = 0;
    let mut error = io::Error::new(io::ErrorKind::InvalidInput, "no endpoint to connect to");
    while failed < count {
        let more = match rest.next() {
            Some((index, endpoint)) => {
                let answers = answers.clone();
                attempts.0.push(spawn(Class::Request, "link dial", async move {
                    let _ = answers.send((index, Stream::connect(&endpoint).await)).await;
                }));
                attempts.0.len() < count
            }
            None => false,
        };
        let answer = if more { timeout(head_start, answered.recv()).await.ok() } else { Some(answered.recv().await) };
        match answer.flatten() {
            Some((index, Ok(stream))) => {
                rotation.accepted(index);
                return endpoints.get(index).map(|endpoint| (endpoint, stream)).ok_or(error);
            }
            Some((_, Err(e))) => {
                failed += 1;
                error = e;
            }
            None => {} // the head start is over
        }
    }
    Err(error)
}
