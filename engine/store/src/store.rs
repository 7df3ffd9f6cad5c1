//! The store of one reactor: its shards, its log, its space, and its way to the other reactors' stores.
//!
//! Any reactor may be asked for anything; what belongs to another one goes over the [`Mesh`]. Reactor 0 also is the
//! coordinator ([`crate::central`]). Nothing here is shared between threads.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vellum_base::{Bucket, ChunkIndex, Epoch, Fsid, Key, KeyRange, Mutant, ReactorId, Rid, Term, mutant};
use vellum_format::{LogMeta, Record, Superblock, log};
use vellum_rt::local::{Notify, OneshotSender, oneshot};
use vellum_rt::{Class, spawn, yield_if_needed, yield_now};

use crate::admission::{Home, Pace, Reservations};
use crate::central::Central;
use crate::compactions::Compactions;
use crate::env::{COORDINATOR, Env};
use crate::epoch::{LocalEpochs, LogWriter, Ring};
use crate::error::StoreError;
use crate::lsm::{BlockCache, LocalFuture, LsmConfig, Shard, ShardEnv};
use crate::mesh::{Answer, Mesh, Message, Request};
use crate::moves::{HandOver, Moves};
use crate::neighbours::Neighbours;
use crate::open::ReactorSeed;
use crate::options::OpenOptions;
use crate::polled::PolledQueue;
use crate::reads::{Pins, ReadTracker};
use crate::space::Allocator;
use crate::split::Splits;

/// Which keys a client may write at the moment: the server's lock table. Asked on the reactor that owns the key's shard.
pub trait Authority {
    fn may_write(&self, rid: Rid, key: &Key) -> bool;

    /// Ends when [`Rid::ENGINE`] may write the inode group and nobody else has anything of it in a cache, and keeps it so
    /// until what it gives is dropped. `None` when that cannot be had: the node starts or stops. Asked like
    /// [`Self::may_write`].
    fn hold(&self, group: u64) -> LocalFuture<'static, Option<Box<dyn Any>>>;

    /// A shard of these buckets (the first, and the last of them) is about to move from this reactor to another one: what
    /// answers [`Self::may_write`] goes along. `None` when that cannot be now.
    fn hand_over(&self, _: (Bucket, Bucket), _: ReactorId) -> LocalFuture<'static, Option<Box<dyn HandOver>>> {
        Box::pin(async { Some(Box::new(()) as Box<dyn HandOver>) })
    }
}

/// For tools and tests that have no locks.
pub struct Everyone;

impl Authority for Everyone {
    fn may_write(&self, _: Rid, _: &Key) -> bool {
        true
    }

    fn hold(&self, _: u64) -> LocalFuture<'static, Option<Box<dyn Any>>> {
        Box::pin(async { Some(Box::new(()) as Box<dyn Any>) })
    }
}

/// Writes that memtables take between two looks at the device: some microseconds.
const CATCH_UP_WRITES: usize = 16;

/// Called with the epoch through which everything is durable.
type Listener = Rc<dyn Fn(Epoch)>;

