//! A leader, workers and a client on one device, in the simulated world: jobs that are done elsewhere, and every way in
//! which a worker may be lost (C1 to C3, scenario 47). The device is shared as processes share one: what a dead process
//! had in flight lands later, or never.

mod fake;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fake::nodes::*;
use serde_json::Value;
use vellum_base::{Batch, BatchNo, Epoch, Ino, ItemOp, Key, Rid, View};
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
use vellum_wire::{AdminRequest, ErrorCode, Greeting, LockMode, LockName, LockWant, Request, Response};

const LEADER: ProcessId = ProcessId(1);

/// Slots that are fenced.
#[derive(Default, Debug)]
struct Fenced(Mutex<BTreeSet<u8>>);

impl WorkerProbe for Fenced {
    fn is_gone(&self, slot: u8, _: Option<vellum_rt::Instant>) -> bool {
        self.0.lock().unwrap().contains(&slot)
    }
}

struct Lab {
    world: World,
    device: FaultDevice,
    leader: NodeId,
    stop: Option<StopHandle>,
    progress: Arc<Mutex<Vec<Progress>>>,
    fenced: Arc<Fenced>,
    client: ReactorHandle,
    connection: Rc<RefCell<Option<Rc<Connection>>>>,
    next: Rc<Cell<u64>>,
    group: Rc<Cell<u64>>,
    written: u64,
    reactors: usize,
}

