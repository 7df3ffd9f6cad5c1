//! The ring that the thread's reactor sleeps on.

use std::cell::RefCell;
use std::rc::Rc;

use crate::Ring;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Ring>>> = const { RefCell::new(None) };
}

/// Takes the ring away from the thread when dropped.
#[must_use = "dropping it takes the ring away"]
#[derive(Debug)]
pub struct Installed(());

/// From now on queues that this thread opens use `ring`: the caller submits, waits and reaps for them.
pub fn install(ring: &Rc<Ring>) -> Installed {
    CURRENT.with(|current| *current.borrow_mut() = Some(ring.clone()));
    Installed(())
}

impl Drop for Installed {
    fn drop(&mut self) {
        let ring = CURRENT.try_with(|current| current.borrow_mut().take());
        drop(ring); // outside the borrow
    }
}

/// The ring that somebody sleeps on for this thread, if there is one.
pub fn current() -> Option<Rc<Ring>> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}