pub struct Store {
    pub(crate) me: ReactorId,
    pub(crate) options: OpenOptions,
    /// As it was when the store was opened; [`Self::blocks`] may have grown.
    pub(crate) superblock: Superblock,
    pub(crate) blocks: Cell<u64>,
    pub(crate) term: Term,
    pub(crate) queue: PolledQueue,
    pub(crate) mesh: Rc<Mesh>,
    /// Who has which bucket, as far as this reactor knows.
    pub(crate) routes: [Cell<ReactorId>; 256],
    /// Where the clients' homes are, by the bucket of their rid: dealt out like shards when the store was opened, for good.
    homes: [ReactorId; 256],
    pub(crate) env: Rc<Env>,
    pub(crate) cache: Rc<BlockCache>,
    /// In key order. A split or a move puts another list here.
    pub(crate) shards: RefCell<Rc<[Rc<Shard>]>>,
    pub(crate) splits: Splits,
    pub(crate) moves: Moves,
    /// See [`MeshSeed::handovers`](crate::mesh::MeshSeed).
    pub(crate) handovers: Arc<AtomicU64>,
    pub(crate) neighbours: Neighbours,
    pub(crate) epochs: RefCell<LocalEpochs>,
    /// None when open for reading only.
    pub(crate) log: RefCell<Option<LogWriter>>,
    pub(crate) durable: Cell<Epoch>,
    pub(crate) wanted: Cell<Epoch>,
    pub(crate) waiters: RefCell<BTreeMap<Epoch, Vec<OneshotSender<()>>>>,
    on_durable: RefCell<Vec<Listener>>,
    pub(crate) failed: RefCell<Option<Arc<str>>>,
    failure: Notify,
    /// No new batches and no new data: the node shuts down.
    pub(crate) stopping: Cell<bool>,
    pub(crate) stopped: Cell<bool>,
    pub(crate) authority: Rc<dyn Authority>,
    pub(crate) home: Home,
    pub(crate) reservations: Reservations,
    pub(crate) space: RefCell<Allocator>,
    pub(crate) cooling: Cell<bool>,
    pub(crate) refilling: Cell<bool>,
    pub(crate) next_bucket: Cell<usize>,
    pub(crate) owners: RefCell<HashMap<ChunkIndex, ReactorId>>,
    pub(crate) reads: ReadTracker,
    /// Items there were found out from others and written anew in this run.
    pub(crate) rewritten: RefCell<Vec<KeyRange>>,
    /// Chunks that were emptied and given back.
    pub(crate) emptied_chunks: Cell<u64>,
    pub(crate) pins: Rc<Pins>,
    pub(crate) groups: RefCell<HashMap<Bucket, (u64, u64)>>,
    pub(crate) group_locks: RefCell<HashMap<Bucket, Rc<vellum_rt::local::Mutex<()>>>>,
    pub(crate) next_group: Cell<usize>,
    pub(crate) maintain: Notify,
    pub(crate) flush_through: Cell<Epoch>,
    pub(crate) compactions: Compactions,
    pub(crate) pace: Pace,
    /// A change in what holds writers back.
    pub(crate) room: Notify,
    pub(crate) central: Option<Rc<Central>>,
    pub(crate) batches: Cell<u64>,
    pub(crate) names: Arc<AtomicU64>,
    /// The task that has the memtables take what was applied is there.
    catching_up: Cell<bool>,
    pub(crate) full_epochs: Cell<u64>,
}

