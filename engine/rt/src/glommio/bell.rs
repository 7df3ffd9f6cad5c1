//! Wakes the reactor's one glommio task.
//!
//! From its own thread (glommio's IO) by glommio's waker. From others through a socket that the task receives from, and not
//! by that waker: when the event of such a wake comes after its message was taken, glommio 0.9 parks although its task is
//! ready to run, and the wake is lost (<https://github.com/glommio/glommio/pull/53>, after 0.9).
//!
//! What outlives the reactor (wakers in other hands, operations that the kernel has not answered) holds this, and never
//! glommio's waker: one of those left over would keep glommio's task for ever.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};
use std::thread::{self, ThreadId};

use crate::wake::Doorbell;

pub(super) struct Bell {
    thread: ThreadId,
    waker: Mutex<Option<Waker>>,
    rope: UnixStream,
}

impl Bell {
    /// Of the calling thread's reactor; with the socket that it must receive from.
    pub fn new() -> io::Result<(Arc<Bell>, OwnedFd)> {
        let (rope, heard) = UnixStream::pair()?;
        rope.set_nonblocking(true)?;
        Ok((Arc::new(Bell { thread: thread::current().id(), waker: Mutex::default(), rope }), heard.into()))
    }

    /// From now on it wakes `waker`; nobody when `None`. On the reactor's thread.
    pub fn hang(&self, waker: Option<Waker>) {
        let before = std::mem::replace(&mut *self.waker.lock().unwrap_or_else(PoisonError::into_inner), waker);
        drop(before); // outside the lock
    }

    /// Makes the socket readable.
    pub fn pull(&self) {
        // It fails only when the socket is full, and so is readable anyway, or when the reactor is gone.
        let _ = (&self.rope).write(&[1]);
    }

    fn sound(&self) {
        if thread::current().id() != self.thread {
            self.pull();
        } else if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake_by_ref();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.sound();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.sound();
    }
}

/// The reactor's doorbell.
pub(super) struct Ringer(pub Arc<Bell>);

impl Doorbell for Ringer {
    fn ring(&self) {
        self.0.sound();
    }
}
