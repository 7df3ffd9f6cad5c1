//! A store in memory that survives the nodes that use it, and a node of one reactor over it.
#![allow(dead_code)]

pub mod nodes;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use vellum_base::{
    Batch, BatchNo, BlockRange, Bucket, DmaBuf, DmaSlice, Epoch, Fsid, Ino, ItemOp, Key, KeyRange, ReactorId, Rid,
    Term, View,
};
use vellum_link::{Address, ConnectOptions, Connection, Identity, InProcessDialer, LinkError, in_process};
use vellum_proto::Timers;
use vellum_rt::local::Notify;
use vellum_rt::{Class, sleep, spawn};
use vellum_server::{
    Backend, BackendFuture, BatchJudge, NodeOptions, Reactor, ReactorParts, Scanned, TableAuthority, Walked, mesh,
};
use vellum_wire::{ErrorCode, LockGrant, LockMode, LockName, LockWant, Request, Response, StatFs, WireError};

/// What is on the device.
#[derive(Default)]
pub struct Disk {
    pub items: BTreeMap<Key, Bytes>,
    pub rids: BTreeMap<Rid, (Bytes, BatchNo)>,
    pub term: u64,
    pub data: BTreeMap<u64, DmaSlice>,
    pub next_block: u64,
    pub next_group: u64,
}

type Listener = Box<dyn Fn(Epoch)>;

pub struct FakeStore {
    pub disk: Rc<RefCell<Disk>>,
    term: Term,
    applied: Cell<Epoch>,
    durable: Cell<Epoch>,
    close: Notify,
    advanced: Notify,
    listeners: RefCell<Vec<Listener>>,
    authority: TableAuthority,
    pub commit_delay: Cell<Duration>,
    pub me: RefCell<std::rc::Weak<FakeStore>>,
}

fn done<T: 'static>(value: T) -> BackendFuture<T> {
    Box::pin(async move { Ok(value) })
}

fn error(code: ErrorCode, message: &str) -> WireError {
    WireError { code, message: message.into() }
}

impl FakeStore {
    pub fn open(disk: &Rc<RefCell<Disk>>, authority: TableAuthority) -> Rc<FakeStore> {
        disk.borrow_mut().term += 1;
        let term = disk.borrow().term;
        let store = Rc::new(FakeStore {
            disk: disk.clone(),
            term: Term(term),
            applied: Cell::new(Epoch(term * 1000)),
            durable: Cell::new(Epoch(term * 1000)),
            close: Notify::new(),
            advanced: Notify::new(),
            listeners: RefCell::default(),
            authority,
            commit_delay: Cell::new(Duration::ZERO),
            me: RefCell::default(),
        });
        *store.me.borrow_mut() = Rc::downgrade(&store);
        let weak = Rc::downgrade(&store);
        spawn(Class::Commit, "epochs", async move {
            loop {
                sleep(Duration::from_millis(2)).await;
                let Some(store) = weak.upgrade() else { return };
                if store.durable.get() < store.applied.get() {
                    store.durable.set(store.applied.get());
                    store.listeners.borrow().iter().for_each(|f| f(store.durable.get()));
                    store.advanced.notify_all();
                }
            }
        })
        .detach();
        store
    }

    fn apply(&self, rid: Rid, batch: &Batch) -> Result<Epoch, WireError> {
        let mut disk = self.disk.borrow_mut();
        let Some((_, last)) = disk.rids.get(&rid).cloned() else {
            return Err(error(ErrorCode::NotPermitted, "no record"));
        };
        if batch.number <= last {
            return Ok(self.applied.get());
        }
        if batch.number != last.next() {
            return Err(error(ErrorCode::NotPermitted, "a gap"));
        }
        for op in &batch.ops {
            let key = match op {
                ItemOp::Put { key, .. } | ItemOp::Delete { key } => *key,
                ItemOp::DeleteInode { ino } => Key::fs(*ino, 1, 0, 0, 0),
            };
            if !self.authority.may_write(rid, &key) {
                return Err(error(ErrorCode::NotPermitted, "no lock"));
            }
        }
        for op in &batch.ops {
            match op {
                ItemOp::Put { key, value } => drop(disk.items.insert(*key, value.clone())),
                ItemOp::Delete { key } => drop(disk.items.remove(key)),
                ItemOp::DeleteInode { .. } => {}
            }
        }
        disk.rids.get_mut(&rid).unwrap().1 = batch.number;
        self.applied.set(self.applied.get().next());
        Ok(self.applied.get())
    }
}

