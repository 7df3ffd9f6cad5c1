//! A bounded queue between tasks of one reactor.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::semaphore::Semaphore;

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receiver_gone: bool,
    receiver: Option<Waker>,
}

struct Shared<T> {
    state: RefCell<State<T>>,
    room: Semaphore,
    capacity: usize,
}

/// The message could not be sent; it comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError<T> {
    #[error("the queue is full")]
    Full(T),
    #[error("the receiver is gone")]
    Closed(T),
}

/// A queue of at most `capacity` (at least 1) messages.
pub fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let capacity = capacity.max(1);
    let state = State { queue: VecDeque::new(), senders: 1, receiver_gone: false, receiver: None };
    let shared = Rc::new(Shared { state: RefCell::new(state), room: Semaphore::new(capacity), capacity });
    (Sender { shared: shared.clone() }, Receiver { shared })
}

pub struct Sender<T> {
    shared: Rc<Shared<T>>,
}

pub struct Receiver<T> {
    shared: Rc<Shared<T>>,
}

impl<T> Sender<T> {
    pub fn try_send(&self, message: T) -> Result<(), SendError<T>> {
        if self.is_closed() {
            return Err(SendError::Closed(message));
        }
        match self.shared.room.try_acquire(1) {
            Some(permit) => permit.forget(),
            None => return Err(SendError::Full(message)),
        }
        self.push(message);
        Ok(())
    }

    /// Waits for room. `Closed` when the receiver is gone.
    pub async fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.shared.room.acquire(1).await.forget();
        if self.is_closed() {
            self.shared.room.add_permits(1); // let the next one find out
            return Err(SendError::Closed(message));
        }
        self.push(message);
        Ok(())
    }

    pub fn is_closed(&self) -> bool {
        self.shared.state.borrow().receiver_gone
    }

    fn push(&self, message: T) {
        let waker = {
            let mut state = self.shared.state.borrow_mut();
            state.queue.push_back(message);
            state.receiver.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.shared.state.borrow_mut().senders += 1;
        Sender { shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.shared.state.borrow_mut();
            state.senders -= 1;
            if state.senders == 0 { state.receiver.take() } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    pub fn try_recv(&mut self) -> Option<T> {
        let message = self.shared.state.borrow_mut().queue.pop_front()?;
        self.shared.room.add_permits(1);
        Some(message)
    }

    /// The next message; `None` when all senders are gone and the queue is empty. Dropping the future loses none.
    pub async fn recv(&mut self) -> Option<T> {
        std::future::poll_fn(|cx| {
            if let Some(message) = self.try_recv() {
                return Poll::Ready(Some(message));
            }
            let mut state = self.shared.state.borrow_mut();
            if state.senders == 0 {
                return Poll::Ready(None);
            }
            state.receiver = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    pub fn len(&self) -> usize {
        self.shared.state.borrow().queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let queue = {
            let mut state = self.shared.state.borrow_mut();
            state.receiver_gone = true;
            std::mem::take(&mut state.queue)
        };
        drop(queue);
        self.shared.room.add_permits(self.shared.capacity); // all that wait for room find out
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("local::Sender")
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "local::Receiver({} queued)", self.len())
    }
}
