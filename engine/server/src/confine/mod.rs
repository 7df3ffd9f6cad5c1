//! The wall around a client whose certificate names a directory.
//!
//! Such a client is **confined** to that directory, its root. Every request of it goes through [`Confined::admit`], one match
//! over all requests, in the order of arrival; a batch is judged once more when everything that it changes is reserved
//! ([`Confined::judge`]), and what was read is answered only if it is still inside then ([`held`]).
//!
//! - Inside is what a chain of names leads to from the root ([`membership`]): one name is enough, as of hard links.
//! - A number that is not in use may be used when its group was given to a client of this root. Groups of others may have
//!   free numbers too: an inode made there beforehand would get a name inside, and its owner's content later.
//! - An inode without names is inside for the clients of the root under which it lost the last one; and what a client
//!   has open, or took the name of itself, stays with it until its session ends, as an open file does.
//! - Names outside are not to be seen, made or taken away; nothing outside gets a name inside ([`batch`]).
//! - Data is read as a file's ([`blocks`]). Written data is bound to the client as everybody's is.
//!
//! Not here: coherence. A lease is on a group of 1,024 inodes, and may cover what is outside; it gives no access.

mod batch;
mod blocks;
mod membership;
mod path;
mod queue;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{Ino, Key, KeyRange, View, Zone};
use vellum_format::{Inode, ItemKind, Orphan, system};
use vellum_keys::Subtree;
use vellum_wire::{ErrorCode, FileLockMode, Request, WireError};

use crate::backend::{Backend, BackendFuture, Scanned, Walked};
use crate::dispatch::MAX_GET_KEYS;
use membership::{Led, Membership, Stored};
pub(crate) use path::find;
use queue::Waiting;

/// Inodes that stay with a client although they have no name inside any more; the first ones.
const MAX_KEPT: usize = 65_536;
/// Entries of one page of a walk: each costs a look at its names.
pub(crate) const MAX_WALK_ENTRIES: u32 = 1024;

type Verdict = Result<(), WireError>;

/// How an inode stands to the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    Root,
    /// Below the root by name.
    Named,
    /// Of a group of this root, and there is no such inode.
    New,
    /// Without names; the last one was inside.
    Nameless,
    /// Of this client alone, which has it open or took its name.
    Kept,
    Outside,
}

/// One session's confinement.
pub(crate) struct Confined {
    pub path: Subtree,
    pub root: Ino,
    backend: Rc<dyn Backend>,
    members: Membership<Stored>,
    /// Inode groups known to be of this root.
    groups: RefCell<BTreeSet<u64>>,
    kept: RefCell<BTreeSet<Ino>>,
    waiting: RefCell<VecDeque<Waiting>>,
    judging: Cell<bool>,
}

fn outside(what: impl std::fmt::Display) -> WireError {
    let message = format!("{what} is not below the directory that this client is confined to");
    WireError { code: ErrorCode::Outside, message }
}

fn refused(message: &str) -> Verdict {
    Err(WireError { code: ErrorCode::NotPermitted, message: message.to_owned() })
}

impl Confined {
    pub(crate) fn new(backend: Rc<dyn Backend>, path: Subtree, root: Ino) -> Rc<Confined> {
        Rc::new(Confined {
            path,
            root,
            members: Membership::new(Stored(backend.clone()), root),
            backend,
            groups: RefCell::default(),
            kept: RefCell::default(),
            waiting: RefCell::default(),
            judging: Cell::new(false),
        })
    }