impl Backend for FakeStore {
    fn fsid(&self) -> Fsid {
        Fsid([3; 16])
    }
    fn term(&self) -> Term {
        self.term
    }
    fn format(&self) -> u32 {
        1
    }
    fn durable_epoch(&self) -> Epoch {
        self.durable.get()
    }
    fn on_durable(&self, f: Box<dyn Fn(Epoch)>) {
        self.listeners.borrow_mut().push(f);
    }
    fn reactor_of(&self, _: Bucket) -> ReactorId {
        ReactorId(0)
    }
    fn home_of(&self, _: Rid) -> ReactorId {
        ReactorId(0)
    }
    fn get(&self, keys: Vec<Key>, _: View) -> BackendFuture<Vec<Option<Bytes>>> {
        let disk = self.disk.borrow();
        done(keys.iter().map(|key| disk.items.get(key).cloned()).collect())
    }
    fn scan(&self, range: KeyRange, max_items: usize, _: usize, _: View) -> BackendFuture<Scanned> {
        let disk = self.disk.borrow();
        let mut items: Vec<_> =
            disk.items.range(range.first..=range.last).take(max_items + 1).map(|(k, v)| (*k, v.clone())).collect();
        let next = (items.len() > max_items).then(|| items.pop().unwrap().0);
        done((items, next))
    }
    fn walk(&self, _: u8, _: (u64, Ino), _: u64, _: usize) -> BackendFuture<Walked> {
        done((vec![], None, self.durable.get()))
    }
    fn commit(&self, rid: Rid, batch: Batch, judge: Option<BatchJudge>) -> BackendFuture<Epoch> {
        let store = self.me.borrow().upgrade().unwrap();
        Box::pin(async move {
            sleep(store.commit_delay.get()).await;
            if let Some(judge) = judge {
                judge().await?;
            }
            store.apply(rid, &batch)
        })
    }
    fn wait_durable(&self, epoch: Epoch) -> BackendFuture<()> {
        let store = self.me.borrow().upgrade().unwrap();
        Box::pin(async move {
            loop {
                let advanced = store.advanced.notified();
                if store.durable.get() >= epoch {
                    return Ok(());
                }
                advanced.await;
            }
        })
    }
    fn write_data(&self, _: Rid, data: DmaSlice) -> BackendFuture<Vec<BlockRange>> {
        let mut disk = self.disk.borrow_mut();
        disk.next_block += 1000;
        let at = disk.next_block;
        let range = BlockRange::new(at, (data.len() / 4096) as u32);
        disk.data.insert(at, data);
        done(vec![range])
    }
    fn read_data(&self, ranges: Vec<BlockRange>) -> BackendFuture<DmaSlice> {
        let disk = self.disk.borrow();
        let mut out = Vec::new();
        for range in ranges {
            match disk.data.get(&range.start.0) {
                Some(data) => out.extend_from_slice(data),
                None => return Box::pin(async { Err(error(ErrorCode::NotFound, "no such block")) }),
            }
        }
        done(DmaBuf::copy_from(&out, true).freeze())
    }
    fn names(&self) -> u64 {
        self.applied.get().0
    }
    fn hold_blocks(&self) -> Box<dyn std::any::Any> {
        Box::new(()) // none is used twice
    }
    fn alloc_group(&self, _: Option<Ino>, _: Option<Ino>) -> BackendFuture<u64> {
        let mut disk = self.disk.borrow_mut();
        disk.next_group += 1;
        done(disk.next_group)
    }
    fn statfs(&self) -> BackendFuture<StatFs> {
        done(StatFs { total_blocks: 10, free_blocks: 5, available_blocks: 4, inodes: 1 })
    }
    fn status(&self) -> BackendFuture<serde_json::Value> {
        done(serde_json::json!({ "fake": true }))
    }
    fn open_rid(&self, rid: Rid, identity: Bytes) -> BackendFuture<BatchNo> {
        let mut disk = self.disk.borrow_mut();
        done(disk.rids.entry(rid).or_insert((identity, BatchNo(0))).1)
    }
    fn close_rid(&self, rid: Rid) -> BackendFuture<()> {
        self.disk.borrow_mut().rids.remove(&rid);
        done(())
    }
    fn rids(&self) -> BackendFuture<Vec<(Rid, Bytes)>> {
        done(self.disk.borrow().rids.iter().map(|(rid, (identity, _))| (*rid, identity.clone())).collect())
    }
    fn shutdown(&self) -> BackendFuture<()> {
        done(())
    }
}

