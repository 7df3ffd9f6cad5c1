//! How tasks wait for descriptors under glommio.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use vellum_base::prng::Prng;

use super::wait::Wait;
use crate::kernel::unpredictable;

pub(crate) struct Driver {
    prng: RefCell<Prng>,
    /// Waits that have ended since the last turn.
    completions: Cell<u64>,
}

impl Driver {
    pub fn new() -> Driver {
        Driver { prng: RefCell::new(unpredictable()), completions: Cell::new(0) }
    }

    pub fn random_u64(&self) -> u64 {
        self.prng.borrow_mut().next_u64()
    }

    /// Tries once: glommio's rings are looked at only when its task has returned, so trying again is no cheaper.
    pub fn attempt<T>(&self, mut attempt: impl FnMut() -> Result<T, Errno>) -> Option<Result<T, Errno>> {
        loop {
            match attempt() {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                done => return Some(done),
            }
        }
    }

    pub async fn readable(&self, file: &Rc<OwnedFd>) -> io::Result<()> {
        self.wait(file, EventFlags::IN).await
    }

    pub async fn writable(&self, file: &Rc<OwnedFd>) -> io::Result<()> {
        self.wait(file, EventFlags::OUT).await
    }

    async fn wait(&self, file: &Rc<OwnedFd>, events: EventFlags) -> io::Result<()> {
        let mut wait = Wait::new(file.as_fd(), events)?;
        poll_fn(|cx| wait.poll(cx)).await;
        self.count_completion();
        Ok(())
    }

    pub fn count_completion(&self) {
        self.completions.set(self.completions.get() + 1);
    }

    pub fn take_completions(&self) -> u64 {
        self.completions.take()
    }
}
