//! The client object: what it is made of, how it begins and ends.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use vellum_base::{Epoch, Fsid, Ino, Mutant, Rid, Term, mutant, probe};
use vellum_wire::{AdminRequest, FileLockOutcome, Greeted, LockMode, LockName, Request, Response, StatFs};

use crate::batch::Batches;
use crate::cache::ItemCache;
use crate::data::RetainedData;
use crate::fact::Fact;
use crate::files::{FileLocks, OpenInodes};
use crate::inodes::InodeGroups;
use crate::lock::{LockGuard, LockTable};
use crate::port::{LocalBoxFuture, Port, Upcalls};
use crate::stats::{ClientStats, Counters};
use crate::{ClientError, ClientOptions, env};

/// Called when a lock is about to be weakened, after its users are gone. The guard covers that one lock as it is still
/// held: dirty file data of the group is written and committed under it, and what the caller itself keeps of the group
/// is dropped (all of it for Null; what only a writer may keep for Read). It must not wait for other locks.
pub type ReleaseHook = Rc<dyn Fn(LockGuard, LockMode) -> LocalBoxFuture<'static, ()>>;

pub struct Client {
    pub(crate) port: Rc<dyn Port>,
    pub(crate) options: ClientOptions,
    pub(crate) counters: Counters,
    pub(crate) locks: Rc<LockTable>,
    pub(crate) cache: RefCell<ItemCache>,
    pub(crate) batches: Batches,
    pub(crate) data: RetainedData,
    pub(crate) inodes: InodeGroups,
    pub(crate) opens: OpenInodes,
    pub(crate) file_locks: FileLocks,
    pub(crate) release_hook: RefCell<Option<ReleaseHook>>,
    pub(crate) shrinking: Cell<bool>,
    /// A new leader is being told what we hold: nothing else is sent.
    pub(crate) recovering: Cell<bool>,
    /// Lock answers that arrived before the leader changed are being noted.
    pub(crate) recovery_reports: Cell<bool>,
    rid: Rid,
    /// Where paths begin; never another while this client lives.
    root: Ino,
    dead: RefCell<Option<ClientError>>,
}

struct FromPort(Weak<Client>);

impl Upcalls for FromPort {
    fn invalidate(&self, name: LockName, mode: LockMode) -> LocalBoxFuture<'static, ()> {
        let client = self.0.upgrade();
        // Now, in the order of arrival: grants that came before it.
        client.iter().for_each(Client::take_lock_answers);
        Box::pin(async move {
            if let Some(client) = client {
                client.invalidate_lock(name, mode).await;
            }
        })
    }

    fn file_lock_ended(&self, ticket: u64, outcome: FileLockOutcome) {
        if let Some(client) = self.0.upgrade() {
            client.file_lock_ended(ticket, outcome);
        }
    }

    fn new_term(&self, greeted: Greeted) -> LocalBoxFuture<'static, Result<(), ClientError>> {
        let client = self.0.upgrade();
        Box::pin(async move {
            match client {
                Some(client) => client.recover(greeted).await,
                None => Err(ClientError::Stopped),
            }
        })
    }

    fn closed(&self, why: ClientError) {
        if let Some(client) = self.0.upgrade() {
            client.fail(why);
        }
    }
}

impl Client {
    /// Begins to work over an open connection.
    pub fn start(port: Rc<dyn Port>, rid: Rid, options: ClientOptions) -> Rc<Client> {
        let greeted = port.greeted();
        let client = Rc::new(Client {
            port: port.clone(),
            options,
            counters: Counters::default(),
            locks: Rc::default(),
            cache: RefCell::default(),
            batches: Batches::new(greeted.last_batch),
            data: RetainedData::default(),
            inodes: InodeGroups::default(),
            opens: OpenInodes::default(),
            file_locks: FileLocks::default(),
            release_hook: RefCell::default(),
            shrinking: Cell::new(false),
            recovering: Cell::new(false),
            recovery_reports: Cell::new(false),
            rid,
            root: greeted.root,
            dead: RefCell::default(),
        });
        port.set_upcalls(Rc::new(FromPort(Rc::downgrade(&client))));
        env::spawn("close batches by age", client.clone().close_by_age());
        env::spawn("watch durable epoch", watch_durable(Rc::downgrade(&client), port));
        if !client.is_read_only() {
            client.fetch_groups();
        }
        client
    }

    /// The engine takes no change from this client: its certificate says so.
    pub fn is_read_only(&self) -> bool {
        self.port.greeted().read_only
    }

    /// Version of the filesystem's format.
    pub fn format(&self) -> u32 {
        self.port.greeted().format
    }

    /// Where this client's paths begin: the filesystem's root, or the directory that its certificate names.
    pub fn root(&self) -> Ino {
        self.root
    }

    /// The engine shows this client what is below [`Client::root`] and nothing else.
    pub fn is_confined(&self) -> bool {
        self.root != Ino::ROOT
    }

    pub fn rid(&self) -> Rid {
        self.rid
    }

    pub fn fsid(&self) -> Fsid {
        self.port.greeted().fsid
    }

    pub fn durable_epoch(&self) -> Epoch {
        self.port.durable().1
    }

    pub fn term(&self) -> Term {
        self.port.durable().0
    }

