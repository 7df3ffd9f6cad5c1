//! Three members on one device in the simulated world: who leads, who takes over, what the clients see. The whole cluster
//! with its checkers is `engine/sim`'s; here are the stories of the member itself.

mod fake;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::TestClient;
use fake::nodes::{sim_formatted, spawn_apart, status};
use vellum_base::{Ino, ItemOp, Slot, View};
use vellum_format::Inode;
use vellum_link::Address;
use vellum_nvme::fault::{Fault, FaultDevice, On, ProcessId, Rule};
use vellum_proto::Timers;
use vellum_rt::Class;
use vellum_rt::net::Endpoint;
use vellum_rt::sim::{NodeId, SimConfig, World};
use vellum_server::NodeOptions;
use vellum_server::cluster::{FenceFuture, FenceOrder, Fencer, Member, MemberOptions, MemberProgress, MemberStop};
use vellum_store::{MkfsOptions, OpenOptions, Prefer};
use vellum_wire::{AdminRequest, LockMode, LockName, Request, Response};

const SLOTS: usize = 3;

fn address(slot: usize) -> std::net::SocketAddr {
    ([10, 0, 0, 1 + slot as u8], 7400).into()
}

/// Slots to be killed, by order of a fencer; the world does it between two steps.
#[derive(Default, Debug)]
struct Fences {
    wanted: Vec<FenceOrder>,
    /// Slots whose member was killed by a fencer and not started again.
    done: Vec<Slot>,
    /// Slots whose earlier runs are fenced.
    earlier: Vec<Slot>,
}

#[derive(Clone, Default, Debug)]
struct SimFencer(Arc<Mutex<Fences>>);

impl Fencer for SimFencer {
    fn fence(&self, order: FenceOrder) -> FenceFuture {
        let fences = self.0.clone();
        fences.lock().unwrap().wanted.push(order);
        Box::pin(async move {
            loop {
                let done = {
                    let fences = fences.lock().unwrap();
                    let of_kind = if order.by == order.slot() { &fences.earlier } else { &fences.done };
                    of_kind.contains(&order.slot())
                };
                if done {
                    return Ok(());
                }
                vellum_rt::sleep(Duration::from_millis(1)).await;
            }
        })
    }
}

struct Run {
    node: NodeId,
    process: ProcessId,
    earlier: Vec<ProcessId>,
    stop: Option<MemberStop>,
    steps: Arc<Mutex<Vec<MemberProgress>>>,
    alive: bool,
}

struct Cluster {
    world: World,
    device: FaultDevice,
    fencer: SimFencer,
    members: Vec<Run>,
    processes: u64,
    /// Who is fenced loses the device and not its life.
    fenced_live: bool,
}

impl Cluster {
    fn new(seed: u64, config: SimConfig, slots: usize) -> Cluster {
        let mut world = World::new(seed, config);
        let addresses = (0..slots).map(|slot| address(slot).to_string()).collect();
        let mkfs = MkfsOptions { slots: addresses, ..MkfsOptions::default() };
        let device = sim_formatted(&mut world, seed, 96 << 20, mkfs);
        let mut cluster = Cluster {
            world,
            device,
            fencer: SimFencer::default(),
            members: Vec::new(),
            processes: 1,
            fenced_live: false,
        };
        for slot in 0..slots {
            let node = cluster.world.add_node();
            cluster.members.push(Run {
                node,
                process: ProcessId(0),
                earlier: Vec::new(),
                stop: None,
                steps: Arc::default(),
                alive: false,
            });
            cluster.start(slot);
        }
        cluster
    }

