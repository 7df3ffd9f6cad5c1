//! Several readers of one mount, each on its own reactor with its own descriptor and its own filesystem object.
//!
//! A cloned descriptor has its own list of requests in process, so an answer must go to the descriptor that the request
//! came from. INTERRUPTs come to any of them: one that a reader cannot place is passed to all others.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vellum_rt as rt;

use crate::filesystem::Filesystem;
use crate::init::{SessionInfo, Wants};
use crate::interrupt::Interrupted;
use crate::session::{End, Session};

/// INTERRUPTs on their way to one reader. More are dropped: their callers wait for the answer, as without INTERRUPT.
const QUEUE_LEN: usize = 1024;
/// When a passed-on INTERRUPT is tried again: its request may be read but not yet begun.
const RETRIES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(100)];

/// The readers of one mount.
#[derive(Default)]
pub(crate) struct Board {
    readers: Mutex<Vec<rt::channel::Sender<u64>>>,
}

impl Board {
    /// Enters one more reader; what comes out are interrupted requests.
    pub fn join(&self) -> (usize, rt::channel::Receiver<u64>) {
        let (sender, receiver) = rt::channel::bounded(QUEUE_LEN);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.push(sender);
        (readers.len() - 1, receiver)
    }

    /// Passes an INTERRUPT to all but reader `from`. False: there is no other.
    pub fn pass_on(&self, from: usize, unique: u64) -> bool {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, reader) in readers.iter().enumerate().filter(|(id, _)| *id != from) {
            let _ = reader.try_send(unique); // gone, or flooded
        }
        readers.len() > 1
    }
}

/// One more reader of a mount, to be sent to the reactor that shall run it.
pub struct Reader {
    pub(crate) device: OwnedFd,
    pub(crate) info: SessionInfo,
    pub(crate) wants: Wants,
    pub(crate) max_read: usize,
    pub(crate) board: Arc<Board>,
}

impl Reader {
    /// Serves requests with `fs` on the current reactor until the mount is gone. `fs` must show the same filesystem as
    /// the other readers' objects: the kernel spreads requests over all of them.
    pub async fn run<F: Filesystem>(self, fs: Rc<F>) -> io::Result<End> {
        let input = rt::fd::AsyncFd::new(self.device.try_clone()?)?;
        let session = Session::new(fs, Arc::new(self.device), self.wants, self.max_read, self.board);
        session.agreed(self.info);
        session.clone().run(input).await;
        Ok(session.end().unwrap_or(End::Unmounted))
    }
}

/// Takes INTERRUPTs that came to other readers, until the session is over.
pub(crate) async fn take_interrupts<F: Filesystem>(session: Rc<Session<F>>, mut passed: rt::channel::Receiver<u64>) {
    while let Some(unique) = passed.recv().await {
        if session.interrupt_request(unique) == Interrupted::Unknown {
            let session = session.clone();
            rt::spawn(rt::Class::Request, "fuse-interrupt-retry", async move {
                for delay in RETRIES {
                    rt::sleep(delay).await;
                    if session.interrupt_request(unique) != Interrupted::Unknown {
                        return;
                    }
                }
            })
            .detach();
        }
    }
}