impl Lab {
    fn new(seed: u64, reactors: usize) -> Lab {
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

    fn lead(&mut self, process: ProcessId) {
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

    fn kill_leader(&mut self, process: ProcessId) {
        self.world.kill_node(self.leader);
        self.device.opened_by(process).process_died();
        self.stop = None;
    }

    fn until(&mut self, what: &str, done: impl FnMut() -> bool) {
        let steps = self.progress.clone();
        let ok = self.world.run_until(done, LONG);
        assert!(ok, "{what}: never; {:?}", steps.lock().unwrap());
    }

    /// Runs on the client's reactor.
    fn on_client<T: 'static>(&mut self, what: impl Future<Output = T> + 'static) -> T {
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
    fn write(&mut self, batches: u64) {
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
    fn read(&mut self) {
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

    fn compact(&mut self) -> Result<(), LinkError> {
        let connection = self.connection.borrow().clone().unwrap();
        self.on_client(async move { connection.call(Request::CompactAll, None).await.map(|_| ()) })
    }

    fn begin_compact(&mut self) -> Rc<Cell<bool>> {
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

    fn evict(&mut self, rid: Rid) -> Result<(), LinkError> {
        let connection = self.connection.borrow().clone().unwrap();
        let what = AdminRequest::Evict { rid };
        self.on_client(async move { connection.call(Request::Admin { what }, None).await.map(|_| ()) })
    }

    fn status(&mut self) -> Value {
        let connection = self.connection.borrow().clone().unwrap();
        let json = self.on_client(async move {
            let reply = connection.call(Request::Status, None).await.unwrap();
            let Response::Status { json } = reply.body else { panic!() };
            json
        });
        serde_json::from_str(&json).unwrap()
    }

    fn sum(&mut self, what: &str) -> u64 {
        let status = self.status();
        let reactors = status["store"]["reactors"].as_array().unwrap();
        reactors.iter().map(|r| r["compactions"][what].as_u64().unwrap()).sum()
    }

    /// Looks at the status now and then until it says so.
    fn wait_sum(&mut self, what: &str, done: impl Fn(u64) -> bool) {
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

    fn wait_workers(&mut self, n: u64) {
        for _ in 0..1000 {
            if self.workers() == n {
                return;
            }
            self.world.run_for(Duration::from_millis(100));
        }
        panic!("{n} workers: {:#}", self.status());
    }

    /// A worker as it ships, in a node of its own.
    fn worker(&mut self, slot: u8, process: ProcessId) -> Worker {
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

    fn kill_worker(&mut self, worker: &Worker) {
        self.world.kill_node(worker.node);
        self.device.opened_by(worker.process).process_killed();
    }

    /// A worker that does with its jobs what `deed` says.
    fn puppet(&mut self, slot: u8, deed: Deed) -> Puppet {
        let node = self.world.add_node();
        let on = self.world.add_reactor(node);
        let (jobs, device): (Rc<RefCell<Vec<CompactionJob>>>, _) =
            (Rc::default(), self.device.opened_by(ProcessId(90)).as_device());
        let (seen, go) = (jobs.clone(), Rc::new(Cell::new(false)));
        let may_answer = go.clone();
        let flags = Greeting::worker_flags(Some(slot));
        let link = ConnectOptions { open_within: None, insecure_network: true, flags, ..ConnectOptions::default() };
        let task = async move {
            let (queue, _poller) = open_queue(&device);
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
    fn end(mut self) {
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
            let (queue, _poller) = open_queue(&target);
            vellum_store::check(&target, &queue, CheckOptions { data: true }).await
        });
        let report = report.expect("it ends").expect("it can be checked");
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
    }
}

struct Worker {
    node: NodeId,
    process: ProcessId,
    stop: Sender<()>,
    end: Rc<RefCell<Option<Result<(), WorkerError>>>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Deed {
    /// Takes a job and does nothing before it is told to.
    Sits,
    Lies,
}

struct Puppet {
    node: NodeId,
    on: ReactorHandle,
    jobs: Rc<RefCell<Vec<CompactionJob>>>,
    go: Rc<Cell<bool>>,
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

#[test]
fn workers_compact_for_the_leader_in_rotation() {
    for (seed, reactors) in [(1, 1), (2, 2)] {
        let mut lab = Lab::new(seed, reactors);
        let workers = [lab.worker(1, ProcessId(11)), lab.worker(2, ProcessId(12))];
        lab.write(4);
        lab.wait_workers(2);
        for _ in 0..6 {
            lab.write(60);
            lab.compact().unwrap();
        }
        assert!(lab.sum("done_elsewhere") >= 6 && lab.sum("failed") == 0, "{:#}", lab.status());
        for worker in &workers {
            worker.stop.try_send(()).unwrap();
            let end = worker.end.clone();
            lab.until("the worker stops", move || end.borrow().is_some());
            assert!(matches!(*worker.end.borrow(), Some(Ok(()))));
        }
        lab.wait_workers(0);
        lab.write(60);
        lab.compact().unwrap();
        assert!(lab.sum("done") > 0, "without workers it is done here");
        lab.end();
    }
}

#[test]
fn a_worker_holds_no_locks_and_changes_nothing() {
    let mut lab = Lab::new(3, 1);
    lab.write(1);
    let link = ConnectOptions {
        flags: Greeting::worker_flags(Some(4)),
        open_within: None,
        insecure_network: true,
        ..ConnectOptions::default()
    };
    let group = lab.group.get();
    lab.on_client(async move {
        let connection =
            Connection::open(address(), Identity { rid: Rid(5), fsid: None }, link).await.expect("a connection");
        let wants = vec![LockWant { name: LockName::Group(group), mode: LockMode::Write }];
        for request in [Request::Lock { wants }, Request::StatFs, Request::WriteData, Request::CompactAll] {
            match connection.call(request, None).await {
                Err(LinkError::Remote(error)) => assert_eq!(error.code, ErrorCode::NotPermitted),
                other => panic!("{other:?}"),
            }
        }
        connection.farewell().await.unwrap();
    });
    lab.on_client(async move {
        let link = ConnectOptions { open_within: None, insecure_network: true, ..ConnectOptions::default() };
        let connection =
            Connection::open(address(), Identity { rid: Rid(6), fsid: None }, link).await.expect("a connection");
        for request in [Request::Work { jobs: 1 }, Request::Compact { job: Bytes::from_static(b"x") }] {
            assert!(matches!(connection.call(request, None).await, Err(LinkError::Remote(_))), "no worker");
        }
        connection.farewell().await.unwrap();
    });
    lab.end();
}

#[test]
fn c3_a_worker_that_dies_with_a_job_in_hand_leaks_nothing_and_hits_nothing_scenario_47() {
    for seed in 10..16 {
        let mut lab = Lab::new(seed, 1 + (seed % 2) as usize);
        lab.write(120);
        let worker = lab.worker(3, ProcessId(13));
        lab.wait_workers(1);
        let done = lab.begin_compact();
        // Somewhere in the middle of its writes.
        lab.world.run_for(Duration::from_micros(300 + seed * 170));
        lab.kill_worker(&worker);
        lab.until("it is done by somebody else", || done.get());
        lab.write(60);
        lab.compact().unwrap();
        let lost = lab.sum("lost");
        if lost > 0 {
            assert!(lab.sum("withheld_blocks") > 0, "it may still be writing: {:#}", lab.status());
            lab.world.run_for(Duration::from_secs(600));
            assert!(lab.sum("withheld_blocks") > 0, "time proves nothing");
        }
        // What it had in flight lands until it is fenced, and not later.
        lab.device.fence(ProcessId(13));
        lab.fenced.0.lock().unwrap().insert(3);
        lab.wait_sum("withheld_blocks", |blocks| blocks == 0);
        lab.write(100);
        lab.compact().unwrap();
        lab.end();
    }
}

#[test]
fn c3_a_late_answer_installs_nothing_and_frees_its_space() {
    let mut lab = Lab::new(20, 1);
    lab.write(120);
    let puppet = lab.puppet(5, Deed::Sits);
    lab.wait_workers(1);
    let done = lab.begin_compact();
    // It has taken its job and holds its connection; after the time for a job the work is done here.
    lab.until("it is done here", || done.get());
    let (taken, late) = (puppet.jobs.borrow().len(), puppet.jobs.borrow()[0].clone());
    assert!(taken >= 1 && lab.sum("lost") >= 1 && lab.sum("withheld_blocks") > 0);
    lab.read();
    puppet.go.set(true);
    lab.wait_sum("withheld_blocks", |blocks| blocks == 0);
    assert_eq!(lab.sum("done_elsewhere"), 0, "job {:?} came too late", late.first_id);
    lab.write(80);
    lab.compact().unwrap();
    assert!(lab.sum("done_elsewhere") > 0, "it answers in time now");
    lab.end();
}

#[test]
fn c3_a_worker_that_lies_is_sent_away() {
    let mut lab = Lab::new(30, 1);
    lab.write(120);
    let puppet = lab.puppet(6, Deed::Lies);
    lab.wait_workers(1);
    assert!(lab.compact().is_err(), "its outcome is not believed");
    assert_eq!(puppet.jobs.borrow().len(), 1);
    lab.wait_workers(0);
    lab.compact().unwrap();
    assert!(lab.sum("done_elsewhere") == 0 && lab.sum("done") > 0 && lab.sum("withheld_blocks") > 0);
    lab.world.kill_node(puppet.node);
    lab.device.fence(ProcessId(90));
    lab.fenced.0.lock().unwrap().insert(6);
    lab.wait_sum("withheld_blocks", |blocks| blocks == 0);
    lab.end();
}

/// A worker dies for good with a job in hand, and nothing here can know of it: the operator who does gives it up, and its blocks
/// come back. As long as it may come back itself an eviction only takes its connection.
#[test]
fn c3_an_operator_gives_up_a_worker_that_is_dead_for_good() {
    let mut lab = Lab::new(35, 1);
    lab.write(120);
    let puppet = lab.puppet(5, Deed::Sits);
    lab.wait_workers(1);
    let done = lab.begin_compact();
    let jobs = puppet.jobs.clone();
    lab.until("a job is taken", move || !jobs.borrow().is_empty());
    assert!(lab.evict(Rid(1005)).is_ok());
    lab.world.kill_node(puppet.node);
    lab.until("it is done by somebody else", || done.get());
    lab.world.run_for(Duration::from_secs(60));
    assert!(lab.sum("withheld_blocks") > 0, "a connection that was taken away proves nothing: {:#}", lab.status());
    lab.device.fence(ProcessId(90));
    assert!(lab.evict(Rid(1005)).is_ok());
    lab.wait_sum("withheld_blocks", |blocks| blocks == 0);
    assert!(lab.evict(Rid(1005)).is_err(), "there is no such client any more");
    lab.write(80);
    lab.compact().unwrap();
    lab.end();
}

/// The same when the leader died too: the next one knows the worker by its record alone.
#[test]
fn c3_an_operator_gives_up_a_dead_worker_of_an_earlier_term() {
    let mut lab = Lab::new(36, 1);
    lab.write(160);
    let puppet = lab.puppet(7, Deed::Sits);
    lab.wait_workers(1);
    let _done = lab.begin_compact();
    let jobs = puppet.jobs.clone();
    lab.until("a job is taken", move || !jobs.borrow().is_empty());
    lab.world.kill_node(puppet.node);
    lab.kill_leader(LEADER);
    lab.lead(ProcessId(2));
    lab.world.run_for(Duration::from_secs(60));
    let withheld = |status: Value| status["store"]["withheld_blocks"].as_u64().unwrap();
    assert!(withheld(lab.status()) > 0);
    lab.device.fence(ProcessId(90));
    assert!(lab.evict(Rid(1007)).is_ok());
    lab.world.run_for(Duration::from_secs(5));
    assert_eq!(withheld(lab.status()), 0, "{:#}", lab.status());
    lab.write(80);
    lab.compact().unwrap();
    lab.end();
}

/// The leader dies; its worker lives and has a job in hand, whose outputs the next leader knows nothing of.
#[test]
fn c3_what_a_dead_leader_handed_over_is_not_reused_before_its_worker_is_quiet() {
    let mut lab = Lab::new(40, 1);
    lab.write(160);
    let puppet = lab.puppet(7, Deed::Sits);
    lab.wait_workers(1);
    let _done = lab.begin_compact();
    let jobs = puppet.jobs.clone();
    lab.until("a job is taken", move || !jobs.borrow().is_empty());
    let job = puppet.jobs.borrow()[0].clone();
    lab.kill_leader(LEADER);
    lab.world.partition(puppet.node, lab.leader); // it hears of nothing
    lab.lead(ProcessId(2));
    let status = lab.status();
    assert!(status["store"]["withheld_blocks"].as_u64().unwrap() > 0, "{status:#}");
    assert_eq!(status["reactors"][0]["workers_of_earlier_terms"], 1);
    // Nobody waits for a worker's locks: the client goes on, and its segments lie elsewhere.
    lab.write(200);
    lab.compact().unwrap();
    lab.world.run_for(Duration::from_secs(900));
    // Only now it does its old job.
    let (device, old) = (lab.device.opened_by(ProcessId(90)).as_device(), job.clone());
    let written = Arc::new(AtomicBool::new(false));
    let flag = written.clone();
    lab.world
        .spawn(puppet.on, Class::Compaction, "late", async move {
            let (queue, _poller) = open_queue(&device);
            let _ = execute(&queue, &old, &Cancel::default()).await; // its inputs may be gone
            for range in &old.space {
                let data = vellum_base::DmaBuf::copy_from(&vec![0xee; range.len_bytes()], true).freeze();
                queue.write(range.start.bytes(), data, false).await.unwrap();
            }
            flag.store(true, Ordering::SeqCst);
        })
        .detach();
    lab.until("it has written", move || written.load(Ordering::SeqCst));
    lab.read();
    lab.compact().unwrap();
    assert_eq!(lab.status()["reactors"][0]["workers_of_earlier_terms"], 1);
    // It comes back, quiet: what was withheld is free.
    lab.world.heal_all();
    let back = lab.worker(7, ProcessId(91));
    lab.wait_workers(1);
    for _ in 0..200 {
        lab.world.run_for(Duration::from_millis(100));
        if lab.status()["store"]["withheld_blocks"] == 0 {
            break;
        }
    }
    let status = lab.status();
    assert_eq!(status["store"]["withheld_blocks"], 0, "{status:#}");
    assert_eq!(status["reactors"][0]["workers_of_earlier_terms"], 0);
    back.stop.try_send(()).unwrap();
    lab.write(60);
    lab.compact().unwrap();
    lab.end();
}

#[test]
fn a_worker_goes_on_under_the_next_leader() {
    for seed in 50..54 {
        let mut lab = Lab::new(seed, 1);
        lab.write(120);
        let worker = lab.worker(8, ProcessId(14));
        lab.wait_workers(1);
        let _done = lab.begin_compact();
        lab.world.run_for(Duration::from_micros(200 + (seed - 50) * 300));
        lab.kill_leader(LEADER);
        lab.world.run_for(Duration::from_secs(1));
        lab.lead(ProcessId(2));
        lab.wait_workers(1);
        for _ in 0..100 {
            lab.world.run_for(Duration::from_millis(100));
            if lab.status()["store"]["withheld_blocks"] == 0 {
                break;
            }
        }
        let status = lab.status();
        assert_eq!(status["store"]["withheld_blocks"], 0, "it has said that it is quiet: {status:#}");
        lab.write(120);
        lab.compact().unwrap();
        assert!(lab.sum("done_elsewhere") > 0);
        worker.stop.try_send(()).unwrap();
        lab.until("the worker stops", {
            let end = worker.end.clone();
            move || end.borrow().is_some()
        });
        lab.end();
    }
}

#[test]
fn nothing_is_withheld_when_there_was_no_worker() {
    let mut lab = Lab::new(60, 2);
    lab.write(40);
    lab.compact().unwrap();
    lab.kill_leader(LEADER);
    lab.lead(ProcessId(2));
    lab.world.run_for(Duration::from_secs(1));
    assert_eq!(lab.status()["store"]["withheld_blocks"], 0);
    let durable = lab.status()["durable_epoch"].as_u64().map(Epoch);
    assert!(durable.is_some());
    lab.end();
}
