//! Primitives between the tasks of one reactor: no atomics, no `Send`.
//!
//! Fairness: all waiters are served in the order in which they began to wait. A dropped waiter passes on what it was
//! already given.

mod channel;
mod event;
mod mutex;
mod notify;
mod oneshot;
mod rwlock;
mod semaphore;
mod waiters;

pub use channel::{Receiver, SendError, Sender, channel};
pub use event::Event;
pub use mutex::{Mutex, MutexGuard};
pub use notify::Notify;
pub use oneshot::{Closed, OneshotReceiver, OneshotSender, oneshot};
pub use rwlock::{ReadGuard, RwLock, WriteGuard};
pub use semaphore::{OwnedPermit, Permit, Semaphore};
