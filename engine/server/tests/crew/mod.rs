//! A leader, workers and a client on one device, in the simulated world. The device is shared as processes share one: what a
//! dead process had in flight lands later, or never.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use vellum_base::{Batch, BatchNo, Ino, ItemOp, Key, Rid, View};
use vellum_format::{Inode, ItemKind};
use vellum_link::{ConnectOptions, Connection, Identity, LinkError, LocalBoxFuture};
use vellum_nvme::fault::{FaultDevice, ProcessId};
use vellum_rt::Class;
use vellum_rt::channel::{Sender, bounded};
use vellum_rt::sim::{NodeId, ReactorHandle, SimConfig, World};
use vellum_server::worker::{self, WorkerError, WorkerOptions};
use vellum_server::{Limits, NodeOptions, Progress, StopHandle, WorkerProbe};
use vellum_store::lsm::{Cancel, CompactionJob, execute};
use vellum_store::{CheckOptions, MkfsOptions, Prefer};
use vellum_wire::{AdminRequest, Greeting, LockMode, LockName, LockWant, Request, Response};

use crate::fake::nodes::*;

pub const LEADER: ProcessId = ProcessId(1);

/// Slots that are fenced.
#[derive(Default, Debug)]
pub struct Fenced(pub Mutex<BTreeSet<u8>>);

impl WorkerProbe for Fenced {
    fn is_gone(&self, slot: u8, _: Option<vellum_rt::Instant>) -> bool {
        self.0.lock().unwrap().contains(&slot)
    }
}

pub struct Lab {
    pub world: World,
    pub device: FaultDevice,
    pub leader: NodeId,
    stop: Option<StopHandle>,
    progress: Arc<Mutex<Vec<Progress>>>,
    pub fenced: Arc<Fenced>,
    client: ReactorHandle,
    connection: Rc<RefCell<Option<Rc<Connection>>>>,
    next: Rc<Cell<u64>>,
    pub group: Rc<Cell<u64>>,
    written: u64,
    reactors: usize,
}

impl Lab {
    pub fn new(seed: u64, reactors: usize) -> Lab {
        let mut world = World::new(seed, SimConfig::default());
        let mkfs = MkfsOptions { shards: 2, ..MkfsOptions::default() };
        let device = sim_formatted(&mut world, seed, 256 << 20, mkfs);
        let (leader, clients) = (world.add_node(), world.add_node());
        let client = world.add_reactor(clients);
        let mut lab = Lab {
            world,
            device,
            leader,
            stop: None,
            progress: Arc::default(),
            fenced: Arc::default(),
            client,
            connection: Rc::default(),
            next: Rc::new(Cell::new(1)),
            group: Rc::default(),
            written: 0,
            reactors,
        };
        lab.lead(LEADER);
        lab
    }

    pub fn lead(&mut self, process: ProcessId) {
        self.progress = Arc::default();
        let progress = self.progress.clone();
        let options = NodeOptions {
            prefer: Prefer::Helpers,
            worker_probe: Some(self.fenced.clone()),
            limits: Limits { job: Duration::from_secs(20), ..Limits::default() },
            ..node_options(self.reactors)
        };
        let device = self.device.opened_by(process).as_device();
        let tell = move |step| progress.lock().unwrap().push(step);
        self.stop = Some(start_node(&mut self.world, self.leader, device, options, tell));
        let progress = self.progress.clone();
        self.until("the node is up", move || {
            progress.lock().unwrap().iter().any(|step| matches!(step, Progress::Up(_)))
        });
    }

    pub fn kill_leader(&mut self, process: ProcessId) {
        self.world.kill_node(self.leader);
        self.device.opened_by(process).process_died();
        self.stop = None;
    }

    pub fn until(&mut self, what: &str, done: impl FnMut() -> bool) {
        let steps = self.progress.clone();
        let ok = self.world.run_until(done, LONG);
        assert!(ok, "{what}: never; {:?}", steps.lock().unwrap());
    }