impl Store {
    /// Starts the store of one reactor, on that reactor. It answers when its part of the log is replayed; requests to
    /// other reactors wait until those have started.
    pub async fn start(seed: ReactorSeed, authority: Rc<dyn Authority>) -> Result<Rc<Store>, StoreError> {
        let queue = PolledQueue::open(&*seed.device, seed.options.queue_depth, "device")?;
        let mesh = Mesh::new(seed.mesh.me, seed.mesh.senders);
        let before = Epoch(seed.first_epoch.0 - 1);
        let env = Env::new(queue.clone(), mesh.clone(), seed.first_segment, before);
        let reactors = seed.options.reactors;
        let cache = BlockCache::new(seed.options.cache_bytes / reactors);
        let config = lsm_config(&seed.options, &seed.superblock, seed.shards.len());
        let shards: Rc<[Rc<Shard>]> = seed
            .shards
            .into_iter()
            .map(|s| {
                let env: Rc<dyn ShardEnv> = env.clone();
                Shard::new(s.id, s.range, s.levels, s.flushed_through, env, cache.clone(), config.clone())
            })
            .collect();
        let central = match seed.coordinator {
            Some(c) => Some(Central::new(c, queue.clone(), &seed.options)?),
            None => None,
        };
        if let Some(central) = &central {
            *env.local_space.borrow_mut() = Some(Rc::new(central.clone()));
        }
        let log = seed.log.map(|l: LogMeta| LogWriter::new(l.id, Ring::new(l.chunks, seed.superblock.chunk_blocks)));
        let store = Rc::new(Store {
            me: seed.reactor,
            space: RefCell::new(Allocator::new(seed.superblock.chunk_blocks)),
            blocks: Cell::new(seed.superblock.blocks),
            superblock: seed.superblock,
            term: seed.term,
            queue,
            routes: seed.routes.map(Cell::new),
            homes: seed.routes,
            env,
            cache,
            shards: RefCell::new(shards),
            splits: Splits::default(),
            moves: Moves::default(),
            handovers: seed.mesh.handovers,
            neighbours: Neighbours::new(seed.mesh.writes),
            epochs: RefCell::new(LocalEpochs::new(usize::from(seed.reactor.0), reactors, seed.first_epoch)),
            log: RefCell::new(log),
            durable: Cell::new(before),
            wanted: Cell::new(before),
            waiters: RefCell::default(),
            on_durable: RefCell::default(),
            failed: RefCell::default(),
            failure: Notify::new(),
            stopping: Cell::new(false),
            stopped: Cell::new(false),
            authority,
            home: Home::default(),
            reservations: Reservations::default(),
            cooling: Cell::new(false),
            refilling: Cell::new(false),
            next_bucket: Cell::new(0),
            owners: RefCell::default(),
            reads: ReadTracker::default(),
            rewritten: RefCell::default(),
            emptied_chunks: Cell::new(0),
            pins: Rc::default(),
            groups: RefCell::default(),
            group_locks: RefCell::default(),
            next_group: Cell::new(vellum_rt::random_u64() as usize % 256),
            maintain: Notify::new(),
            flush_through: Cell::new(before),
            compactions: Compactions::default(),
            pace: Pace::new(reactors),
            room: Notify::new(),
            central,
            batches: Cell::new(0),
            names: seed.mesh.names,
            catching_up: Cell::new(false),
            full_epochs: Cell::new(0),
            options: seed.options,
            mesh,
        });
        store.replay(&seed.replay).await?;
        let rebuilt = store.load_space(&seed.data_chunks).await?;
        spawn(Class::Commit, "mesh", store.clone().receive(seed.mesh.inbox)).detach();
        if !store.options.read_only {
            spawn(Class::Compaction, "maintenance", store.clone().maintenance()).detach();
            store.maintain.notify_one();
            if store.central.is_some() {
                spawn(Class::Commit, "epoch timer", store.clone().epoch_timer()).detach();
            }
            store.central.iter().for_each(|central| store.start_balance(central));
            store.write_rebuilt(rebuilt).await?;
            if let Some(central) = store.central.clone().filter(|_| store.options.scrub_every.is_some()) {
                spawn(Class::Scrub, "scrub schedule", store.clone().scrub_in_time(central)).detach();
            }
        }
        Ok(store)
    }

    /// Applies what the log holds for this reactor's shards, epoch by epoch.
    async fn replay(&self, parts: &[crate::recovery::ReplayPart]) -> Result<(), StoreError> {
        let mut at = 0;
        while let Some(epoch) = parts.get(at).map(|p| p.epoch) {
            while let Some(part) = parts.get(at).filter(|p| p.epoch == epoch) {
                for record in log::records(&part.records) {
                    let record = record.map_err(|e| StoreError::record(&format!("log part of epoch {epoch}"), &e))?;
                    self.apply_record(epoch, record);
                }
                at += 1;
                yield_if_needed().await;
            }
            for shard in self.shards().iter().filter(|s| s.wants_freeze()) {
                shard.freeze(epoch);
            }
        }
        Ok(())
    }

    /// Gives a record to the shard that owns its key, if it is here.
    pub(crate) fn apply_record(&self, epoch: Epoch, record: Record) {
        if let Some(shard) = self.shard_of(record.first_key()) {
            shard.apply(epoch, record);
        }
    }

    /// Has the memtables take what was applied, while the log that holds it is on its way to the device. The device is
    /// looked at in between: the flush behind the log does not wait for this.
    pub(crate) fn catch_up_behind_log(self: &Rc<Self>) {
        if self.catching_up.replace(true) {
            return;
        }
        let store = self.clone();
        let task = async move {
            loop {
                if store.queue.process_completions() > 0 {
                    yield_now().await;
                }
                yield_if_needed().await;
                if !store.shards().iter().any(|shard| shard.catch_up(CATCH_UP_WRITES)) {
                    break;
                }
            }
            store.catching_up.set(false);
        };
        spawn(Class::Commit, "memtables", task).detach();
    }

    /// Those of the moment.
    pub(crate) fn shards(&self) -> Rc<[Rc<Shard>]> {
        self.shards.borrow().clone()
    }