    fn start(&mut self, slot: usize) {
        self.processes += 1;
        let process = ProcessId(self.processes);
        let timers = Timers::DEFAULT;
        let store = OpenOptions { cache_bytes: 1 << 20, memtable_bytes: 1 << 20, ..OpenOptions::default() };
        let node = NodeOptions {
            insecure_network: true,
            cores: vec![None; 2],
            timers,
            store,
            prefer: Prefer::Helpers,
            ..NodeOptions::default()
        };
        let mut options = MemberOptions::new(Slot(slot as u8), node);
        options.fencer = Arc::new(self.fencer.clone());
        let run = &mut self.members[slot];
        run.steps = Arc::default();
        let steps = run.steps.clone();
        let device = self.device.opened_by(process).as_device();
        let (member, stop) = Member::new(device, options, move |step| steps.lock().unwrap().push(step)).unwrap();
        run.earlier.push(run.process);
        (run.process, run.stop, run.alive) = (process, Some(stop), true);
        let mut fences = self.fencer.0.lock().unwrap();
        fences.done.retain(|done| done.index() != slot);
        fences.earlier.retain(|earlier| earlier.index() != slot);
        drop(fences);
        for index in 0..3 {
            let on = self.world.add_reactor(run.node);
            self.world.spawn(on, Class::Request, "member", member.clone().run(index)).detach();
        }
    }

    fn kill(&mut self, slot: usize) {
        let run = &mut self.members[slot];
        if run.alive {
            self.world.kill_node(run.node);
            self.device.opened_by(run.process).process_killed();
            (run.alive, run.stop) = (false, None);
        }
    }

    /// Runs the world in small steps, carrying out fences; false when `done` was not reached in time.
    fn until(&mut self, limit: Duration, mut done: impl FnMut(&Cluster) -> bool) -> bool {
        let end = self.world.now() + limit;
        while !done(self) {
            if self.world.now() >= end {
                return false;
            }
            self.world.run_for(Duration::from_millis(1));
            let wanted = std::mem::take(&mut self.fencer.0.lock().unwrap().wanted);
            for order in wanted {
                let slot = order.slot();
                for process in &self.members[slot.index()].earlier {
                    self.device.fence(*process);
                }
                if order.by == slot {
                    self.fencer.0.lock().unwrap().earlier.push(slot);
                    continue;
                }
                if !self.fenced_live {
                    self.kill(slot.index());
                }
                self.device.fence(self.members[slot.index()].process);
                self.fencer.0.lock().unwrap().done.push(slot);
            }
        }
        true
    }

    fn steps(&self, slot: usize) -> Vec<MemberProgress> {
        self.members[slot].steps.lock().unwrap().clone()
    }

    /// Who said last that it leads, and has not taken it back.
    fn leader(&self) -> Option<usize> {
        (0..self.members.len()).find(|slot| {
            self.members[*slot].alive && matches!(self.steps(*slot).last(), Some(MemberProgress::Leading(_)))
        })
    }

    fn wait_leader(&mut self, within: Duration) -> usize {
        let found = self.until(within, |cluster| cluster.leader().is_some());
        let steps: Vec<_> = (0..self.members.len()).map(|slot| self.steps(slot)).collect();
        assert!(found, "nobody leads within {within:?}: {steps:#?}");
        self.leader().unwrap()
    }
}

fn ino(bucket: u64) -> Ino {
    Ino((bucket << 56) | (1 << 10) | 5)
}

async fn size_of(client: &TestClient, ino: Ino) -> u64 {
    let request = Request::Get { keys: vec![Inode::key(ino)], view: View::Applied };
    let reply = client.conn.call(request, None).await.unwrap();
    let Response::Items { values } = reply.body else { panic!() };
    values[0].as_ref().map_or(0, |value| Inode::decode(value).unwrap().size)
}

/// Adds one to an inode under its lock, and waits until that is durable.
async fn add(client: &Rc<TestClient>, bucket: u64) {
    client.lock_and_use(&[(ino(bucket).group(), LockMode::Write)]).await.unwrap();
    assert_eq!(client.locks.borrow()[&LockName::Group(ino(bucket).group())].mode, LockMode::Write);
    let size = size_of(client, ino(bucket)).await + 1;
    let inode = Inode { mode: 0o100644, nlink: 1, size, ..Inode::default() };
    client.commit(vec![ItemOp::Put { key: Inode::key(ino(bucket)), value: inode.encode() }]).await.unwrap();
    client.unuse();
    client.sync().await.unwrap();
}

