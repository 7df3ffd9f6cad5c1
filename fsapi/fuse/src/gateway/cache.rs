//! The gateway's object, and what the kernel may keep.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::Ino;
use vellum_rt::{self as rt, Class, timeout};
use vellum_vfs::{OpenFlags, Vfs, is_acl};

use super::convert::attr;
use super::locks::LockOwners;
use super::stale::Stale;
use crate::abi::init;
use crate::init::SessionInfo;
use crate::known::Known;
use crate::notify::Notifier;
use crate::types::{Entry, Errno, Opened};

/// Inode numbers are never reused, so one generation does for all.
const GENERATION: u64 = 1;

/// Of extended attributes.
const NAMESPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"vellum."];

/// How long a lock that is given away waits for pages while content is read or written: those requests may wait for that lock.
const PAGES_WITHIN: Duration = Duration::from_millis(5);
/// The same while none is, so that nothing keeps the kernel from letting the pages go: it, or this process, had no core.
const PAGES_AT_MOST: Duration = Duration::from_millis(200);

/// How long the kernel may trust an answer given now: the rest of the lease, when whoever gives locks away calls
/// [`Gateway::let_go`] first; zero without that.
pub type LeaseLeft = Rc<dyn Fn() -> Duration>;

/// One mount of one vfs.
pub struct Gateway {
    pub(super) vfs: Rc<Vfs>,
    pub(super) endpoint: Option<String>,
    pub(super) known: Known,
    pub(super) lock_owners: LockOwners,
    pub(super) stale: Stale,
    lease_left: RefCell<Option<LeaseLeft>>,
    session: RefCell<Option<(SessionInfo, Notifier)>>,
    /// READs and WRITEs under way: the kernel holds on to their pages.
    transfers: Cell<usize>,
    /// The kernel is being asked to forget inodes.
    pruning: Rc<Cell<bool>>,
}