    /// Runs on the client's reactor.
    pub fn on_client<T: 'static>(&mut self, what: impl Future<Output = T> + 'static) -> T {
        self.world.block_on(self.client, LONG, what).expect("it ends")
    }

    fn connect(&mut self) {
        let (slot, group) = (self.connection.clone(), self.group.clone());
        let known = group.get();
        let link = ConnectOptions { open_within: None, insecure_network: true, ..ConnectOptions::default() };
        self.on_client(async move {
            let connection =
                Connection::open(address(), Identity { rid: Rid(77), fsid: None }, link).await.expect("a connection");
            let held: Rc<Cell<Option<vellum_wire::LockGrant>>> = Rc::default();
            let (weak, hook) = (Rc::downgrade(&connection), held.clone());
            connection.on_new_term(Rc::new(move |_| {
                let (weak, held) = (weak.clone(), hook.clone());
                Box::pin(async move {
                    let Some(connection) = weak.upgrade() else { return };
                    let locks = held.get().into_iter().collect();
                    let said = connection.call_recovery(Request::Reassert { locks, last: true }, None).await;
                    said.expect("the lock is still ours");
                })
            }));
            assert_eq!(known, 0);
            let reply = connection.call(Request::AllocGroup { near: None }, None).await.unwrap();
            let Response::Group { group: fresh } = reply.body else { panic!() };
            group.set(fresh);
            let want = LockWant { name: LockName::Group(fresh), mode: LockMode::Write };
            let reply = connection.call(Request::Lock { wants: vec![want] }, None).await.unwrap();
            let Response::Granted { grants, .. } = reply.body else { panic!() };
            held.set(grants.first().copied());
            *slot.borrow_mut() = Some(connection);
        });
    }

    /// Commits `batches` batches and makes them durable.
    pub fn write(&mut self, batches: u64) {
        if self.connection.borrow().is_none() {
            self.connect();
        }
        let connection = self.connection.borrow().clone().unwrap();
        let (from, group, next) = (self.written, self.group.get(), self.next.clone());
        self.written += batches;
        self.on_client(async move {
            for n in from..from + batches {
                let number = BatchNo(next.get());
                next.set(number.0 + 1);
                let ops = (0..24).flat_map(|i| item(group, n * 24 + i)).collect();
                connection.call(Request::Commit { batch: Batch { number, ops } }, None).await.unwrap();
            }
            let through = BatchNo(next.get() - 1);
            connection.call(Request::Sync { through }, None).await.unwrap();
        });
    }

    /// Everything that was written, as the engine has it.
    pub fn read(&mut self) {
        let connection = self.connection.borrow().clone().unwrap();
        let (group, last) = (self.group.get(), self.written * 24);
        self.on_client(async move {
            for slot in 1..1000u64 {
                // The last write of this slot.
                let newest = (0..last).rev().find(|n| slot_of(*n) == slot);
                let key = inline_key(ino(group, slot));
                let reply = connection.call(Request::Get { keys: vec![key], view: View::Applied }, None).await.unwrap();
                let Response::Items { values } = reply.body else { panic!() };
                let expected = newest.map(value);
                assert_eq!(values[0], expected, "slot {slot}");
            }
        });
    }

    pub fn compact(&mut self) -> Result<(), LinkError> {
        let connection = self.connection.borrow().clone().unwrap();
        self.on_client(async move { connection.call(Request::CompactAll, None).await.map(|_| ()) })
    }

    pub fn begin_compact(&mut self) -> Rc<Cell<bool>> {
        let connection = self.connection.borrow().clone().unwrap();
        let done = Rc::new(Cell::new(false));
        let flag = done.clone();
        let task = async move {
            let _ = connection.call(Request::CompactAll, None).await;
            flag.set(true);
        };
        self.world.spawn(self.client, Class::Request, "compact", task).detach();
        done
    }

    pub fn evict(&mut self, rid: Rid) -> Result<(), LinkError> {
        let connection = self.connection.borrow().clone().unwrap();
        let what = AdminRequest::Evict { rid };
        self.on_client(async move { connection.call(Request::Admin { what }, None).await.map(|_| ()) })
    }

    pub fn status(&mut self) -> Value {
        let connection = self.connection.borrow().clone().unwrap();
        let json = self.on_client(async move {
            let reply = connection.call(Request::Status, None).await.unwrap();
            let Response::Status { json } = reply.body else { panic!() };
            json
        });
        serde_json::from_str(&json).unwrap()
    }

    pub fn sum(&mut self, what: &str) -> u64 {
        let status = self.status();
        let reactors = status["store"]["reactors"].as_array().unwrap();
        reactors.iter().map(|r| r["compactions"][what].as_u64().unwrap()).sum()
    }

    /// Looks at the status now and then until it says so.
    pub fn wait_sum(&mut self, what: &str, done: impl Fn(u64) -> bool) {
        for _ in 0..2000 {
            let found = self.sum(what);
            if done(found) {
                return;
            }
            self.world.run_for(Duration::from_millis(100));
        }
        panic!("{what}: {:#}", self.status());
    }

    fn workers(&mut self) -> u64 {
        self.status()["reactors"][0]["workers"].as_u64().unwrap()
    }

    pub fn wait_workers(&mut self, n: u64) {
        for _ in 0..1000 {
            if self.workers() == n {
                return;
            }
            self.world.run_for(Duration::from_millis(100));
        }
        panic!("{n} workers: {:#}", self.status());
    }

    /// A worker as it ships, in a node of its own.
    pub fn worker(&mut self, slot: u8, process: ProcessId) -> Worker {
        let node = self.world.add_node();
        let on = self.world.add_reactor(node);
        let (stop, stopped) = bounded(1);
        let (device, end) = (self.device.opened_by(process).as_device(), Rc::new(RefCell::new(None)));
        let result = end.clone();
        let options = WorkerOptions { slot: Some(slot), insecure_network: true, ..WorkerOptions::default() };
        let task = async move {
            let ended = worker::run(device, address(), options, stopped).await;
            *result.borrow_mut() = Some(ended);
        };
        self.world.spawn(on, Class::Compaction, "worker", task).detach();
        Worker { node, process, stop, end }
    }

    pub fn kill_worker(&mut self, worker: &Worker) {
        self.world.kill_node(worker.node);
        self.device.opened_by(worker.process).process_killed();
    }

    /// A worker that does with its jobs what `deed` says.
    pub fn puppet(&mut self, slot: u8, deed: Deed) -> Puppet {
        let node = self.world.add_node();
        let on = self.world.add_reactor(node);
        let (jobs, device): (Rc<RefCell<Vec<CompactionJob>>>, _) =
            (Rc::default(), self.device.opened_by(ProcessId(90)).as_device());
        let (seen, go) = (jobs.clone(), Rc::new(Cell::new(false)));
        let may_answer = go.clone();
        let flags = Greeting::worker_flags(Some(slot));
        let link = ConnectOptions { open_within: None, insecure_network: true, flags, ..ConnectOptions::default() };
        let task = async move {
            let queue = open_queue(&device);
            let identity = Identity { rid: Rid(1000 + u64::from(slot)), fsid: None };
            let connection = Connection::open(address(), identity, link).await.expect("a connection");
            connection.set_handler(Rc::new(move |request| -> LocalBoxFuture<Response> {
                let Request::Compact { job } = request else { panic!("{request:?}") };
                let job = CompactionJob::decode(&job).unwrap();
                seen.borrow_mut().push(job.clone());
                let (queue, go) = (queue.clone(), may_answer.clone());
                Box::pin(async move {
                    while deed != Deed::Lies && !go.get() {
                        vellum_rt::sleep(Duration::from_millis(50)).await;
                    }
                    let mut outcome = execute(&queue, &job, &Cancel::default()).await.unwrap();
                    if deed == Deed::Lies {
                        outcome.segments.pop();
                        outcome.read.entries -= 1;
                    }
                    Response::Compacted { outcome: outcome.encode().unwrap().into() }
                })
            }));
            connection.call(Request::Work { jobs: 1 }, None).await.unwrap();
            std::future::pending::<()>().await;
        };
        self.world.spawn(on, Class::Compaction, "puppet", task).detach();
        Puppet { node, on, jobs, go }
    }

    /// Ends cleanly; then every structure is held against every other.
    pub fn end(mut self) {
        self.read();
        let connection = self.connection.borrow_mut().take().unwrap();
        self.on_client(async move { connection.farewell().await.unwrap() });
        self.stop.as_ref().unwrap().stop();
        let progress = self.progress.clone();
        self.until("it stops", move || {
            progress.lock().unwrap().iter().any(|step| matches!(step, Progress::Stopped(Ok(()))))
        });
        self.check();
    }

    fn check(&mut self) {
        let node = self.world.add_node();
        let on = self.world.add_reactor(node);
        let target = sim_device(self.device.snapshot(), 1).as_device();
        let report = self.world.block_on(on, LONG, async move {
            let queue = open_queue(&target);
            vellum_store::check(&target, &queue, CheckOptions { data: true }).await
        });
        let report = report.expect("it ends").expect("it can be checked");
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
    }
}