/// Sockets and clients outlive nodes: they find the next one under the same name.
pub struct Cluster {
    pub disk: Rc<RefCell<Disk>>,
    pub options: NodeOptions,
    pub node: RefCell<Option<(Rc<Reactor>, Rc<FakeStore>)>>,
    socket: tempfile::TempDir,
}

impl Cluster {
    pub async fn start(timers: Timers) -> Cluster {
        let cluster = Cluster {
            disk: Rc::default(),
            options: NodeOptions { timers, ..NodeOptions::default() },
            node: RefCell::default(),
            socket: tempfile::tempdir().unwrap(),
        };
        cluster.start_node().await;
        cluster
    }

    pub fn address(&self) -> Address {
        Address::Net(format!("unix:{}/s", self.socket.path().display()).parse().unwrap())
    }

    pub async fn start_node(&self) {
        let authority = TableAuthority::default();
        let store = FakeStore::open(&self.disk, authority.clone());
        let known = store.rids().await.unwrap();
        let ends = mesh(1).remove(0);
        let parts = ReactorParts { ends, backend: store.clone(), authority, options: self.options.clone(), known };
        let reactor = Reactor::start(parts);
        let Address::Net(endpoint) = self.address() else { unreachable!() };
        reactor.listen(&endpoint).unwrap();
        *self.node.borrow_mut() = Some((reactor, store));
    }

    pub async fn stop_node(&self) {
        let node = self.node.borrow_mut().take();
        if let Some((reactor, _)) = node {
            reactor.shutdown().await.unwrap();
        }
    }

    pub fn dialer(&self) -> InProcessDialer {
        let (dialer, mut listeners) = in_process(1, |_| 0);
        self.node.borrow().as_ref().unwrap().0.listen_in_process(listeners.remove(0));
        dialer
    }

    pub async fn client(&self, rid: u64) -> Rc<TestClient> {
        TestClient::connect(self.address(), rid, self.options.timers).await
    }
}

/// A client that keeps what it must: its locks, and its batches until they are durable.
pub struct TestClient {
    pub conn: Rc<Connection>,
    pub locks: RefCell<BTreeMap<LockName, LockGrant>>,
    pub retained: RefCell<Vec<(Batch, Option<Epoch>)>>,
    pub next_batch: Cell<u64>,
    pub invalidated: Cell<u64>,
    /// Invalidations wait while this is set.
    pub busy: Cell<bool>,
    pub freed: Notify,
}

impl TestClient {
    pub async fn connect(address: Address, rid: u64, timers: Timers) -> Rc<TestClient> {
        let options = ConnectOptions {
            timers,
            open_within: Some(Duration::from_secs(5)),
            insecure_network: true,
            ..ConnectOptions::default()
        };
        TestClient::connect_with(address, rid, options).await
    }

    pub async fn connect_with(address: Address, rid: u64, options: ConnectOptions) -> Rc<TestClient> {
        let identity = Identity { rid: Rid(rid), fsid: None };
        let conn = Connection::open(address, identity, options).await.unwrap();
        let client = Rc::new(TestClient {
            conn,
            locks: RefCell::default(),
            retained: RefCell::default(),
            next_batch: Cell::new(1),
            invalidated: Cell::new(0),
            busy: Cell::new(false),
            freed: Notify::new(),
        });
        let weak = Rc::downgrade(&client);
        client.conn.set_handler(Rc::new(move |request| {
            let client = weak.upgrade();
            let Request::Invalidate { name, mode } = request else { panic!() };
            Box::pin(async move {
                if let Some(client) = client {
                    client.weaken(name, mode).await;
                }
                Response::Invalidated
            })
        }));
        let weak = Rc::downgrade(&client);
        client.conn.on_new_term(Rc::new(move |greeted| {
            let client = weak.upgrade();
            Box::pin(async move {
                let Some(client) = client else { return };
                client.recover(greeted.last_batch).await;
            })
        }));
        client
    }

