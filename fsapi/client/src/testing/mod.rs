//! An engine in memory, for tests of clients and of what is built on them: items, locks with invalidation, epochs that
//! become durable later, crashes that lose what was not durable. It runs on any world of the runtime seam.
//!
//! It obeys the contract of [`Port`]: requests of one client are taken in order, grants and invalidations of one lock
//! arrive in the order in which they were decided, and after a crash nothing flows before the client has recovered.

mod files;
mod locks;
mod state;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::{BatchNo, DmaSlice, Epoch, Fsid, Ino, Rid, Term};
use vellum_rt::local::{Notify, OneshotSender, oneshot};
use vellum_wire::{Greeted, LockGrant, Request, Response, StatFs};

use crate::port::{CallFuture, LocalBoxFuture, Port, Reply, Upcalls};
use crate::{Client, ClientError, ClientOptions, env};
use state::State;

/// How the engine behaves.
#[derive(Clone, Debug)]
pub struct FakeOptions {
    /// Longest delay of a request; each gets a random one up to it.
    pub latency: Duration,
    /// Between the commit of a batch and its durability, when nobody waits.
    pub epoch_delay: Duration,
    /// Data is written in runs of at most so many blocks, to tear extents.
    pub max_run_blocks: u32,
    /// The same for data that is sent again to a new leader.
    pub max_resent_run_blocks: u32,
    /// What `StatFs` answers.
    pub available_blocks: u64,
    /// Version of the filesystem's format.
    pub format: u32,
}

impl Default for FakeOptions {
    fn default() -> Self {
        FakeOptions {
            latency: Duration::from_micros(50),
            epoch_delay: Duration::from_millis(5),
            max_run_blocks: 256,
            max_resent_run_blocks: 256,
            available_blocks: 1 << 19,
            format: vellum_format::superblock::FORMAT_VERSION,
        }
    }
}

/// The engine. Share it, make clients of it, crash it.
pub struct FakeEngine {
    state: RefCell<State>,
    options: FakeOptions,
    ports: RefCell<Vec<Rc<FakePort>>>,
    /// Durability, locks or terms changed.
    changed: Notify,
    sync_wanted: Notify,
    requests: Cell<u64>,
}

impl FakeEngine {
    pub fn new(options: FakeOptions) -> Rc<FakeEngine> {
        let engine = Rc::new(FakeEngine {
            state: RefCell::new(State::new()),
            options,
            ports: RefCell::default(),
            changed: Notify::new(),
            sync_wanted: Notify::new(),
            requests: Cell::new(0),
        });
        let weak = Rc::downgrade(&engine);
        env::spawn("fake epochs", async move {
            loop {
                let Some(engine) = weak.upgrade() else { return };
                let (delay, wanted) = (engine.options.epoch_delay, engine.sync_wanted.notified());
                env::or_timeout(delay, wanted).await;
                if engine.state.borrow_mut().make_durable() {
                    engine.changed.notify_all();
                    engine.ports.borrow().iter().for_each(|p| p.advanced.notify_all());
                }
                drop(engine);
                env::sleep(Duration::from_micros(100)).await;
            }
        });
        engine
    }

    /// A client of this engine with a fresh identity.
    pub fn client(self: &Rc<Self>, options: ClientOptions) -> Rc<Client> {
        let rid = options.rid.unwrap_or_else(|| Rid(env::random_u64()));
        Client::start(self.port(rid), rid, options)
    }

    pub fn port(self: &Rc<Self>, rid: Rid) -> Rc<dyn Port> {
        let port = Rc::new(FakePort {
            engine: self.clone(),
            rid,
            queue: RefCell::default(),
            queued: Notify::new(),
            upcalls: RefCell::default(),
            term: Cell::new(self.state.borrow().term),
            recovering: Cell::new(false),
            closed: Cell::new(false),
            advanced: Notify::new(),
        });
        self.ports.borrow_mut().push(port.clone());
        env::spawn("fake port", port.clone().serve());
        port
    }

    /// Requests handled so far: shows what costs a round trip.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Loses everything that is not durable, and comes back as a new leader that every client must recover with.
    pub fn crash(self: &Rc<Self>) {
        self.state.borrow_mut().crash();
        self.changed.notify_all();
        let ports = self.ports.borrow().clone();
        for port in ports.into_iter().filter(|p| !p.closed.get()) {
            port.recovering.set(true);
            env::spawn("fake recovery", port.recover());
        }
    }