    /// Whether the client may ask that. What only reports is cut down to what is inside, so that a client may always
    /// give back what it has.
    async fn admit(&self, request: &mut Request) -> Verdict {
        match request {
            // Coherence, and the session itself.
            Request::Lock { .. } | Request::Unlock { .. } | Request::Reassert { .. } => Ok(()),
            Request::Sync { .. } | Request::Farewell | Request::Keepalive | Request::StatFs => Ok(()),
            // Its own waiting, and its own locks.
            Request::FileLockCancel { .. } => Ok(()),
            Request::FileLock { lock, .. } if lock.mode == FileLockMode::Unlocked => Ok(()),
            Request::FileLock { ino, .. } | Request::FileLockTest { ino, .. } => self.require(*ino).await,
            Request::Opened { inos } => {
                self.retain(inos).await?;
                self.keep(inos.iter().copied());
                Ok(())
            }
            Request::Closed { inos } => {
                let mut kept = self.kept.borrow_mut();
                for ino in inos {
                    kept.remove(ino);
                }
                Ok(())
            }
            Request::ReassertFiles { locks, opens } => {
                self.retain(opens).await?;
                self.keep(opens.iter().copied());
                let locked: BTreeSet<Ino> = locks.iter().map(|held| held.ino).collect();
                let mut inside: Vec<Ino> = locked.into_iter().collect();
                self.retain(&mut inside).await?;
                locks.retain(|lock| inside.binary_search(&lock.ino).is_ok());
                Ok(())
            }
            Request::Openers { inos } => self.require_all(inos).await,
            // Items, and data as a file's.
            Request::Get { keys, .. } => self.keys(keys).await,
            Request::Scan { range, .. } => self.range(range).await,
            Request::ReadData { .. } => refused("a confined client says whose blocks it reads (ReadFile)"),
            Request::ReadFile { ino, .. } => self.require(*ino).await, // and its blocks, while they are held
            Request::WriteData => Ok(()),                              // pending for this client alone
            Request::AllocGroup { near: None } => Ok(()),
            Request::AllocGroup { near: Some(near) } => self.require(*near).await,
            Request::Commit { .. } => Ok(()), // judged in its turn
            Request::Walk { .. } => Ok(()),   // its entries are sifted
            // What shows, or is for, the whole engine.
            Request::Status | Request::Admin { .. } => refused("a confined client is not shown the engine"),
            Request::CompactAll | Request::Work { .. } => refused("that is not for a confined client"),
            // Refused to everybody.
            Request::Invalidate { .. } | Request::FileLockDone { .. } | Request::Compact { .. } => Ok(()),
        }
    }

    async fn standing(&self, ino: Ino) -> Result<Standing, WireError> {
        if ino == self.root {
            return Ok(Standing::Root);
        }
        if self.groups.borrow().contains(&ino.group()) && !self.exists(ino).await? {
            return Ok(Standing::New);
        }
        let led = self.members.led_to(ino).await?;
        if led == Led::ToRoot {
            return Ok(Standing::Named);
        }
        if self.kept.borrow().contains(&ino) && !self.is_directory(ino).await? {
            return Ok(Standing::Kept);
        }
        if led == Led::Elsewhere {
            return Ok(Standing::Outside);
        }
        self.standing_of_nameless(ino).await
    }

    async fn standing_of_nameless(&self, ino: Ino) -> Result<Standing, WireError> {
        let keys = vec![Inode::key(ino), Orphan::key(ino), system::root_key(ino.group())];
        let values = self.backend.get(keys, View::Applied).await?;
        let [inode, orphan, group] = values.as_slice() else { return Ok(Standing::Outside) };
        let is_root = |root: u64| root == self.root.0;
        let lost_here = orphan.as_deref().and_then(|value| Orphan::decode(value).ok()?.root);
        let given_here = group.as_deref().and_then(|value| system::decode_counter(value).ok());
        Ok(match inode {
            Some(_) if lost_here.is_some_and(|root| is_root(root.0)) => Standing::Nameless,
            None if given_here.is_some_and(is_root) => {
                self.groups.borrow_mut().insert(ino.group());
                Standing::New
            }
            _ => Standing::Outside,
        })
    }

    async fn inode(&self, ino: Ino) -> Result<Option<Bytes>, WireError> {
        Ok(self.backend.get(vec![Inode::key(ino)], View::Applied).await?.pop().flatten())
    }

    async fn exists(&self, ino: Ino) -> Result<bool, WireError> {
        Ok(self.inode(ino).await?.is_some())
    }

    async fn is_directory(&self, ino: Ino) -> Result<bool, WireError> {
        let inode = self.inode(ino).await?;
        Ok(inode.is_some_and(|value| Inode::decode(&value).is_ok_and(|inode| inode.is_dir())))
    }

    async fn require(&self, ino: Ino) -> Verdict {
        match self.standing(ino).await? {
            Standing::Outside => Err(outside(format_args!("inode {ino}"))),
            _ => Ok(()),
        }
    }

    async fn require_all(&self, inos: &[Ino]) -> Verdict {
        for ino in inos {
            self.require(*ino).await?;
        }
        Ok(())
    }