#[derive(Default)]
struct Load {
    acknowledged: Cell<u64>,
    stop: Cell<bool>,
    read_back: Cell<Option<u64>>,
    longest: RefCell<Duration>,
}

fn start_load(cluster: &mut Cluster, slots: usize) -> Rc<Load> {
    let load = Rc::<Load>::default();
    let of_task = load.clone();
    let endpoints: Vec<_> = (0..slots).map(|slot| Endpoint::Tcp(address(slot))).collect();
    let task = async move {
        let client = TestClient::connect(Address::from(endpoints), 0xc11e, Timers::DEFAULT).await;
        let mut last = vellum_rt::now();
        while !of_task.stop.get() {
            add(&client, of_task.acknowledged.get() % 3 * 100).await;
            of_task.acknowledged.set(of_task.acknowledged.get() + 1);
            let longest = (*of_task.longest.borrow()).max(last.elapsed());
            *of_task.longest.borrow_mut() = longest;
            last = vellum_rt::now();
            vellum_rt::sleep(Duration::from_millis(20)).await;
        }
        let mut sum = 0;
        for bucket in [0, 100, 200] {
            sum += size_of(&client, ino(bucket)).await;
        }
        client.conn.farewell().await.unwrap();
        of_task.read_back.set(Some(sum));
    };
    spawn_apart(&mut cluster.world, "load", task);
    load
}

fn finish(cluster: &mut Cluster, load: &Rc<Load>) {
    load.stop.set(true);
    let of_wait = load.clone();
    assert!(cluster.until(Duration::from_secs(30), move |_| of_wait.read_back.get().is_some()), "the client ends");
    assert_eq!(load.read_back.get(), Some(load.acknowledged.get()), "what was acknowledged is there, once");
    assert!(load.acknowledged.get() > 20, "{} were acknowledged", load.acknowledged.get());
}

fn killed_leaders(seed: u64, slots: usize) -> u64 {
    let mut cluster = Cluster::new(seed, SimConfig::default(), slots);
    cluster.wait_leader(Duration::from_secs(5));
    let load = start_load(&mut cluster, slots);
    for _ in 0..3 {
        cluster.until(Duration::from_secs(2), |_| false);
        let leader = cluster.wait_leader(Duration::from_secs(10));
        cluster.kill(leader);
        // One of the others; alone, it must come back itself.
        if slots < 2 {
            cluster.start(leader);
        }
        cluster.wait_leader(Duration::from_secs(5));
        if slots >= 2 {
            cluster.start(leader);
        }
    }
    cluster.until(Duration::from_secs(2), |_| false);
    finish(&mut cluster, &load);
    assert!(*load.longest.borrow() < Duration::from_secs(5), "it continued after {:?}", load.longest.borrow());
    cluster.world.trace_hash()
}

#[test]
fn another_member_takes_over_from_a_killed_leader_with_nothing_lost() {
    for seed in 0..6 {
        killed_leaders(seed, SLOTS);
    }
    assert_eq!(killed_leaders(7, SLOTS), killed_leaders(7, SLOTS), "the same seed, the same run");
}

#[test]
fn two_slots_and_one_slot_work_by_fencing_alone() {
    for seed in 10..13 {
        killed_leaders(seed, 2);
        killed_leaders(seed, 1);
    }
}

#[test]
fn a_leader_that_leaves_hands_over_without_the_heartbeat_timeout() {
    let mut cluster = Cluster::new(20, SimConfig::default(), SLOTS);
    let leader = cluster.wait_leader(Duration::from_secs(5));
    let load = start_load(&mut cluster, SLOTS);
    cluster.until(Duration::from_secs(2), |_| false);
    cluster.members[leader].stop.as_ref().unwrap().stop();
    let left = cluster.until(Duration::from_secs(5), |cluster| {
        matches!(cluster.steps(leader).last(), Some(MemberProgress::Ended(Ok(()))))
    });
    assert!(left, "it leaves: {:#?}", cluster.steps(leader));
    let next = cluster.wait_leader(Duration::from_secs(2));
    assert_ne!(next, leader);
    let reports = cluster.steps(next);
    let Some(MemberProgress::Leading(up)) = reports.last() else { panic!("{reports:#?}") };
    assert!(up.report.clean, "an orderly end leaves nothing to replay");
    cluster.until(Duration::from_secs(2), |_| false);
    finish(&mut cluster, &load);
    assert!(*load.longest.borrow() < Duration::from_secs(2), "it continued after {:?}", load.longest.borrow());
    assert!(cluster.fencer.0.lock().unwrap().done.is_empty(), "nobody was fenced");
}