pub struct Worker {
    pub node: NodeId,
    process: ProcessId,
    pub stop: Sender<()>,
    pub end: Rc<RefCell<Option<Result<(), WorkerError>>>>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Deed {
    /// Takes a job and does nothing before it is told to.
    Sits,
    Lies,
}

pub struct Puppet {
    pub node: NodeId,
    pub on: ReactorHandle,
    pub jobs: Rc<RefCell<Vec<CompactionJob>>>,
    pub go: Rc<Cell<bool>>,
}

fn ino(group: u64, slot: u64) -> Ino {
    Ino((group << Ino::SLOT_BITS) | slot)
}

fn slot_of(n: u64) -> u64 {
    1 + n * 7 % 999
}

fn value(n: u64) -> Bytes {
    Bytes::from(vec![n as u8; 300 + (n % 300) as usize])
}

fn inline_key(ino: Ino) -> Key {
    Key::fs(ino, ItemKind::Inline as u8, 0, 0, 0)
}

fn item(group: u64, n: u64) -> [ItemOp; 2] {
    let ino = ino(group, slot_of(n));
    // Nameless, so that the checker finds its links right.
    let inode = Inode { mode: 0o100644, nlink: 0, size: n, data_version: n, ..Inode::default() };
    [ItemOp::Put { key: inline_key(ino), value: value(n) }, ItemOp::Put { key: Inode::key(ino), value: inode.encode() }]
}