    /// Drops what is outside.
    async fn retain(&self, inos: &mut Vec<Ino>) -> Verdict {
        let mut inside = Vec::with_capacity(inos.len());
        for ino in inos.iter() {
            if self.standing(*ino).await? != Standing::Outside {
                inside.push(*ino);
            }
        }
        *inos = inside;
        Ok(())
    }

    fn keep(&self, inos: impl Iterator<Item = Ino>) {
        let mut kept = self.kept.borrow_mut();
        for ino in inos {
            if kept.len() < MAX_KEPT {
                kept.insert(ino);
            }
        }
    }

    /// The group was given to this client.
    pub(crate) fn given(&self, group: u64) {
        self.groups.borrow_mut().insert(group);
    }

    async fn keys(&self, keys: &[Key]) -> Verdict {
        if keys.len() > MAX_GET_KEYS {
            return Ok(()); // no item of so many is answered to anybody
        }
        for key in keys {
            if !is_clients(key) {
                return Err(outside(format_args!("{key:?}")));
            }
        }
        self.require_all(&named(keys)).await
    }

    /// A scan is of one inode.
    async fn range(&self, range: &KeyRange) -> Verdict {
        let (first, last) = (&range.first, &range.last);
        let one = is_clients(first) && first.zone() == last.zone() && first.first() == last.first();
        if !one || first.bucket() != last.bucket() {
            return Err(outside(format_args!("{first:?} to {last:?}")));
        }
        self.require(Ino(first.first())).await
    }

    /// One inode's items without the names that it has outside; if it is still inside.
    async fn sift_items(&self, items: Vec<(Key, Bytes)>) -> Result<Vec<(Key, Bytes)>, WireError> {
        if let Some((key, _)) = items.first() {
            self.require(Ino(key.first())).await?;
        }
        let mut inside = Vec::with_capacity(items.len());
        for (key, value) in items {
            if !is_backref(&key) || self.standing(Ino(key.second())).await? != Standing::Outside {
                inside.push((key, value));
            }
        }
        Ok(inside)
    }

    /// Index entries of what is inside.
    async fn sift_entries(&self, entries: Vec<(u64, Ino)>) -> Result<Vec<(u64, Ino)>, WireError> {
        let mut inside = Vec::new();
        for (seq, ino) in entries {
            if self.standing(ino).await? != Standing::Outside {
                inside.push((seq, ino));
            }
        }
        Ok(inside)
    }
}

pub(crate) fn sift_page(confined: Option<Rc<Confined>>, page: BackendFuture<Scanned>) -> BackendFuture<Scanned> {
    let Some(confined) = confined else { return page };
    Box::pin(async move {
        let (items, next) = page.await?;
        Ok((confined.sift_items(items).await?, next))
    })
}

pub(crate) fn sift_walk(confined: Option<Rc<Confined>>, page: BackendFuture<Walked>) -> BackendFuture<Walked> {
    let Some(confined) = confined else { return page };
    Box::pin(async move {
        let (entries, next, through) = page.await?;
        Ok((confined.sift_entries(entries).await?, next, through))
    })
}

/// Answers what was read if all of `named` is inside when it was: what has left meanwhile may have changed before it was read.
pub(crate) fn held<T: 'static>(confined: Option<(Rc<Confined>, Vec<Ino>)>, work: BackendFuture<T>) -> BackendFuture<T> {
    let Some((confined, named)) = confined else { return work };
    Box::pin(async move {
        let value = work.await?;
        confined.require_all(&named).await?;
        Ok(value)
    })
}

/// The inodes that keys name, each once: whose they are, and of a backref the directory.
pub(crate) fn named(keys: &[Key]) -> Vec<Ino> {
    let dirs = keys.iter().filter(|key| is_backref(key)).map(Key::second);
    let inos: BTreeSet<Ino> = keys.iter().map(Key::first).chain(dirs).map(Ino).collect();
    inos.into_iter().collect()
}

/// An item of an inode: in its own bucket, of a zone that clients write.
fn is_clients(key: &Key) -> bool {
    matches!(key.zone(), Some(Zone::Fs | Zone::Orphan)) && key.bucket().0 == Ino(key.first()).bucket()
}

fn is_backref(key: &Key) -> bool {
    key.zone() == Some(Zone::Fs) && key.kind() == ItemKind::Backref as u8
}