/// A paused leader is succeeded, and fenced before anybody serves; a member of a partition stops by itself.
#[test]
fn a_leader_that_is_cut_off_stops_and_another_one_serves() {
    for seed in 30..34 {
        let mut cluster = Cluster::new(seed, SimConfig::default(), SLOTS);
        let leader = cluster.wait_leader(Duration::from_secs(5));
        let load = start_load(&mut cluster, SLOTS);
        cluster.until(Duration::from_secs(1), |_| false);
        let others: Vec<_> = (0..SLOTS).filter(|slot| *slot != leader).collect();
        let alone = cluster.members[leader].node;
        for other in &others {
            let node = cluster.members[*other].node;
            cluster.world.partition(alone, node);
        }
        let taken = cluster.until(Duration::from_secs(5), |cluster| {
            others.iter().any(|slot| matches!(cluster.steps(*slot).last(), Some(MemberProgress::Leading(_))))
        });
        assert!(taken, "seed {seed}");
        let still = matches!(cluster.steps(leader).last(), Some(MemberProgress::Leading(_)));
        assert!(!still || !cluster.members[leader].alive, "seed {seed}: two lead");
        cluster.world.heal_all();
        cluster.until(Duration::from_secs(3), |_| false);
        finish(&mut cluster, &load);
    }
}

/// A leader is stopped, deposed, fenced from the device, and wakes. A client that reaches nobody else has greeted it
/// meanwhile, in its own term: the answer would begin a lease, although the next leader has given the client's locks away.
/// Nobody tells the old leader: it must find out.
/// (It did so until greetings were held to what keepalives are: with each of these seeds, about one in thirteen.)
#[test]
fn a_leader_that_wakes_deposed_welcomes_nobody() {
    for seed in [62, 73, 118, 147, 155, 157, 166, 172] {
        let mut cluster = Cluster::new(seed, SimConfig::default(), SLOTS);
        cluster.fenced_live = true;
        let leader = cluster.wait_leader(Duration::from_secs(5));
        let client = Rc::<RefCell<Option<Rc<TestClient>>>>::default();
        let opened = client.clone();
        let endpoints: Vec<_> = (0..SLOTS).map(|slot| Endpoint::Tcp(address(slot))).collect();
        let task = async move {
            let client = TestClient::connect(Address::from(endpoints), 0xdead, Timers::DEFAULT).await;
            client.lock_and_use(&[(ino(7).group(), LockMode::Write)]).await.unwrap();
            client.unuse();
            *opened.borrow_mut() = Some(client);
            std::future::pending::<()>().await;
        };
        let node = spawn_apart(&mut cluster.world, "client", task);
        assert!(cluster.until(Duration::from_secs(5), |_| client.borrow().is_some()), "seed {seed}: it connects");
        let conn = || client.borrow().as_ref().unwrap().conn.clone();
        let stopped = cluster.members[leader].node;
        for other in (0..SLOTS).filter(|other| *other != leader) {
            let other = cluster.members[other].node;
            cluster.world.partition(node, other);
            cluster.world.partition(stopped, other); // nobody tells it
        }
        cluster.world.pause_node(stopped);
        let leads =
            |cluster: &Cluster, slot: usize| matches!(cluster.steps(slot).last(), Some(MemberProgress::Leading(_)));
        let taken = |cluster: &Cluster| (0..SLOTS).any(|slot| slot != leader && leads(cluster, slot));
        assert!(cluster.until(Duration::from_secs(10), taken), "seed {seed}: another one leads");
        // Long enough that the client's locks are others'.
        cluster.until(2 * Timers::DEFAULT.recovery_window + Duration::from_millis(617 * (seed % 9)), |_| false);
        let lease = conn().lease_valid_until();
        assert!(!conn().is_up(), "seed {seed}: nobody answers it");
        cluster.world.resume_node(stopped);
        let welcomed = cluster.until(Duration::from_secs(8), |_| conn().is_up() || conn().lease_valid_until() != lease);
        assert!(!welcomed, "seed {seed}: it was welcomed into a term that is over");
        // Whoever does lead tells it what has become of it.
        cluster.world.heal_all();
        let told = cluster.until(Duration::from_secs(10), |_| conn().closed().is_some());
        assert!(told, "seed {seed}: it was given up, and hears of it");
    }
}

