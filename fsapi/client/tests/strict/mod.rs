//! A strict engine in memory for the model tests: all requests, locks between several clients over connections with
//! random delays each way, epochs that become durable late, crashes that lose the rest and begin a new term.
//!
//! It is strict where an engine is: a batch out of order, a key written without its lock, a block that is neither
//! pending nor moved, an inode that dies with extents, is refused, and so ends the test's client. After a crash the
//! lowest free blocks are given out again, so that an address that is stale soon means something else.
#![allow(dead_code, reason = "each test uses a part of it")]

pub mod locks;
pub mod port;
pub mod state;

use std::future::Future;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use vellum_base::prng::Prng;
use vellum_base::{Batch, BatchNo, DmaSlice, Epoch, Fsid, Ino, Key, Rid, View};
use vellum_format::IndexKind;
use vellum_wire::{ErrorCode, Greeted, LockName, Request, Response, StatFs, WireError};

use vellum_client::{Client, ClientError, ClientOptions};
use vellum_rt::Class;
use vellum_rt::local::Notify;

use self::locks::FakeLocks;
use self::port::FakePort;
use self::state::State;

pub fn spawn(name: &'static str, task: impl Future<Output = ()> + 'static) {
    vellum_rt::spawn(Class::Request, name, task).detach();
}

/// A condition to wait for.
#[derive(Default)]
pub struct Signal(Notify);

impl Signal {
    pub fn wake_all(&self) {
        self.0.notify_all();
    }

    pub async fn until<T>(&self, mut check: impl FnMut() -> Option<T>) -> T {
        loop {
            let changed = self.0.notified();
            if let Some(value) = check() {
                return value;
            }
            changed.await;
        }
    }
}

#[derive(Clone, Debug)]
pub struct FakeConfig {
    pub seed: u64,
    pub total_blocks: u64,
    /// Each message takes up to this long, each way.
    pub latency: Duration,
    /// An epoch closes this long after its first batch, or when somebody waits; then it takes `flush`.
    pub epoch: Duration,
    pub flush: Duration,
    /// One in so many is answered Busy, or allocated in two runs; 0: none.
    pub busy_one_in: u64,
    pub torn_one_in: u64,
}

impl Default for FakeConfig {
    fn default() -> Self {
        FakeConfig {
            seed: 1,
            total_blocks: 1 << 20,
            latency: Duration::from_micros(100),
            epoch: Duration::from_millis(20),
            flush: Duration::from_micros(300),
            busy_one_in: 0,
            torn_one_in: 0,
        }
    }
}

/// The engine. Share it, make clients of it, crash it.
pub struct FakeEngine {
    pub(crate) config: RefCell<FakeConfig>,
    pub(crate) state: RefCell<State>,
    pub(crate) locks: FakeLocks,
    pub(crate) ports: RefCell<BTreeMap<Rid, Rc<FakePort>>>,
    /// Clients that have not yet told this leader what they hold: no grants before that.
    pub(crate) recovering: RefCell<BTreeSet<Rid>>,
    pub(crate) fenced: RefCell<BTreeSet<Rid>>,
    pub(crate) changed: Signal,
    requests: Cell<u64>,
    closing: Cell<Epoch>,
    prng: RefCell<Prng>,
    me: Weak<FakeEngine>,
}

/// What is known at once, or `None` when the answer comes later.
type Now = Option<(Response, Option<DmaSlice>)>;

impl FakeEngine {
    /// An engine of an empty filesystem: a root directory and nothing else.
    pub fn new(config: FakeConfig) -> Rc<FakeEngine> {
        Rc::new_cyclic(|me| FakeEngine {
            state: RefCell::new(State::new(config.total_blocks)),
            locks: FakeLocks::default(),
            ports: RefCell::default(),
            recovering: RefCell::default(),
            fenced: RefCell::default(),
            changed: Signal::default(),
            requests: Cell::default(),
            closing: Cell::default(),
            prng: RefCell::new(Prng::new(config.seed)),
            config: RefCell::new(config),
            me: me.clone(),
        })
    }

    /// A connected client with a random rid, or that of the options.
    pub async fn connect(&self, options: ClientOptions) -> Rc<Client> {
        let rid = options.rid.unwrap_or_else(|| Rid(vellum_rt::random_u64()));
        let port = FakePort::new(self.rc(), rid);
        self.state.borrow_mut().rids.entry(rid).or_default();
        self.ports.borrow_mut().insert(rid, port.clone());
        port.open();
        vellum_rt::sleep(self.latency()).await;
        Client::start(port, rid, options)
    }

    /// Power fails: all that is not durable is lost. Clients come back to another leader.
    pub fn crash(&self) {
        self.state.borrow_mut().crash();
        self.locks.crash();
        self.closing.set(Epoch::NONE);
        let ports: Vec<_> = self.ports.borrow().values().cloned().collect();
        *self.recovering.borrow_mut() = ports.iter().map(|p| p.rid()).collect();
        ports.iter().for_each(FakePort::lose);
        self.changed.wake_all();
    }

