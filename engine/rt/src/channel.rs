//! Bounded channels between reactors (threads): many senders, one receiver.
//!
//! The queue is the standard library's lock-free array channel; what is added is waking. Neither side takes a lock
//! while the other does not wait. Parking is Dekker's: the receiver leaves its waker, raises `parked`, fences and looks
//! again; a sender pushes, fences, and looks at `parked`; likewise for senders that wait for room.
//!
//! In the simulation a message carries the time at which it arrives; order is kept. Natively that time is 0.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::mpsc::{self, TryRecvError, TrySendError as Full};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::reactor;
use crate::time::Instant;
use crate::timer::sleep_until;

pub use crate::local::SendError;

#[derive(Default)]
struct Shared {
    parked: AtomicBool,
    receiver: Mutex<Option<Waker>>,
    waiting_senders: AtomicUsize,
    senders: Mutex<VecDeque<(u64, Waker)>>,
    next_ticket: AtomicUsize,
    live_senders: AtomicUsize,
    receiver_gone: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn wake_receiver(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::AcqRel) {
            let waker = lock(&self.receiver).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Room was made for one: lets the sender that waits longest try.
    fn wake_sender(&self) {
        fence(Ordering::SeqCst);
        if self.waiting_senders.load(Ordering::Relaxed) > 0 {
            let first = {
                let mut senders = lock(&self.senders);
                let first = senders.pop_front();
                self.waiting_senders.store(senders.len(), Ordering::Release);
                first
            };
            if let Some((_, waker)) = first {
                waker.wake();
            }
        }
    }

    fn wake_all_senders(&self) {
        let all = {
            let mut senders = lock(&self.senders);
            self.waiting_senders.store(0, Ordering::Release);
            std::mem::take(&mut *senders)
        };
        all.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

/// A channel that holds `capacity` (at least 1) messages.
pub fn bounded<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let (queue, messages) = mpsc::sync_channel(capacity.max(1));
    let shared = Arc::new(Shared { live_senders: AtomicUsize::new(1), ..Shared::default() });
    let receiver = Receiver { messages, shared: shared.clone(), next: None };
    (Sender { queue, shared }, receiver)
}

pub struct Sender<T> {
    queue: mpsc::SyncSender<(Instant, T)>,
    shared: Arc<Shared>,
}

impl<T: Send> Sender<T> {
    pub fn try_send(&self, message: T) -> Result<(), SendError<T>> {
        self.push((arrival(), message)).map_err(|e| match e {
            SendError::Full((_, message)) => SendError::Full(message),
            SendError::Closed((_, message)) => SendError::Closed(message),
        })
    }

    /// Waits for room. `Closed` when the receiver is gone.
    pub async fn send(&self, message: T) -> Result<(), SendError<T>> {
        let mut place = Place { shared: &self.shared, ticket: None };
        let mut message = Some((arrival(), message));
        std::future::poll_fn(|cx| {
            for parked in [false, true] {
                let Some(unsent) = message.take() else { unreachable!("polled after it was done") };
                match self.push(unsent) {
                    Ok(()) => return Poll::Ready(Ok(())),
                    Err(SendError::Closed((_, message))) => return Poll::Ready(Err(SendError::Closed(message))),
                    Err(SendError::Full(back)) => message = Some(back),
                }
                if !parked {
                    place.park(cx.waker());
                }
            }
            Poll::Pending
        })
        .await
    }

    /// True when the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.receiver_gone.load(Ordering::Acquire)
    }

    fn push(&self, message: (Instant, T)) -> Result<(), SendError<(Instant, T)>> {
        match self.queue.try_send(message) {
            Ok(()) => {
                self.shared.wake_receiver();
                Ok(())
            }
            Err(Full::Full(message)) => Err(SendError::Full(message)),
            Err(Full::Disconnected(message)) => Err(SendError::Closed(message)),
        }
    }
}

/// When a message that is sent now may be seen: at once, except in the simulation.
fn arrival() -> Instant {
    match reactor::current() {
        Some(reactor) => match reactor.backend.channel_delay() {
            Duration::ZERO => Instant(0),
            delay => reactor.backend.now() + delay,
        },
        None => Instant(0),
    }
}

/// A waiting sender's place in the queue.
struct Place<'a> {
    shared: &'a Shared,
    ticket: Option<u64>,
}