/// Scenario 34, and a flush that fails under the engine: the leadership goes, the member stays, clients see no error.
#[test]
fn an_engine_that_fails_costs_the_leadership_and_not_the_member() {
    let mut cluster = Cluster::new(40, SimConfig::default(), SLOTS);
    let leader = cluster.wait_leader(Duration::from_secs(5));
    let load = start_load(&mut cluster, SLOTS);
    cluster.until(Duration::from_secs(1), |_| false);
    // One write of a seal, a part or a manifest fails.
    let error = Fault::Error { errno: 5 };
    cluster.device.add_rule(Rule::once(error, On::Writes, (1 << 20)..(96 << 20)));
    let resigned = cluster.until(Duration::from_secs(10), |cluster| {
        cluster.steps(leader).iter().any(|step| matches!(step, MemberProgress::EngineFailed { .. }))
    });
    assert!(resigned, "{:#?}", cluster.steps(leader));
    cluster.until(Duration::from_secs(3), |_| false);
    let next = cluster.wait_leader(Duration::from_secs(10));
    assert!(cluster.members[leader].alive && !matches!(cluster.steps(leader).last(), Some(MemberProgress::Ended(_))));
    finish(&mut cluster, &load);
    assert_ne!(next, leader, "others go first");
}

#[test]
fn who_is_no_member_is_told_why() {
    let mut cluster = Cluster::new(50, SimConfig::default(), 1);
    cluster.wait_leader(Duration::from_secs(5));
    let told: Arc<Mutex<Vec<MemberProgress>>> = Arc::default();
    let steps = told.clone();
    let options = MemberOptions::new(Slot(4), NodeOptions { insecure_network: true, ..NodeOptions::default() });
    let device = cluster.device.as_device();
    let (member, _stop) = Member::new(device, options, move |step| steps.lock().unwrap().push(step)).unwrap();
    spawn_apart(&mut cluster.world, "stranger", member.run(0));
    let of_wait = told.clone();
    assert!(cluster.until(Duration::from_secs(5), move |_| !of_wait.lock().unwrap().is_empty()));
    let told = told.lock().unwrap();
    assert!(matches!(&told[0], MemberProgress::Ended(Err(e)) if e.to_string().contains("0=10.0.0.1:7400")), "{told:?}");
}

/// Of the leader, over a client: (workers, workers of earlier terms, blocks withheld, compactions done elsewhere).
async fn crew(client: &TestClient) -> (u64, u64, u64, u64) {
    let status = status(client).await;
    let store = &status["store"];
    let all = store["reactors"].as_array().unwrap();
    let elsewhere = all.iter().map(|r| r["compactions"]["done_elsewhere"].as_u64().unwrap()).sum();
    let first = &status["reactors"][0];
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    (
        number(&first["workers"]),
        number(&first["workers_of_earlier_terms"]),
        number(&store["withheld_blocks"]),
        elsewhere,
    )
}