    /// Some client of before a crash has not told yet what it holds: no lock is granted until then.
    fn is_recovering(&self) -> bool {
        self.ports.borrow().iter().any(|p| p.recovering.get() && !p.closed.get())
    }

    /// Every durable item, for comparisons.
    pub fn durable_items(&self) -> Vec<(vellum_base::Key, bytes::Bytes)> {
        self.state.borrow().durable_items()
    }
}

struct Queued {
    request: Request,
    payload: Option<DmaSlice>,
    answer: OneshotSender<Result<Reply, ClientError>>,
}

pub(crate) struct FakePort {
    engine: Rc<FakeEngine>,
    rid: Rid,
    queue: RefCell<VecDeque<Queued>>,
    queued: Notify,
    upcalls: RefCell<Option<Rc<dyn Upcalls>>>,
    term: Cell<Term>,
    /// Only recovery requests pass.
    recovering: Cell<bool>,
    closed: Cell<bool>,
    advanced: Notify,
}

impl FakePort {
    async fn serve(self: Rc<Self>) {
        loop {
            let more = self.queued.notified();
            if self.closed.get() {
                for q in self.queue.borrow_mut().drain(..) {
                    let _ = q.answer.send(Err(ClientError::Stopped));
                }
                return;
            }
            if self.recovering.get() || self.queue.borrow().is_empty() {
                more.await;
                continue;
            }
            let latency = self.engine.options.latency.as_nanos() as u64;
            if latency > 0 {
                env::sleep(Duration::from_nanos(env::random_u64() % latency)).await;
            }
            if self.recovering.get() {
                continue;
            }
            let Some(queued) = self.queue.borrow_mut().pop_front() else { continue };
            match queued.request {
                // These wait for others; the rest is answered in order.
                Request::Lock { .. }
                | Request::Sync { .. }
                | Request::FileLock { .. }
                | Request::FileLockTest { .. }
                | Request::FileLockCancel { .. } => {
                    let port = self.clone();
                    if let Request::Lock { wants } = &queued.request
                        && !self.engine.is_recovering()
                    {
                        self.engine.ask_again(self.rid, wants);
                    }
                    env::spawn("fake waiting request", async move {
                        let result = port.wait_for(&queued.request).await;
                        let _ = queued.answer.send(result);
                    });
                }
                request => {
                    let body = self.handle(request, queued.payload.as_ref());
                    let _ = queued.answer.send(Ok(self.reply(body)));
                }
            }
        }
    }

    fn reply(&self, (body, payload): (Response, Option<DmaSlice>)) -> Reply {
        Reply { body, payload, term: self.term.get() }
    }

    fn handle(&self, request: Request, payload: Option<&DmaSlice>) -> (Response, Option<DmaSlice>) {
        self.engine.requests.set(self.engine.requests.get() + 1);
        if let Some(answer) = self.engine.file_request(self.rid, &request) {
            return (answer, None);
        }
        if let Request::Unlock { to } = &request {
            self.engine.unlock(self.rid, to);
            return (Response::Unlocked, None);
        }
        if request == Request::Farewell {
            self.engine.forget_locks(self.rid);
            return (Response::Farewelled, None);
        }
        let options = &self.engine.options;
        if request == Request::StatFs {
            let available_blocks = options.available_blocks;
            let stat = StatFs { total_blocks: 1 << 20, free_blocks: 1 << 19, available_blocks, inodes: 0 };
            return (Response::StatFs(stat), None);
        }
        let max_run = if self.recovering.get() { options.max_resent_run_blocks } else { options.max_run_blocks };
        self.engine.state.borrow_mut().handle(self.rid, request, payload, max_run)
    }