    pub(crate) fn shard_of(&self, key: &Key) -> Option<Rc<Shard>> {
        let shards = self.shards.borrow();
        // Those below end before the key's bucket.
        let at = shards.partition_point(|shard| shard.range().last.bucket() < key.bucket());
        shards.get(at).filter(|shard| shard.range().contains(key)).cloned()
    }

    pub(crate) fn shard(&self, key: &Key) -> Result<Rc<Shard>, StoreError> {
        self.shard_of(key).ok_or(StoreError::Moved)
    }

    /// How often names of inodes that were there before have changed, on all reactors: renames, links, a name less of
    /// several, a directory that died. It has grown when a read can see the change, or at the latest when the read ends:
    /// what was found out about names before one value was read, and is used while it is the same, is true.
    pub fn names(&self) -> u64 {
        self.names.load(Ordering::SeqCst)
    }

    pub fn reactor_of(&self, bucket: Bucket) -> ReactorId {
        self.routes[usize::from(bucket.0)].get()
    }

    /// The reactor on which a client's batches are admitted; asking another one costs a message. It stays the same, wherever
    /// the client's records are.
    pub fn home_of(&self, rid: Rid) -> ReactorId {
        self.homes[usize::from(vellum_format::system::bucket_of_rid(rid).0)]
    }

    pub fn term(&self) -> Term {
        self.term
    }

    pub fn fsid(&self) -> Fsid {
        self.superblock.fsid
    }

    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    pub fn durable_epoch(&self) -> Epoch {
        self.durable.get()
    }

    /// `f` is called on this reactor whenever more is durable.
    pub fn on_durable(&self, f: Box<dyn Fn(Epoch)>) {
        self.on_durable.borrow_mut().push(f.into());
    }

    pub(crate) fn tell_durable(&self, epoch: Epoch) {
        let listeners = self.on_durable.borrow().clone();
        listeners.iter().for_each(|f| f(epoch));
    }

    /// Ends when `epoch` and all before it are durable. It closes at once because somebody waits.
    pub async fn wait_durable(self: &Rc<Self>, epoch: Epoch) -> Result<(), StoreError> {
        loop {
            self.check_failed()?;
            if epoch <= self.durable.get() || mutant::active(Mutant::AcknowledgeBeforeDurable) {
                return Ok(());
            }
            if self.options.read_only {
                return Err(StoreError::ReadOnly);
            }
            let (send, receive) = oneshot();
            self.waiters.borrow_mut().entry(epoch).or_default().push(send);
            if epoch > self.wanted.get() {
                self.wanted.set(epoch);
                self.to_coordinator(Message::Want { epoch });
            }
            let _ = receive.await; // the loop looks again
        }
    }

    /// Ends when the store has failed, here or on another reactor, with the reason.
    pub async fn until_failed(&self) -> StoreError {
        loop {
            let failure = self.failure.notified();
            let reason = self.failed.borrow().clone();
            if let Some(reason) = reason {
                return StoreError::Failed(reason);
            }
            failure.await;
        }
    }

    pub(crate) fn check_failed(&self) -> Result<(), StoreError> {
        if let Some(reason) = &*self.failed.borrow() {
            return Err(StoreError::Failed(reason.clone()));
        }
        if self.stopped.get() { Err(StoreError::Closed) } else { Ok(()) }
    }