    /// How long what locks cover may still be used without hearing from the engine: kernels may cache for so long.
    pub fn lease_left(&self) -> std::time::Duration {
        if self.is_dead() { std::time::Duration::ZERO } else { self.port.lease_left() }
    }

    pub fn set_release_hook(&self, hook: ReleaseHook) {
        *self.release_hook.borrow_mut() = Some(hook);
    }

    /// A lock in this mode would be had at once, from memory.
    pub fn holds(&self, name: LockName, mode: LockMode) -> bool {
        self.locks.get(name).is_some_and(|lock| lock.usable(mode))
    }

    /// Makes everything durable, gives all locks back and closes the connection. Whoever has dirty data of its own
    /// flushes it before. Errors when something could not be made durable; the connection is closed all the same.
    pub async fn farewell(self: &Rc<Self>) -> Result<(), ClientError> {
        let synced = self.sync().await;
        if matches!(synced, Err(ClientError::Stopped)) {
            return Ok(());
        }
        // Invalidations are answered until the engine has answered.
        let answer = self.port.call(Request::Farewell, None).await.map(|r| r.body);
        self.fail(ClientError::Stopped);
        self.port.close();
        synced?;
        match answer {
            // Closed: the farewell was taken, its answer was lost with a socket, and the engine knows us no more.
            Ok(Response::Farewelled) | Err(ClientError::Stopped) => Ok(()),
            Ok(Response::Error(e)) => Err(ClientError::Engine(e)),
            Err(e) => Err(e),
            Ok(_) => Err(ClientError::Protocol { request: "Farewell" }),
        }
    }

    /// Stops at once. What was not synced may be lost.
    pub fn abort(self: &Rc<Self>) {
        self.fail(ClientError::Stopped);
        self.port.close();
    }

    pub async fn statfs(&self) -> Result<StatFs, ClientError> {
        self.check_alive()?;
        match self.port.call(Request::StatFs, None).await?.body {
            Response::StatFs(s) => Ok(s),
            Response::Error(e) => Err(ClientError::Engine(e)),
            _ => Err(ClientError::Protocol { request: "StatFs" }),
        }
    }

    /// JSON for people and tools.
    pub async fn status(&self) -> Result<String, ClientError> {
        self.check_alive()?;
        match self.port.call(Request::Status, None).await?.body {
            Response::Status { json } => Ok(json),
            Response::Error(e) => Err(ClientError::Engine(e)),
            _ => Err(ClientError::Protocol { request: "Status" }),
        }
    }

    /// A question or an order of an operator; the answer is JSON.
    pub async fn admin(&self, what: AdminRequest) -> Result<String, ClientError> {
        self.check_alive()?;
        match self.port.call(Request::Admin { what }, None).await?.body {
            Response::Status { json } => Ok(json),
            Response::Error(e) => Err(ClientError::Engine(e)),
            _ => Err(ClientError::Protocol { request: "Admin" }),
        }
    }

    pub fn stats(&self) -> ClientStats {
        let cache = self.cache.borrow();
        ClientStats {
            locks_held: self.locks.len() as u64,
            cached_bytes: cache.bytes() as u64,
            cached_groups: cache.groups() as u64,
            retained_batches: self.batches.retained.borrow().len() as u64,
            retained_batch_bytes: self.batches.retained_bytes.get() as u64,
            retained_data_bytes: self.data.runs.borrow().retained_bytes() as u64,
            ..self.counters.snapshot()
        }
    }

    /// The locks that this client knows, with their users and waiters.
    pub fn lock_views(&self) -> Vec<crate::LockView> {
        self.locks.views()
    }

    /// Waits until what locks cover may be used.
    pub(crate) async fn lease(&self) -> Result<(), ClientError> {
        self.check_alive()?;
        if self.port.lease_left().is_zero() && !mutant::active(Mutant::IgnoreLease) {
            self.port.wait_lease().await?;
            self.check_alive()?;
        }
        Ok(())
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.borrow().is_some()
    }

    /// The error that ended this client, at every call.
    pub(crate) fn check_alive(&self) -> Result<(), ClientError> {
        self.dead.borrow().clone().map_or(Ok(()), Err)
    }

    /// Ends this client: the first reason stays.
    pub(crate) fn fail(&self, why: ClientError) {
        if self.is_dead() {
            return;
        }
        if why != ClientError::Stopped {
            tracing::error!(rid = %self.rid, %why, "the client has failed");
        }
        *self.dead.borrow_mut() = Some(why.clone());
        probe::tell(|| Fact::Ended { rid: self.rid });
        let mut locks: Vec<_> = self.locks.locks.borrow().values().cloned().collect();
        locks.sort_unstable_by_key(|lock| lock.name);
        for lock in locks {
            lock.fail_waiting(&why);
        }
        self.fail_file_locks();
        self.batches.progress.wake_all();
        self.batches.opened.wake_all();
        self.inodes.changed.wake_all();
    }
}

async fn watch_durable(client: Weak<Client>, port: Rc<dyn Port>) {
    let mut seen = port.durable();
    loop {
        if port.wait_advance(seen).await.is_err() {
            return;
        }
        seen = port.durable();
        match client.upgrade() {
            Some(client) if !client.is_dead() => client.note_durable(),
            _ => return,
        }
    }
}