    /// `Lock` and `Sync`, tried again after a crash.
    async fn wait_for(&self, request: &Request) -> Result<Reply, ClientError> {
        loop {
            if self.closed.get() {
                return Err(ClientError::Stopped);
            }
            let changed = self.engine.changed.notified();
            if !self.recovering.get() {
                let done = match request {
                    // Whoever has not said yet what it holds may hold just this.
                    Request::Lock { .. } if self.engine.is_recovering() => None,
                    Request::Lock { wants } => {
                        self.engine.ask_again(self.rid, wants);
                        self.engine.poll_lock(self.rid, wants)
                    }
                    Request::Sync { through } => self.poll_sync(*through),
                    other => self.engine.file_request(self.rid, other),
                };
                if let Some(body) = done {
                    self.engine.requests.set(self.engine.requests.get() + 1);
                    return Ok(self.reply((body, None)));
                }
            }
            changed.await;
        }
    }

    fn poll_sync(&self, through: BatchNo) -> Option<Response> {
        let state = self.engine.state.borrow();
        if state.durable_batch(self.rid) >= through {
            return Some(Response::Synced { durable: state.durable });
        }
        self.engine.sync_wanted.notify_one();
        None
    }

    async fn recover(self: Rc<Self>) {
        let upcalls = self.upcalls.borrow().clone();
        self.term.set(self.engine.state.borrow().term);
        let term = self.term.get();
        if let Some(upcalls) = upcalls {
            let _ = upcalls.new_term(self.greeted()).await;
        }
        if self.engine.state.borrow().term == term {
            self.recovering.set(false);
            self.engine.changed.notify_all();
            self.queued.notify_all();
            self.advanced.notify_all();
        }
    }
}

impl Port for FakePort {
    fn call(&self, request: Request, payload: Option<DmaSlice>) -> CallFuture {
        if self.closed.get() {
            return Box::pin(async { Err(ClientError::Stopped) });
        }
        let (answer, receiver) = oneshot();
        self.queue.borrow_mut().push_back(Queued { request, payload, answer });
        self.queued.notify_all();
        Box::pin(async move { receiver.await.unwrap_or(Err(ClientError::Stopped)) })
    }

    fn call_recovering(&self, request: Request, payload: Option<DmaSlice>) -> CallFuture {
        let stale = self.engine.state.borrow().term != self.term.get();
        let result = if stale {
            Err(ClientError::Connection("the term ended".into()))
        } else {
            Ok(self.reply(self.handle(request, payload.as_ref())))
        };
        Box::pin(async move { result })
    }

    fn recover_locks(&self, held: Vec<LockGrant>) -> LocalBoxFuture<'static, Result<(), ClientError>> {
        self.engine.reassert(self.rid, &held);
        Box::pin(async { Ok(()) })
    }

    fn greeted(&self) -> Greeted {
        let state = self.engine.state.borrow();
        Greeted {
            fsid: Fsid([7; 16]),
            term: self.term.get(),
            protocol: vellum_wire::PROTOCOL,
            format: self.engine.options.format,
            last_batch: state.last_batch(self.rid),
            durable: state.durable,
            lease_ms: 10_000,
            keepalive_ms: 1_000,
            max_requests: 1024,
            max_data_bytes: 64 << 20,
            read_only: false,
            root: Ino::ROOT,
        }
    }

    fn durable(&self) -> (Term, Epoch) {
        (self.term.get(), self.engine.state.borrow().durable)
    }

    fn wait_advance(&self, seen: (Term, Epoch)) -> LocalBoxFuture<'static, Result<(), ClientError>> {
        let Some(port) = self.engine.find(self.rid) else {
            return Box::pin(async { Err(ClientError::Stopped) });
        };
        Box::pin(async move {
            loop {
                let advanced = port.advanced.notified();
                if port.closed.get() {
                    return Err(ClientError::Stopped);
                }
                if port.durable() != seen && !port.recovering.get() {
                    return Ok(());
                }
                advanced.await;
            }
        })
    }

    fn lease_left(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn wait_lease(&self) -> LocalBoxFuture<'static, Result<(), ClientError>> {
        Box::pin(async { Ok(()) })
    }

    fn set_upcalls(&self, upcalls: Rc<dyn Upcalls>) {
        *self.upcalls.borrow_mut() = Some(upcalls);
    }

    fn close(&self) {
        self.closed.set(true);
        self.engine.forget_locks(self.rid);
        self.queued.notify_all();
        self.advanced.notify_all();
        self.engine.changed.notify_all();
    }
}
