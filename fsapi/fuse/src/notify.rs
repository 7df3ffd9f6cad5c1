//! Telling the kernel that what it caches has changed.
//!
//! Some notifications wait in the kernel for locked pages or inode locks, which a request that we have not answered may
//! hold. So all are written by threads, never by a reactor, on three lanes that do not wait for each other:
//! - attributes and the epoch: never wait in the kernel, so an invalidation's answer may wait for them;
//! - pages: wait for reads and writes of these pages that are under way;
//! - names: wait for the directory's lock; inodes that the kernel is asked to forget wait for their own pages.
//!
//! The queues are bounded; a full one makes the sender wait. A lane's thread starts with its first job.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use vellum_rt as rt;
use zerocopy::IntoBytes;

use crate::abi::{EXPIRE_ONLY, NotifyDeleteOut, NotifyInvalEntryOut, NotifyInvalInodeOut, NotifyPruneOut, notify};
use crate::device;

/// Notifications that may wait in each lane.
const QUEUE_LEN: usize = 4096;
/// How long a sender waits before it looks at a full queue again.
const RETRY: Duration = Duration::from_millis(1);

#[derive(Clone, Copy)]
enum Lane {
    Attributes,
    Pages,
    Names,
}

impl Lane {
    const COUNT: usize = 3;
    const THREADS: [&str; Lane::COUNT] = ["fuse-inval-attr", "fuse-inval-page", "fuse-inval-name"];
}

/// `len` 0 means to the end.
enum What {
    Attributes { ino: u64 },
    Pages { ino: u64, offset: u64, len: u64 },
    Entry { parent: u64, name: Box<[u8]>, expire_only: bool },
    Delete { parent: u64, child: u64, name: Box<[u8]> },
    Prune { inos: Box<[u64]> },
    Epoch,
}

struct Job {
    what: What,
    done: Option<rt::channel::Sender<io::Result<()>>>,
}

/// Sends notifications; cheap to clone, usable on every reactor. It holds no descriptor: a mount does not outlive its
/// session because of it.
#[derive(Clone)]
pub struct Notifier {
    device: Weak<OwnedFd>,
    lanes: Arc<[OnceLock<SyncSender<Job>>; Lane::COUNT]>,
}

impl Notifier {
    pub(crate) fn new(device: &Arc<OwnedFd>) -> Notifier {
        Notifier { device: Arc::downgrade(device), lanes: Arc::default() }
    }

    /// Drops cached attributes of `ino`. Resolves when the kernel has done it, which is soon whatever goes on.
    pub async fn inval_attributes(&self, ino: u64) -> io::Result<()> {
        self.wait(Lane::Attributes, What::Attributes { ino }).await
    }

    /// The same for many, with one wait.
    pub async fn inval_attributes_of(&self, inos: impl IntoIterator<Item = u64>) -> io::Result<()> {
        self.wait_for_last(Lane::Attributes, inos.into_iter().map(|ino| What::Attributes { ino })).await
    }

    /// Drops cached attributes of `ino`, and its pages of `len` bytes from `offset` (`len` 0: to the end). It waits for
    /// reads of those pages, so whoever answers reads must not wait for this.
    pub async fn inval_pages(&self, ino: u64, offset: u64, len: u64) -> io::Result<()> {
        self.wait(Lane::Pages, What::Pages { ino, offset, len }).await
    }

    /// Drops all pages of many, with one wait.
    pub async fn inval_pages_of(&self, inos: impl IntoIterator<Item = u64>) -> io::Result<()> {
        let all = |ino| What::Pages { ino, offset: 0, len: 0 };
        self.wait_for_last(Lane::Pages, inos.into_iter().map(all)).await
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
        self.queue(Lane::Names, Job { what: What::Delete { parent, child, name: name.into() }, done: None }).await;
    }

    /// Asks the kernel to forget those of these inodes that nobody uses; FORGETs follow. Resolves when it has looked at all.
    /// Nothing that a request needs may wait for this. Only when [`crate::SessionInfo::has_prune`].
    pub async fn prune(&self, inos: impl IntoIterator<Item = u64>) -> io::Result<()> {
        self.wait(Lane::Names, What::Prune { inos: inos.into_iter().collect() }).await
    }

    /// Lets all cached names expire at once; takes no lock. Only when [`crate::SessionInfo::has_inc_epoch`].
    pub async fn inc_epoch(&self) -> io::Result<()> {
        self.wait(Lane::Attributes, What::Epoch).await
    }

    async fn entry(&self, parent: u64, name: &[u8], expire_only: bool) {
        self.queue(Lane::Names, Job { what: What::Entry { parent, name: name.into(), expire_only }, done: None }).await;
    }

    /// Jobs of a lane are done in order.
    async fn wait_for_last(&self, lane: Lane, jobs: impl Iterator<Item = What>) -> io::Result<()> {
        let mut jobs = jobs.peekable();
        while let Some(what) = jobs.next() {
            if jobs.peek().is_none() {
                return self.wait(lane, what).await;
            }
            self.queue(lane, Job { what, done: None }).await;
        }
        Ok(())
    }

    async fn wait(&self, lane: Lane, what: What) -> io::Result<()> {
        let (done, mut answer) = rt::channel::bounded(1);
        self.queue(lane, Job { what, done: Some(done) }).await;
        answer.recv().await.unwrap_or(Ok(())) // the session is over, and its caches with it
    }

    async fn queue(&self, lane: Lane, mut job: Job) {
        let sender = self.lanes[lane as usize].get_or_init(|| self.start(lane));
        loop {
            match sender.try_send(job) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => return,
                Err(TrySendError::Full(back)) => job = back,
            }
            rt::sleep(RETRY).await;
        }
    }

    fn start(&self, lane: Lane) -> SyncSender<Job> {
        let (sender, receiver) = sync_channel(QUEUE_LEN);
        let device = self.device.clone();
        let name = Lane::THREADS[lane as usize];
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || deliver(&device, &receiver));
        if let Err(error) = thread {
            // Jobs are dropped, and their senders go on: the kernel's caches run out by their timeouts alone.
            tracing::error!(%error, name, "no thread for notifications");
        }
        sender
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
        What::Attributes { ino } => {
            let fixed = NotifyInvalInodeOut { ino: *ino, off: -1, len: 0 }; // a negative offset leaves pages alone
            device::notify(device, notify::INVAL_INODE, fixed.as_bytes(), &[])
        }
        What::Pages { ino, offset, len } => {
            let (off, len) = (i64::try_from(*offset).unwrap_or(i64::MAX), i64::try_from(*len).unwrap_or(0));
            let fixed = NotifyInvalInodeOut { ino: *ino, off, len };
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
        What::Prune { inos } => {
            let fixed = NotifyPruneOut { count: inos.len() as u32, ..NotifyPruneOut::default() };
            device::notify(device, notify::PRUNE, fixed.as_bytes(), inos.as_bytes())
        }
        What::Epoch => device::notify(device, notify::INC_EPOCH, &[], &[]),
    };
    match result {
        // Not in the kernel's cache: nothing to drop. ENOTEMPTY: a directory that is mounted on, or has children cached.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENOTEMPTY)) => Ok(()),
        other => other,
    }
}