#[test]
fn followers_compact_for_the_leader_and_for_the_next_one() {
    let mut cluster = Cluster::new(70, SimConfig::default(), SLOTS);
    let first = cluster.wait_leader(Duration::from_secs(20));
    let endpoints: Vec<_> = (0..SLOTS).map(|slot| Endpoint::Tcp(address(slot))).collect();
    let stage = Rc::new(Cell::new(0));
    let of_task = stage.clone();
    let task = async move {
        let client = TestClient::connect(Address::from(endpoints), 0xc0de, Timers::DEFAULT).await;
        for workers in [2, 1] {
            while of_task.get() % 2 == 1 {
                vellum_rt::sleep(Duration::from_millis(20)).await; // a leader is being killed
            }
            loop {
                let (here, old, withheld, _) = crew(&client).await;
                if here == workers && old == 0 && withheld == 0 {
                    break;
                }
                vellum_rt::sleep(Duration::from_millis(50)).await;
            }
            let mut done = 0;
            for round in 0..40 {
                add(&client, round % 3 * 100).await;
                client.conn.call(Request::CompactAll, None).await.unwrap();
                done = crew(&client).await.3;
                if done >= 3 {
                    break;
                }
            }
            assert!(done >= 3, "{done} compactions were done by followers");
            of_task.set(of_task.get() + 1);
        }
        client.conn.farewell().await.unwrap();
    };
    spawn_apart(&mut cluster.world, "client", task);
    let of_wait = stage.clone();
    assert!(cluster.until(Duration::from_secs(120), move |_| of_wait.get() == 1), "followers work");
    cluster.kill(first);
    assert!(cluster.until(Duration::from_secs(60), |cluster| cluster.leader().is_some()), "another one leads");
    stage.set(2);
    let of_wait = stage.clone();
    assert!(cluster.until(Duration::from_secs(120), move |_| of_wait.get() == 3), "the one that is left works");
}

/// U1 with engines and a client: one member leaves, the second stays until the client has said farewell, and the last one after
/// it; nobody waits for anybody in a circle, nobody is fenced, and what was acknowledged is there.
#[test]
fn u1_members_stay_as_long_as_a_client_needs_them() {
    for seed in 80..83 {
        let mut cluster = Cluster::new(seed, SimConfig::default(), SLOTS);
        let leader = cluster.wait_leader(Duration::from_secs(5));
        let load = start_load(&mut cluster, SLOTS);
        cluster.until(Duration::from_secs(2), |_| false);
        // In some runs the leader goes first, in others it is the last.
        let first = if seed % 2 == 0 { leader } else { (leader + 1) % SLOTS };
        let left =
            |cluster: &Cluster, slot: usize| matches!(cluster.steps(slot).last(), Some(MemberProgress::Ended(Ok(()))));
        cluster.members[first].stop.as_ref().unwrap().stop();
        assert!(cluster.until(Duration::from_secs(5), |cluster| left(cluster, first)), "{:#?}", cluster.steps(first));
        cluster.wait_leader(Duration::from_secs(5));
        let rest: Vec<usize> = (0..SLOTS).filter(|slot| *slot != first).collect();
        rest.iter().for_each(|slot| cluster.members[*slot].stop.as_ref().unwrap().stop());
        let before = load.acknowledged.get();
        cluster.until(Duration::from_secs(4), |_| false);
        assert!(rest.iter().all(|slot| !left(&cluster, *slot)), "seed {seed}: they are needed");
        assert!(load.acknowledged.get() > before + 20, "seed {seed}: and serve");
        finish(&mut cluster, &load);
        let gone = cluster.until(Duration::from_secs(5), |cluster| rest.iter().all(|slot| left(cluster, *slot)));
        assert!(gone, "seed {seed}: {:#?}", rest.iter().map(|slot| cluster.steps(*slot)).collect::<Vec<_>>());
        assert!(cluster.fencer.0.lock().unwrap().done.is_empty(), "seed {seed}: nobody was fenced");
    }
}

