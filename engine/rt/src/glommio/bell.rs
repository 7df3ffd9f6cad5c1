//! Wakes the reactor's one glommio task.
//!
//! What outlives the reactor (wakers in other threads' hands, operations that the kernel has not answered) holds this,
//! and never glommio's own waker: one of those left over would keep glommio's task, and with it an eventfd, for ever.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use crate::wake::Doorbell;

#[derive(Default)]
pub(super) struct Bell(Mutex<Option<Waker>>);

impl Bell {
    /// From now on it wakes `waker`; nobody when `None`.
    pub fn hang(&self, waker: Option<Waker>) {
        let before = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), waker);
        drop(before); // outside the lock
    }

    fn sound(&self) {
        if let Some(waker) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
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