pub(super) struct Transfer<'a>(&'a Cell<usize>);

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Gateway {
    /// `kernel_inodes`: how many the kernel is to hold at most, if it can be asked to forget (Linux 6.18).
    pub fn new(vfs: Rc<Vfs>, endpoint: Option<String>, kernel_inodes: usize) -> Rc<Gateway> {
        Rc::new(Gateway {
            vfs,
            endpoint,
            known: Known::new(kernel_inodes),
            lock_owners: LockOwners::default(),
            stale: Stale::default(),
            lease_left: RefCell::default(),
            session: RefCell::default(),
            transfers: Cell::new(0),
            pruning: Rc::default(),
        })
    }

    /// Lets the kernel cache within the lease. The caller promises to call [`Gateway::let_go`] for each lock group before
    /// the engine is told that it is free.
    pub fn cache_within(&self, lease_left: LeaseLeft) {
        *self.lease_left.borrow_mut() = Some(lease_left);
    }

    /// The kernel forgets the attributes of the group's inodes, and all names (it cannot forget those of one directory
    /// without taking its lock). Resolves when it has; waits for no request of ours.
    pub async fn let_go(&self, group: u64) {
        let Some((info, notifier)) = self.session.borrow().clone() else { return };
        if self.lease_left.borrow().is_none() {
            return; // nothing was ever cached
        }
        if info.has_inc_epoch()
            && let Err(error) = notifier.inc_epoch().await
        {
            tracing::warn!(%error, "names stay in the kernel's cache until their timeout");
        }
        let inos = self.known.of_group(group, self.vfs.root());
        if let Err(error) = notifier.inval_attributes_of(inos.iter().map(|ino| self.node(*ino))).await {
            tracing::warn!(%error, group, "attributes stay in the kernel's cache until their timeout");
        }
        self.let_pages_go(&notifier, inos).await;
    }

    /// Mappings do not ask for attributes: pages of files that are open here go at once, those of others at the next open.
    ///
    /// Linux throws the answer to a GETATTR away when an invalidation of the inode, also one of pages, came between question
    /// and answer (`attr_version` in fs/fuse/inode.c), and the read that asked goes on with the old size. So pages go before
    /// anybody else may write, as attributes do. But they wait in the kernel for reads that wait for the lock that is
    /// being given away: then they are left to follow.
    async fn let_pages_go(&self, notifier: &Notifier, inos: Vec<Ino>) {
        let (open, closed): (Vec<Ino>, Vec<Ino>) = inos.into_iter().partition(|ino| self.vfs.is_open(*ino));
        closed.into_iter().for_each(|ino| self.known.pages_are_stale(ino));
        let mut all = pin!(notifier.inval_pages_of(open.iter().map(|ino| self.node(*ino))));
        let began = rt::now();
        loop {
            match timeout(PAGES_WITHIN, all.as_mut()).await {
                Ok(Err(error)) => return tracing::warn!(%error, "mapped pages stay in the kernel's cache"),
                Ok(Ok(())) => return,
                Err(_) if self.transfers.get() > 0 || rt::now() - began >= PAGES_AT_MOST => return,
                Err(_) => {}
            }
        }
    }

    /// A READ or WRITE is under way as long as this lives.
    pub(super) fn transfer(&self) -> Transfer<'_> {
        self.transfers.set(self.transfers.get() + 1);
        Transfer(&self.transfers)
    }

    /// Inodes that the kernel holds. It is asked to forget what is too much; where it cannot be, its memory is the bound.
    pub fn kernel_inodes(&self) -> usize {
        self.known.len()
    }

    pub(super) fn begun(&self, info: &SessionInfo, notifier: &Notifier) {
        *self.session.borrow_mut() = Some((*info, notifier.clone()));
    }

    pub(super) fn gone(&self) {
        *self.session.borrow_mut() = None;
    }

    pub(super) fn attr_ttl(&self) -> Duration {
        self.lease_left.borrow().as_ref().map_or(Duration::ZERO, |left| left())
    }

    /// Names need the epoch to be taken back in time.
    pub(super) fn entry_ttl(&self) -> Duration {
        let can = self.session.borrow().as_ref().is_some_and(|(info, _)| info.has_inc_epoch());
        if can { self.attr_ttl() } else { Duration::ZERO }
    }

    /// An answered name, counted.
    pub(super) fn entry(&self, found: &vellum_vfs::Attr) -> Entry {
        self.known.looked_up(found.ino);
        self.prune();
        let (entry_ttl, attr_ttl) = (self.entry_ttl(), self.attr_ttl());
        Entry { nodeid: self.node(found.ino), generation: GENERATION, attr: attr(found), entry_ttl, attr_ttl }
    }

    /// Asks the kernel to forget inodes when it holds too many, one request at a time.
    fn prune(&self) {
        let session = self.session.borrow();
        let Some((_, notifier)) = session.as_ref().filter(|(info, _)| info.has_prune()) else { return };
        if self.pruning.get() {
            return;
        }
        let surplus = self.known.take_surplus();
        if surplus.is_empty() {
            return;
        }
        let (notifier, pruning) = (notifier.clone(), self.pruning.clone());
        pruning.set(true);
        let surplus: Vec<u64> = surplus.into_iter().map(|ino| self.node(ino)).collect();
        let task = async move {
            if let Err(error) = notifier.prune(surplus).await {
                tracing::warn!(%error, "the kernel did not forget inodes");
            }
            pruning.set(false);
        };
        rt::spawn(Class::Request, "prune", task).detach();
    }

    /// "No such name", worth remembering; `None` when it is not to be.
    pub(super) fn negative(&self) -> Option<Entry> {
        let entry_ttl = self.entry_ttl();
        (entry_ttl > Duration::ZERO).then(|| Entry { entry_ttl, ..Entry::default() })
    }

    /// How the kernel treats an open file: appends come to us as they are, and so do reads of what may be offline. Who can
    /// only write fills no page cache either: each write is a request all the same, and the kernel spares the copy, and the
    /// question for `security.capability` that it asks before the first cached write of an inode.
    pub(super) fn opened(&self, ino: Ino, fh: u64, flags: OpenFlags, offline: bool) -> Opened {
        let write_only = flags.write && !flags.read;
        let direct_io = flags.append || write_only || offline;
        let keep_cache = !direct_io && self.attr_ttl() > Duration::ZERO && self.known.may_keep_pages(ino);
        Opened { fh, direct_io, keep_cache, ..Opened::default() }
    }

    /// Names without a known namespace are refused, as by local filesystems. Of the system's attributes, which mean
    /// something, only ACLs are known, and those only when the kernel honours them.
    pub(super) fn served(&self, name: &[u8]) -> Result<(), Errno> {
        if name.starts_with(b"system.") {
            let honoured = self.session.borrow().as_ref().is_some_and(|(info, _)| info.has(init::POSIX_ACL));
            return if is_acl(name) && honoured { Ok(()) } else { Err(Errno::EOPNOTSUPP) };
        }
        let own_part = NAMESPACES.iter().find_map(|namespace| name.strip_prefix(*namespace));
        match own_part.ok_or(Errno::EOPNOTSUPP)? {
            [] => Err(Errno::EINVAL),
            _ => Ok(()),
        }
    }
}