/// Who is told twice, or has stayed long enough, leaves whoever needs it: an operator's stop ends.
#[test]
fn an_operators_stop_ends_though_a_client_remains() {
    for told_twice in [true, false] {
        let mut cluster = Cluster::new(84, SimConfig::default(), 1);
        cluster.wait_leader(Duration::from_secs(5));
        let load = start_load(&mut cluster, 1);
        cluster.until(Duration::from_secs(2), |_| false);
        cluster.members[0].stop.as_ref().unwrap().stop();
        let ended = |cluster: &Cluster| matches!(cluster.steps(0).last(), Some(MemberProgress::Ended(Ok(()))));
        assert!(!cluster.until(Duration::from_secs(2), ended), "it is needed");
        let within = if told_twice { 2 } else { 10 };
        if told_twice {
            cluster.members[0].stop.as_ref().unwrap().stop();
        }
        assert!(cluster.until(Duration::from_secs(within), ended), "{:#?}", cluster.steps(0));
        cluster.start(0);
        cluster.wait_leader(Duration::from_secs(5));
        finish(&mut cluster, &load);
    }
}

/// What an operator asks of the leader; the refusal's text.
async fn set_slot(
    client: &TestClient,
    slot: u8,
    address: Option<std::net::SocketAddr>,
    dead: bool,
) -> Result<(), String> {
    let what = AdminRequest::SetSlot { slot, address, dead };
    match client.conn.call(Request::Admin { what }, None).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// A slot is added, a follower taken out and put back, while a client works and the leader dies in between; what is unsafe is
/// refused with a reason. The client comes as a node, as `vellum quorum change` does.
#[test]
fn the_quorum_is_changed_while_it_serves() {
    let mut cluster = Cluster::new(90, SimConfig::default(), SLOTS);
    let leader = cluster.wait_leader(Duration::from_secs(5));
    let load = start_load(&mut cluster, SLOTS);
    cluster.until(Duration::from_secs(3), |_| false);
    let others: Vec<usize> = (0..SLOTS).filter(|slot| *slot != leader).collect();
    let (out, stays) = (others[0] as u8, others[1]);
    let endpoints: Vec<_> = (0..SLOTS).map(|slot| Endpoint::Tcp(address(slot))).collect();
    let told: Rc<RefCell<Vec<Result<(), String>>>> = Rc::default();
    let of_task = told.clone();
    let task = async move {
        let client = TestClient::connect(Address::from(endpoints), 0xada, Timers::DEFAULT).await;
        let say = |result| of_task.borrow_mut().push(result);
        say(set_slot(&client, 7, None, false).await);
        say(set_slot(&client, out, Some(address(stays)), false).await);
        say(set_slot(&client, out, None, false).await);
        say(set_slot(&client, 5, Some(address(5)), false).await);
        vellum_rt::sleep(Duration::from_secs(4)).await;
        say(set_slot(&client, out, Some(address(out.into())), false).await);
        client.conn.farewell().await.unwrap();
    };
    spawn_apart(&mut cluster.world, "operator", task);
    let of_wait = told.clone();
    assert!(cluster.until(Duration::from_secs(30), move |_| of_wait.borrow().len() == 5), "{:?}", told.borrow());
    let told = told.borrow().clone();
    let says =
        |n: usize, what: &str| assert!(told[n].as_ref().is_err_and(|why| why.contains(what)), "{what}: {told:?}");
    says(0, "slot 7 has no member");
    says(1, "would share its address");
    assert_eq!(told[2], Ok(()), "{told:?}");
    says(3, "still learning");
    assert_eq!(told[4], Ok(()), "{told:?}");
    // The one that was taken out has left by itself; it comes back under its slot, and is one of a majority.
    let ended = matches!(cluster.steps(out.into()).last(), Some(MemberProgress::Ended(Ok(()))));
    assert!(ended, "{:#?}", cluster.steps(out.into()));
    cluster.start(out.into());
    cluster.until(Duration::from_secs(2), |_| false);
    cluster.kill(leader);
    let next = cluster.wait_leader(Duration::from_secs(10));
    assert_ne!(next, leader);
    cluster.until(Duration::from_secs(2), |_| false);
    finish(&mut cluster, &load);
}