    pub(crate) fn check_writable(&self) -> Result<(), StoreError> {
        self.check_failed()?;
        if self.options.read_only {
            return Err(StoreError::ReadOnly);
        }
        if self.stopping.get() { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Something that was promised cannot be kept: nothing is acknowledged any more, here and everywhere.
    pub(crate) fn fail(self: &Rc<Self>, reason: impl ToString) {
        let reason: Arc<str> = reason.to_string().into();
        if self.fail_here(&reason) {
            for other in self.mesh.others() {
                self.mesh.post(other, Message::Failed { reason: reason.clone() });
            }
        }
    }

    fn fail_here(&self, reason: &Arc<str>) -> bool {
        if self.failed.borrow().is_some() {
            return false;
        }
        tracing::error!(reactor = self.me.0, %reason, "the store failed");
        *self.failed.borrow_mut() = Some(reason.clone());
        drop(self.waiters.take()); // they look, and find the failure
        self.failure.notify_all();
        self.room.notify_all();
        self.maintain.notify_one();
        true
    }

    pub(crate) fn to_coordinator(self: &Rc<Self>, message: Message) {
        if self.me == COORDINATOR { self.handle(message) } else { self.mesh.post(COORDINATOR, message) }
    }

    /// Asks a reactor, this one included.
    pub(crate) async fn ask(self: &Rc<Self>, to: ReactorId, request: Request) -> Result<Answer, StoreError> {
        if to == self.me {
            return Box::pin(self.clone().serve(self.me, request)).await;
        }
        self.mesh.call(to, request).await.unwrap_or(Err(StoreError::Closed))
    }

    async fn receive(self: Rc<Self>, mut inbox: vellum_rt::channel::Receiver<Message>) {
        while let Some(message) = inbox.recv().await {
            if matches!(message, Message::Stop) {
                break;
            }
            self.handle(message);
        }
        self.stop_here();
    }

    pub(crate) fn stop_here(&self) {
        self.stopped.set(true);
        drop(self.waiters.take());
        self.mesh.close();
        self.maintain.notify_one();
        self.room.notify_all();
        if let Some(central) = &self.central {
            central.wake.notify_one();
            central.evacuation.wake.notify_one();
            central.scrub_wake.notify_one();
            central.balance.wake.notify_one();
        }
    }

    /// Takes a message; never waits.
    pub(crate) fn handle(self: &Rc<Self>, message: Message) {
        match message {
            Message::Call { from, id, request } => self.take_call(from, id, *request),
            Message::Answer { id, answer } => self.mesh.answered(id, answer),
            Message::Apply { token, epoch } => {
                self.apply_reserved(token, epoch);
                self.epochs.borrow_mut().received(epoch);
                self.close_parts();
            }
            Message::Abort { token } => self.abort_reserved(token),
            Message::Close { epoch } => self.close_epoch(epoch),
            Message::Declared { epoch, messages } => {
                self.epochs.borrow_mut().declared(epoch, messages);
                self.close_parts();
            }
            Message::Durable { epoch, oldest_reader, debt } => {
                self.pace.note_debt(self.me, debt);
                self.became_durable(epoch, oldest_reader);
            }
            Message::FlushThrough { epoch } => {
                self.flush_through.set(self.flush_through.get().max(epoch));
                self.maintain.notify_one();
            }
            Message::Failed { reason } => {
                self.fail_here(&reason);
            }
            Message::Stop => self.stop_here(),
            central => self.handle_central(central),
        }
    }
}

impl Store {
    fn take_call(self: &Rc<Self>, from: ReactorId, id: u64, request: Request) {
        let store = self.clone();
        if let Request::Commit { rid, batch } = request {
            // The turn is taken now, not when the task first runs: batches are admitted in the order they came in.
            let admission = self.commit_here(rid, batch, None);
            let task = async move {
                let answer = Ok(Answer::Committed(admission.await));
                store.mesh.post(from, Message::Answer { id, answer });
            };
            spawn(Class::Request, "commit", task).detach();
            return;
        }
        let background = matches!(request, Request::ScrubStep { .. } | Request::EvacuationStep { .. });
        let class = if background { Class::Scrub } else { Class::Request };
        let task = async move {
            let answer = store.clone().serve(from, request).await;
            store.mesh.post(from, Message::Answer { id, answer });
        };
        spawn(class, "store call", task).detach();
    }
}

pub(crate) fn lsm_config(options: &OpenOptions, sb: &Superblock, shards_here: usize) -> LsmConfig {
    let per_shard = options.memtable_bytes / options.reactors / shards_here.max(1);
    let defaults = LsmConfig::default();
    // Small devices have small segments, so that a compaction fits the reserve.
    let device = sb.blocks * vellum_base::BLOCK_SIZE as u64;
    let segment = (device / 256).clamp(256 << 10, defaults.segment_bytes as u64) as usize;
    let memtable = (per_shard / defaults.memtable_backlog.max(1)).clamp(16 << 10, 32 << 20);
    LsmConfig {
        memtable_bytes: memtable.min((device / 256).max(128 << 10) as usize),
        segment_bytes: segment,
        copies: sb.metadata_copies,
        ..defaults
    }
}