    async fn weaken(&self, name: LockName, mode: LockMode) {
        let term = self.conn.greeting().term;
        while self.busy.get() {
            self.freed.notified().await;
        }
        // Everything dirty is durable before the answer.
        let through = BatchNo(self.next_batch.get() - 1);
        let _ = self.conn.call(Request::Sync { through }, None).await;
        if self.conn.greeting().term != term {
            return; // what was asked in an old term is void: the old mode was reasserted, perhaps granted again
        }
        self.invalidated.set(self.invalidated.get() + 1);
        let mut locks = self.locks.borrow_mut();
        if let Some(grant) = locks.get_mut(&name) {
            grant.mode = grant.mode.min(mode);
        }
        locks.retain(|_, grant| grant.mode != LockMode::Null);
    }

    async fn recover(&self, last: BatchNo) {
        let locks: Vec<_> = self.locks.borrow().values().copied().collect();
        for page in locks.chunks(2) {
            self.conn.call_recovery(Request::Reassert { locks: page.to_vec(), last: false }, None).await.unwrap();
        }
        self.conn.call_recovery(Request::Reassert { locks: vec![], last: true }, None).await.unwrap();
        let batches: Vec<_> = self.retained.borrow().iter().map(|(batch, _)| batch.clone()).collect();
        for batch in batches.into_iter().filter(|batch| batch.number > last) {
            self.conn.call_recovery(Request::Commit { batch }, None).await.unwrap();
        }
    }

    pub async fn lock(self: &Rc<Self>, groups: &[(u64, LockMode)]) -> Result<(), LinkError> {
        self.lock_and(groups, |_| {}).await
    }

    /// Takes locks and uses them until [`Self::unuse`]. The use begins when the grant arrives, not when the one who waits
    /// for it runs: an invalidation may come right behind, and two clients would take the locks from each other for ever
    /// (scenario 12).
    pub async fn lock_and_use(self: &Rc<Self>, groups: &[(u64, LockMode)]) -> Result<(), LinkError> {
        self.lock_and(groups, |client| client.busy.set(true)).await
    }

    pub fn unuse(&self) {
        self.busy.set(false);
        self.freed.notify_all();
    }

    async fn lock_and(
        self: &Rc<Self>,
        groups: &[(u64, LockMode)],
        then: impl FnOnce(&TestClient) + 'static,
    ) -> Result<(), LinkError> {
        let wants = groups.iter().map(|(g, mode)| LockWant { name: LockName::Group(*g), mode: *mode }).collect();
        let client = self.clone();
        let reply = self.conn.call_observed(Request::Lock { wants }, None, move |reply| {
            if let Ok(reply) = reply
                && let Response::Granted { grants, .. } = &reply.body
            {
                client.locks.borrow_mut().extend(grants.iter().map(|grant| (grant.name, *grant)));
                then(&client);
            }
        });
        reply.await.map(|_| ())
    }

    pub async fn put(&self, group: u64, value: &str) -> Result<Epoch, LinkError> {
        let op = ItemOp::Put { key: key(group), value: Bytes::copy_from_slice(value.as_bytes()) };
        self.commit(vec![op]).await
    }

    pub async fn commit(&self, ops: Vec<ItemOp>) -> Result<Epoch, LinkError> {
        let number = BatchNo(self.next_batch.get());
        self.next_batch.set(number.0 + 1);
        let batch = Batch { number, ops };
        self.retained.borrow_mut().push((batch.clone(), None));
        let result = self.conn.call(Request::Commit { batch }, None).await;
        match result?.body {
            Response::Committed { epoch, number: n } if n == number => Ok(epoch),
            other => panic!("{other:?}"),
        }
    }

    pub async fn get(&self, group: u64) -> Option<String> {
        let reply = self.conn.call(Request::Get { keys: vec![key(group)], view: View::Applied }, None).await.unwrap();
        let Response::Items { values } = reply.body else { panic!() };
        values[0].as_ref().map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    pub async fn sync(&self) -> Result<Epoch, LinkError> {
        let through = BatchNo(self.next_batch.get() - 1);
        match self.conn.call(Request::Sync { through }, None).await?.body {
            Response::Synced { durable } => Ok(durable),
            other => panic!("{other:?}"),
        }
    }
}

pub fn key(group: u64) -> Key {
    Key::fs(Ino::first_of_group(group), 1, 0, 0, 0)
}