impl Place<'_> {
    fn park(&mut self, waker: &Waker) {
        let mut senders = lock(&self.shared.senders);
        if let Some(ticket) = self.ticket
            && let Some(place) = senders.iter_mut().find(|place| place.0 == ticket)
        {
            place.1.clone_from(waker);
        } else {
            let ticket = self.shared.next_ticket.fetch_add(1, Ordering::Relaxed) as u64;
            senders.push_back((ticket, waker.clone()));
            self.ticket = Some(ticket);
        }
        self.shared.waiting_senders.store(senders.len(), Ordering::Release);
        drop(senders);
        fence(Ordering::SeqCst);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let was_woken = {
            let mut senders = lock(&self.shared.senders);
            let before = senders.len();
            senders.retain(|place| place.0 != ticket);
            self.shared.waiting_senders.store(senders.len(), Ordering::Release);
            senders.len() == before
        };
        if was_woken {
            self.shared.wake_sender(); // it may not have used the room (a spare wake does no harm)
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.shared.live_senders.fetch_add(1, Ordering::Relaxed);
        Sender { queue: self.queue.clone(), shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.live_senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.wake_receiver();
        }
    }
}

/// The receiving end. It may be moved to another thread; it waits on whichever reactor polls it.
pub struct Receiver<T> {
    messages: mpsc::Receiver<(Instant, T)>,
    shared: Arc<Shared>,
    /// Taken from the queue, but still on its way (simulation only).
    next: Option<(Instant, T)>,
}

enum Taken<T> {
    Message(T),
    /// It is in `next`, and arrives then.
    OnItsWay(Instant),
    Empty,
    Closed,
}

impl<T: Send> Receiver<T> {
    /// The next message, if one is there.
    pub fn try_recv(&mut self) -> Option<T> {
        match self.take() {
            Taken::Message(message) => Some(message),
            _ => None,
        }
    }

    /// The next message; `None` when all senders are gone and the queue is empty. Dropping the future loses none.
    pub async fn recv(&mut self) -> Option<T> {
        loop {
            match std::future::poll_fn(|cx| self.poll_take(cx.waker())).await {
                Taken::Message(message) => return Some(message),
                Taken::OnItsWay(arrival) => sleep_until(arrival).await,
                Taken::Empty | Taken::Closed => return None,
            }
        }
    }

    fn poll_take(&mut self, waker: &Waker) -> Poll<Taken<T>> {
        match self.take() {
            Taken::Empty => {}
            taken => return Poll::Ready(taken),
        }
        {
            let mut parked = lock(&self.shared.receiver);
            match &mut *parked {
                Some(known) if known.will_wake(waker) => {}
                other => *other = Some(waker.clone()),
            }
        }
        self.shared.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        match self.take() {
            Taken::Empty => Poll::Pending,
            taken => Poll::Ready(taken),
        }
    }

    fn take(&mut self) -> Taken<T> {
        if self.next.is_none() {
            // Looked at before the queue: a sender that is gone has sent what it had.
            let closed = self.shared.live_senders.load(Ordering::Acquire) == 0;
            match self.messages.try_recv() {
                Ok(message) => {
                    self.shared.wake_sender();
                    self.next = Some(message);
                }
                Err(TryRecvError::Empty) if !closed => return Taken::Empty,
                Err(_) => return Taken::Closed,
            }
        }
        match self.next.take() {
            Some((arrival, message)) if arrival == Instant(0) || arrival <= reactor::now() => Taken::Message(message),
            Some((arrival, message)) => {
                self.next = Some((arrival, message));
                Taken::OnItsWay(arrival)
            }
            None => Taken::Empty,
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receiver_gone.store(true, Ordering::Release);
        // Empties the queue and refuses what comes, before the senders that wait are told.
        let (_, nothing) = mpsc::sync_channel(0);
        self.messages = nothing;
        self.shared.wake_all_senders();
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("channel::Sender")
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("channel::Receiver")
    }
}