    /// Declares a client dead: its locks go, its connection ends.
    pub fn fence(&self, rid: Rid) {
        self.fenced.borrow_mut().insert(rid);
        self.forget(rid);
        let port = self.ports.borrow_mut().remove(&rid);
        if let Some(port) = port {
            port.shut(ClientError::Fenced { unsynced: 0 });
        }
    }

    /// The item as applied, or as it would be after a crash now.
    pub fn item(&self, key: &Key, view: View) -> Option<Bytes> {
        let state = self.state.borrow();
        match view {
            View::Applied => state.applied.get(key).cloned(),
            View::Durable => state.kept.get(key).cloned(),
        }
    }

    pub fn items(&self, view: View) -> BTreeMap<Key, Bytes> {
        let state = self.state.borrow();
        if view == View::Applied { state.applied.clone() } else { state.kept.clone() }
    }

    pub fn configure(&self, change: impl FnOnce(&mut FakeConfig)) {
        change(&mut self.config.borrow_mut());
    }

    /// Requests so far: shows what costs a round trip.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    pub fn free_blocks(&self) -> u64 {
        self.state.borrow().free_blocks()
    }

    pub(crate) fn rc(&self) -> Rc<FakeEngine> {
        self.me.upgrade().expect("methods are called on a living engine")
    }

    pub(crate) fn latency(&self) -> Duration {
        let max = self.config.borrow().latency.as_nanos() as u64;
        Duration::from_nanos(self.prng.borrow_mut().below(max + 1))
    }

    fn one_in(&self, n: u64) -> bool {
        n > 0 && self.prng.borrow_mut().one_in(n)
    }

    pub(crate) fn greeted(&self, rid: Rid) -> Greeted {
        let state = self.state.borrow();
        Greeted {
            fsid: Fsid([7; 16]),
            term: state.term,
            protocol: 1,
            format: 1,
            last_batch: state.rids.get(&rid).map_or(BatchNo(0), |r| r.last_batch),
            durable: state.durable,
            lease_ms: 10_000,
            keepalive_ms: 1000,
            max_requests: 1024,
            max_data_bytes: 64 << 20,
            read_only: false,
            root: Ino::ROOT,
        }
    }

    fn forget(&self, rid: Rid) {
        {
            let mut state = self.state.borrow_mut();
            state.locks.values_mut().for_each(|holders| {
                holders.remove(&rid);
            });
            state.forget_pending(rid);
        }
        self.recovering.borrow_mut().remove(&rid);
        self.locks.forget(rid);
        self.changed.wake_all();
    }

    /// One request, in the order of its connection.
    pub(crate) fn handle(&self, port: &Rc<FakePort>, seq: u64, request: Request, payload: Option<DmaSlice>) {
        self.requests.set(self.requests.get() + 1);
        if let Some((body, payload)) = self.answer(port, seq, request, payload) {
            port.reply(seq, body, payload);
        }
    }

    fn answer(&self, port: &Rc<FakePort>, seq: u64, request: Request, payload: Option<DmaSlice>) -> Now {
        let rid = port.rid();
        let failed = |e: WireError| (Response::Error(e), None);
        let body = match request {
            Request::Lock { wants } => {
                self.lock(port.clone(), seq, wants);
                return None;
            }
            Request::Unlock { to } => {
                for want in to {
                    self.weaken(rid, want.name, want.mode);
                }
                Response::Unlocked
            }
            Request::Get { keys, view } => {
                let values = keys.iter().map(|k| self.item(k, view)).collect();
                Response::Items { values }
            }
            Request::Scan { range, max_items, max_bytes, view } => {
                let state = self.state.borrow();
                let all = if view == View::Applied { &state.applied } else { &state.kept };
                let (mut items, mut bytes, mut next) = (Vec::new(), 0, None);
                for (key, value) in all.range(range.first..=range.last) {
                    bytes += Key::LEN + value.len();
                    if items.len() >= max_items as usize || (bytes > max_bytes as usize && !items.is_empty()) {
                        next = Some(*key);
                        break;
                    }
                    items.push((*key, value.clone()));
                }
                Response::Scanned { items, next }
            }
            Request::WriteData => {
                let torn = self.one_in(self.config.borrow().torn_one_in);
                let written = self.state.borrow_mut().write_data(rid, payload?, torn);
                written.map_or_else(Response::Error, |ranges| Response::Written { ranges })
            }
            Request::ReadData { ranges } => {
                return Some(match self.state.borrow().read_data(&ranges) {
                    Ok(data) => (Response::Data, Some(data.freeze())),
                    Err(e) => failed(e),
                });
            }
            Request::Commit { batch } => return self.commit(port, seq, batch),
            Request::Sync { through } => {
                self.sync(port.clone(), seq, through);
                return None;
            }
            Request::AllocGroup { .. } => {
                let mut state = self.state.borrow_mut();
                state.next_group += 1;
                // The bucket changes from group to group; the counter is never 0.
                let n = state.next_group;
                Response::Group { group: ((n % 4) << 46) | n }
            }
            Request::Walk { index, from_seq, from_ino, to_seq, max } => match IndexKind::from_u8(index) {
                Some(index) => {
                    let state = self.state.borrow();
                    let through = state.durable;
                    let mut entries = state.walk(index, (from_seq, from_ino), to_seq.min(through.0));
                    let next = entries.get(max as usize).copied();
                    entries.truncate(max as usize);
                    Response::Walked { entries, next, through }
                }
                None => Response::Error(WireError { code: ErrorCode::Malformed, message: "no such index".into() }),
            },
            Request::StatFs => {
                let state = self.state.borrow();
                let (total_blocks, free_blocks) = (state.total_blocks, state.free_blocks());
                let inodes = state.walk(IndexKind::MetaSeq, (0, Ino(0)), u64::MAX).len() as u64;
                Response::StatFs(StatFs { total_blocks, free_blocks, available_blocks: free_blocks, inodes })
            }
            Request::Status | Request::Admin { .. } => Response::Status { json: "{}".into() },
            Request::Farewell => {
                self.forget(rid);
                self.ports.borrow_mut().remove(&rid);
                Response::Farewelled
            }
            Request::Keepalive => Response::Alive,
            _ => Response::Error(WireError { code: ErrorCode::Malformed, message: "not from a client".into() }),
        };
        Some((body, None))
    }

    fn commit(&self, port: &Rc<FakePort>, seq: u64, batch: Batch) -> Now {
        if self.one_in(self.config.borrow().busy_one_in) {
            let busy = WireError { code: ErrorCode::Busy, message: "busy".into() };
            return Some((Response::Error(busy), None));
        }
        let number = batch.number;
        let rid = port.rid();
        let last = self.state.borrow().rids.get(&rid).map_or(BatchNo(0), |r| r.last_batch);
        if number > last.next() {
            let early = self.state.borrow_mut().rids.get_mut(&rid).and_then(|r| r.early.insert(number, (batch, seq)));
            if let Some((_, seq)) = early {
                let busy = WireError { code: ErrorCode::Busy, message: "sent twice".into() };
                port.reply(seq, Response::Error(busy), None);
            }
            return None;
        }
        let committed = self.state.borrow_mut().commit(rid, &batch);
        if committed.is_ok() {
            self.close_later();
            let early = self.state.borrow_mut().rids.get_mut(&rid).and_then(|r| r.early.remove(&number.next()));
            if let Some((next, next_seq)) = early
                && let Some((body, payload)) = self.commit(port, next_seq, next)
            {
                port.reply(next_seq, body, payload);
            }
            self.changed.wake_all();
        }
        Some((committed.map_or_else(Response::Error, |epoch| Response::Committed { number, epoch }), None))
    }

    /// The open epoch has something in it: it closes after a while.
    fn close_later(&self) {
        let (term, open) = {
            let state = self.state.borrow();
            (state.term, state.open)
        };
        if self.closing.replace(open) == open {
            return;
        }
        let (engine, delay) = (self.rc(), self.config.borrow().epoch);
        spawn("epoch", async move {
            vellum_rt::sleep(delay).await;
            if engine.state.borrow().term == term && engine.state.borrow().open == open {
                engine.close().await;
            }
        });
    }

    async fn close(&self) {
        let (term, epoch) = {
            let mut state = self.state.borrow_mut();
            let epoch = state.open;
            state.open = epoch.next();
            (state.term, epoch)
        };
        let flush = self.config.borrow().flush;
        vellum_rt::sleep(flush).await;
        if self.state.borrow().term != term {
            return;
        }
        self.state.borrow_mut().make_durable(epoch);
        let ports: Vec<_> = self.ports.borrow().values().cloned().collect();
        ports.iter().for_each(|port| port.tell_durable());
        self.changed.wake_all();
    }

    fn sync(&self, port: Rc<FakePort>, seq: u64, through: BatchNo) {
        let (engine, rid, term) = (self.rc(), port.rid(), self.state.borrow().term);
        spawn("fake sync", async move {
            let gone = || engine.state.borrow().term != term || engine.fenced.borrow().contains(&rid);
            let applied = || engine.state.borrow().rids.get(&rid).is_some_and(|r| r.last_batch >= through);
            engine.changed.until(|| (applied() || gone()).then_some(())).await;
            if gone() {
                return;
            }
            engine.close().await;
            let durable = engine.state.borrow().durable;
            if !gone() {
                port.reply(seq, Response::Synced { durable }, None);
            }
        });
    }

    /// Modes by holder: for checkers.
    pub fn holders(&self, name: LockName) -> BTreeMap<Rid, vellum_wire::LockMode> {
        self.state.borrow().locks.get(&name).cloned().unwrap_or_default()
    }
}
