//! Who asks, and whether they still want the answer.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use crate::interrupt::Pending;

/// The caller of one request.
#[derive(Debug, Clone)]
pub struct Context {
    pub unique: u64,
    pub uid: u32,
    pub gid: u32,
    /// The calling thread; 0 when it is in no pid namespace of ours.
    pub pid: u32,
    pub(crate) pending: Rc<Pending>,
}

impl Context {
    /// A signal asked for this request to end. A killed caller's request is dropped anyway; a method that waits for
    /// long, and may be told EINTR by POSIX, can end by itself after any signal.
    pub fn interrupted(&self) -> bool {
        self.pending.is_told(self.unique)
    }

    /// Resolves when the request is interrupted.
    pub async fn until_interrupted(&self) {
        poll_fn(|cx| if self.pending.poll_told(self.unique, cx) { Poll::Ready(()) } else { Poll::Pending }).await
    }
}
