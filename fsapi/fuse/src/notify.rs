//! Telling the kernel that what it caches has changed.
//!
//! A notification may wait in the kernel for inode locks and locked pages, which a request that we have not answered may
//! hold. So they are written by threads of their own, never by a reactor, and data (inode) and names (entry) wait apart:
//! an invalidation of data never stands behind one of a name. The queues are bounded; a full one makes the sender wait.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use vellum_rt as rt;
use zerocopy::IntoBytes;

use crate::abi::{EXPIRE_ONLY, NotifyDeleteOut, NotifyInvalEntryOut, NotifyInvalInodeOut, notify};
use crate::device;

/// Notifications that may wait in each of the two queues.
const QUEUE_LEN: usize = 4096;
/// How long a sender waits before it looks at a full queue again.
const RETRY: Duration = Duration::from_millis(1);

enum What {
    Inode { ino: u64, offset: i64, len: i64 },
    Entry { parent: u64, name: Box<[u8]>, expire_only: bool },
    Delete { parent: u64, child: u64, name: Box<[u8]> },
    Epoch,
}

struct Job {
    what: What,
    done: Option<rt::channel::Sender<io::Result<()>>>,
}

/// Sends notifications; cheap to clone, usable from every thread. It holds no descriptor: a mount does not outlive its
/// session because of it.
#[derive(Clone)]
pub struct Notifier {
    data: SyncSender<Job>,
    names: SyncSender<Job>,
}

impl Notifier {
    /// Starts the two threads; they end when the last notifier is dropped.
    pub fn start(device: &Arc<OwnedFd>) -> io::Result<Notifier> {
        let lane = |name: &str| -> io::Result<SyncSender<Job>> {
            let (sender, receiver) = sync_channel(QUEUE_LEN);
            let device = Arc::downgrade(device);
            std::thread::Builder::new().name(name.into()).spawn(move || deliver(&device, &receiver))?;
            Ok(sender)
        };
        Ok(Notifier { data: lane("fuse-inval-data")?, names: lane("fuse-inval-name")? })
    }

    /// Drops cached attributes of `ino`, and its pages of `len` bytes from `offset` (`len` 0: to the end). A negative
    /// offset leaves the pages alone. Resolves when the kernel has done it: it waits for reads of those pages, so whoever
    /// answers reads must not wait for this.
    pub async fn inval_inode(&self, ino: u64, offset: i64, len: i64) -> io::Result<()> {
        self.wait(&self.data, What::Inode { ino, offset, len }).await
    }

    /// The same without waiting for the kernel.
    pub async fn queue_inval_inode(&self, ino: u64, offset: i64, len: i64) {
        queue(&self.data, Job { what: What::Inode { ino, offset, len }, done: None }).await;
    }

    /// Drops a cached name. Nothing may wait for it: the directory may be locked by a request that waits for us.
    pub async fn queue_inval_entry(&self, parent: u64, name: &[u8]) {
        self.entry(parent, name, false).await;
    }

    /// Lets a cached name expire: it is asked for again at its next use.
    pub async fn queue_expire_entry(&self, parent: u64, name: &[u8]) {
        self.entry(parent, name, true).await;
    }

    /// `name` in `parent` is gone, if it is `child` still.
    pub async fn queue_delete(&self, parent: u64, child: u64, name: &[u8]) {
        queue(&self.names, Job { what: What::Delete { parent, child, name: name.into() }, done: None }).await;
    }

    /// Lets all cached names expire at once; takes no lock. Only when [`crate::SessionInfo::has_inc_epoch`].
    pub async fn inc_epoch(&self) -> io::Result<()> {
        self.wait(&self.data, What::Epoch).await
    }

    async fn entry(&self, parent: u64, name: &[u8], expire_only: bool) {
        queue(&self.names, Job { what: What::Entry { parent, name: name.into(), expire_only }, done: None }).await;
    }

    async fn wait(&self, lane: &SyncSender<Job>, what: What) -> io::Result<()> {
        let (done, mut answer) = rt::channel::bounded(1);
        queue(lane, Job { what, done: Some(done) }).await;
        answer.recv().await.unwrap_or(Ok(())) // the session is over, and its caches with it
    }
}

async fn queue(lane: &SyncSender<Job>, mut job: Job) {
    loop {
        match lane.try_send(job) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => return,
            Err(TrySendError::Full(back)) => job = back,
        }
        rt::sleep(RETRY).await;
    }
}

fn deliver(device: &Weak<OwnedFd>, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        let Some(device) = device.upgrade() else { return };
        let result = send(&device, &job.what);
        drop(device);
        if let Err(error) = &result {
            tracing::debug!(%error, "a notification was not taken");
        }
        if let Some(done) = job.done {
            let _ = done.try_send(result); // the asker may have gone
        }
    }
}

fn send(device: &OwnedFd, what: &What) -> io::Result<()> {
    let device = device.as_fd();
    let ended_by_nul = |name: &[u8]| [name, b"\0"].concat();
    let result = match what {
        What::Inode { ino, offset, len } => {
            let fixed = NotifyInvalInodeOut { ino: *ino, off: *offset, len: *len };
            device::notify(device, notify::INVAL_INODE, fixed.as_bytes(), &[])
        }
        What::Entry { parent, name, expire_only } => {
            let flags = if *expire_only { EXPIRE_ONLY } else { 0 };
            let fixed = NotifyInvalEntryOut { parent: *parent, namelen: name.len() as u32, flags };
            device::notify(device, notify::INVAL_ENTRY, fixed.as_bytes(), &ended_by_nul(name))
        }
        What::Delete { parent, child, name } => {
            let fixed = NotifyDeleteOut { parent: *parent, child: *child, namelen: name.len() as u32, padding: 0 };
            device::notify(device, notify::DELETE, fixed.as_bytes(), &ended_by_nul(name))
        }
        What::Epoch => device::notify(device, notify::INC_EPOCH, &[], &[]),
    };
    match result {
        // Not in the kernel's cache: nothing to drop. ENOTEMPTY: a directory that is mounted on, or has children cached.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENOTEMPTY)) => Ok(()),
        other => other,
    }
}
