//! Waiting for one of two.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

pub(crate) enum First<A, B> {
    A(A),
    B(B),
}

/// Whichever is done first, `a` when both are; the other one is dropped.
pub(crate) async fn first_of<A: Future, B: Future>(a: A, b: B) -> First<A::Output, B::Output> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = a.as_mut().poll(cx) {
            return Poll::Ready(First::A(output));
        }
        b.as_mut().poll(cx).map(First::B)
    })
    .await
}
