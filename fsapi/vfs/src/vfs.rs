//! The object that a gateway holds, and its beginning and end.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::{Rc, Weak};

use vellum_base::Ino;
use vellum_client::Client;
use vellum_format::{FileKind, Inode, Timestamp};
use vellum_wire::{LockMode, LockName};

use crate::create::FIRST_POS;
use crate::data::room::Room;
use crate::data::writeback::Writeback;
use crate::error::Result;
use crate::file::Files;
use crate::handle::Handles;
use crate::ino_locks::InoLocks;
use crate::orphan::Orphans;
use crate::types::{Caller, VfsOptions};

/// One filesystem, as one client sees it. Belongs to one reactor.
pub struct Vfs {
    pub(crate) this: Weak<Vfs>,
    pub(crate) client: Rc<Client>,
    pub(crate) options: VfsOptions,
    pub(crate) ino_locks: Rc<InoLocks>,
    pub(crate) files: Files,
    pub(crate) handles: Handles,
    pub(crate) writeback: Writeback,
    pub(crate) room: Room,
    pub(crate) orphans: Orphans,
    pub(crate) stopped: Cell<bool>,
    on_release: RefCell<Option<ReleaseListener>>,
}

/// Told of each lock group that goes, after its dirty data was written back and before the engine is answered.
pub type ReleaseListener = Rc<dyn Fn(u64) -> Pin<Box<dyn Future<Output = ()>>>>;

impl Vfs {
    /// Takes over the client's release hook, and begins to look for orphans.
    pub fn new(client: Rc<Client>, options: VfsOptions) -> Rc<Vfs> {
        let vfs = Rc::new_cyclic(|this: &Weak<Vfs>| Vfs {
            this: this.clone(),
            client: client.clone(),
            ino_locks: Rc::default(),
            files: Files::default(),
            handles: Handles::new(options.read_ahead_total),
            writeback: Writeback::default(),
            room: Room::default(),
            orphans: Orphans::default(),
            stopped: Cell::new(false),
            on_release: RefCell::default(),
            options,
        });
        let this = vfs.this.clone();
        client.set_release_hook(Rc::new(move |guard, _mode| {
            let vfs = this.upgrade();
            Box::pin(async move {
                let Some(vfs) = vfs else { return };
                for (name, _) in guard.names().collect::<Vec<_>>() {
                    if let LockName::Group(group) = name {
                        vfs.clean_group(&guard, group).await;
                        let listener = vfs.on_release.borrow().clone();
                        if let Some(listener) = listener {
                            listener(group).await;
                        }
                    }
                }
            })
        }));
        // A confined client is not shown who else's orphans there are: gateways of the whole filesystem clean up.
        if !vfs.client.is_read_only() && !vfs.client.is_confined() {
            vfs.start_orphan_cleaner();
        }
        vfs
    }

    /// A gateway whose kernel caches under our locks takes those caches back here. It must not wait for requests of its
    /// own: they may wait for the very lock that goes.
    pub fn on_release(&self, listener: ReleaseListener) {
        *self.on_release.borrow_mut() = Some(listener);
    }

    /// Makes the root directory of a new filesystem, if nobody has. `caller` owns it.
    pub async fn make_root(&self, caller: Caller) -> Result<()> {
        if self.client.is_read_only() || self.client.is_confined() {
            return Ok(()); // who may write has made it, or there is nothing to read
        }
        let guard = self.client.lock(&[(LockName::of(Ino::ROOT), LockMode::Write)]).await?;
        if self.client.get(&guard, Inode::key(Ino::ROOT)).await?.is_some() {
            return Ok(());
        }
        let now = Self::now();
        let root = Inode {
            mode: FileKind::Directory.mode_bits() | 0o755,
            nlink: 2,
            uid: caller.uid,
            gid: caller.gid,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            next_pos: FIRST_POS,
            ..Inode::default()
        };
        let mut txn = self.client.begin(&guard);
        txn.put(Inode::key(Ino::ROOT), root.encode());
        txn.commit()?;
        drop(guard);
        Ok(self.client.sync().await?)
    }

    pub fn client(&self) -> &Rc<Client> {
        &self.client
    }

    /// The directory that this client's paths begin at.
    pub fn root(&self) -> Ino {
        self.client.root()
    }

    /// Everything that was written is made durable; background work ends. Open handles are useless afterwards.
    pub async fn shutdown(&self) -> Result<()> {
        self.stopped.set(true);
        self.stop_orphan_cleaner().await;
        self.syncfs().await
    }

    /// For a task that outlives the call.
    pub(crate) fn rc(&self) -> Option<Rc<Vfs>> {
        self.this.upgrade()
    }

    pub(crate) fn now() -> Timestamp {
        let now = vellum_rt::wall_clock();
        Timestamp { secs: now.secs, nanos: now.nanos }
    }

    /// Data version as an agent must see it, content that is still in memory included.
    pub async fn data_version(&self, ino: Ino) -> Result<u64> {
        Ok(self.getattr(ino).await?.data_version)
    }
}
