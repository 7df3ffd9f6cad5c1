//! The channel between reactors, on plain threads: no wake-up is lost, whatever the order in which things happen.
//!
//! Here the machine chooses that order. `cargo xtask miri` runs the same under Miri, which chooses for many seeds, lets weak
//! memory show what it may show, and says when everybody waits for ever.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use vellum_rt::channel::bounded;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls until it is done, parked in between: a lost wake-up is a thread that sleeps for ever.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut work = pin!(work);
    loop {
        match work.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}

const ROUNDS: usize = if cfg!(miri) { 1 } else { 300 };
const MESSAGES: u32 = if cfg!(miri) { 4 } else { 60 };

/// Two senders, room for `capacity`: both sides have to wait for the other.
fn all_arrive(capacity: usize) {
    let (sender, mut receiver) = bounded::<(u32, u32)>(capacity);
    let senders: Vec<_> = (0..2)
        .map(|of| {
            let sender = sender.clone();
            thread::spawn(move || {
                for n in 0..MESSAGES {
                    block_on(sender.send((of, n))).expect("the receiver is there");
                }
            })
        })
        .collect();
    drop(sender);
    let mut next = [0; 2];
    while let Some((of, n)) = block_on(receiver.recv()) {
        assert_eq!(n, next[of as usize], "in the order of each sender");
        next[of as usize] += 1;
    }
    assert_eq!(next, [MESSAGES; 2], "the end comes after everything that was sent");
    senders.into_iter().for_each(|thread| thread.join().expect("a sender"));
}

#[test]
fn everything_arrives_and_then_the_end() {
    for round in 0..ROUNDS {
        all_arrive(1 + round % 3);
    }
}

#[test]
fn a_receiver_that_goes_lets_every_sender_go() {
    for _ in 0..ROUNDS {
        let (sender, mut receiver) = bounded::<u32>(1);
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let sender = sender.clone();
                thread::spawn(move || while block_on(sender.send(1)).is_ok() {})
            })
            .collect();
        assert_eq!(block_on(receiver.recv()), Some(1));
        drop(receiver);
        senders.into_iter().for_each(|thread| thread.join().expect("a sender"));
        assert!(sender.is_closed());
    }
}

/// Who waits for room and gives up passes on the wake-up that it was given.
#[test]
fn a_sender_that_gives_up_takes_nobodys_room() {
    for _ in 0..ROUNDS {
        let (sender, mut receiver) = bounded::<u32>(1);
        assert!(sender.try_send(0).is_ok());
        let other = sender.clone();
        let waits = thread::spawn(move || block_on(other.send(1)).expect("the receiver is there"));
        let impatient = thread::spawn(move || {
            let mut send = Box::pin(sender.send(2));
            let _ = send.as_mut().poll(&mut Context::from_waker(Waker::noop())); // sent, or a place in the queue
        });
        let mut got = Vec::new();
        while let Some(message) = block_on(receiver.recv()) {
            got.push(message);
        }
        waits.join().expect("a sender");
        impatient.join().expect("a sender");
        assert!(got.contains(&0) && got.contains(&1), "{got:?}");
    }
}
