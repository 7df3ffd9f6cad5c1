//! Shards move from reactor to reactor in the simulated world while clients hold their locks, wait for them, answer
//! invalidations, and die. Each client adds to shared counters under WRITE locks: a lost, doubled or stale change shows
//! in the sum, a lock that is lost as a refused batch or as somebody who waits for ever.

mod fake;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fake::TestClient;
use vellum_base::{Ino, ItemOp, View};
use vellum_format::Inode;
use vellum_link::Address;
use vellum_nvme::Image;
use vellum_nvme::fault::{FaultConfig, FaultDevice, ProcessId};
use vellum_proto::Timers;
use vellum_rt::net::Endpoint;
use vellum_rt::sim::{SimConfig, World};
use vellum_rt::{Class, add_poller};
use vellum_server::{NodeOptions, Plan};
use vellum_store::{MkfsOptions, OpenOptions, Rebalance, mkfs};
use vellum_wire::{LockMode::*, LockName, Request, Response};

const CLIENTS: u64 = 4;
const ROUNDS: u64 = 40;
const COUNTERS: u64 = 6;
const LONG: Duration = Duration::from_secs(600);

fn endpoint() -> Endpoint {
    "tcp:10.0.0.1:7000".parse().unwrap()
}

/// One in each of so many buckets, over all shards.
fn counter(n: u64) -> Ino {
    Ino(((n % COUNTERS * 43) << 56) | (1 << 10))
}

async fn count(client: &TestClient, ino: Ino) -> u64 {
    let ask = Request::Get { keys: vec![Inode::key(ino)], view: View::Applied };
    let Response::Items { values } = client.conn.call(ask, None).await.unwrap().body else { panic!() };
    values[0].as_ref().map_or(0, |value| Inode::decode(value).unwrap().size)
}

async fn add(client: &Rc<TestClient>, mut inos: [Ino; 2]) {
    inos.sort_unstable();
    client.lock_and_use(&inos.map(|ino| (ino.group(), Write))).await.unwrap();
    let held = |ino: &Ino| client.locks.borrow()[&LockName::of(*ino)].mode == Write;
    assert!(inos.iter().all(held), "what was granted is held while it is used");
    let mut ops = Vec::new();
    for ino in inos {
        let inode = Inode { mode: 0o100644, size: count(client, ino).await + 1, ..Inode::default() };
        ops.push(ItemOp::Put { key: Inode::key(ino), value: inode.encode() });
    }
    client.commit(ops).await.unwrap();
    client.unuse();
}

async fn connect(n: u64) -> Rc<TestClient> {
    let rid = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    TestClient::connect(Address::Net(endpoint()), rid, Timers::DEFAULT.faster(10)).await
}

fn format(world: &mut World, device: &FaultDevice) {
    let maker = world.add_node();
    let on = world.add_reactor(maker);
    let target = device.opened_by(ProcessId(1)).as_device();
    let made = world.block_on(on, LONG, async move {
        let queue = target.open_queue(32)?;
        let polled = queue.clone();
        let _poller = add_poller("mkfs", move || polled.process_completions());
        mkfs(&target, &queue, MkfsOptions::default()).await
    });
    made.expect("mkfs ends").expect("mkfs succeeds");
    world.kill_node(maker);
}

/// How many shards have moved.
async fn moved(client: &TestClient) -> u64 {
    let Response::Status { json } = client.conn.call(Request::Status, None).await.unwrap().body else { panic!() };
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    let reactors = status["store"]["reactors"].as_array().or(status["reactors"].as_array()).unwrap();
    reactors.iter().map(|reactor| reactor["shards_moved"].as_u64().unwrap()).sum()
}

fn run(seed: u64, config: SimConfig) -> u64 {
    let mut world = World::new(seed, config);
    let faults = FaultConfig { hook: Some(Arc::new(vellum_rt::wake_after)), ..FaultConfig::default() };
    let device = FaultDevice::new(Image::zeroed(128 << 20), seed, faults);
    format(&mut world, &device);
    let server = world.add_node();
    let store = OpenOptions {
        cache_bytes: 4 << 20,
        memtable_bytes: 2 << 20,
        rebalance: Rebalance::AtRandom(Duration::from_millis(3)),
        ..OpenOptions::default()
    };
    let options = NodeOptions {
        cores: vec![None; 3],
        listen: vec![endpoint()],
        insecure_network: true,
        timers: Timers::DEFAULT.faster(10),
        store,
        ..NodeOptions::default()
    };
    let (plan, _dialer, _stop) = Plan::new(device.opened_by(ProcessId(1)).as_device(), options, |_| {}).unwrap();
    for index in 0..3 {
        let on = world.add_reactor(server);
        world.spawn(on, Class::Request, "node", plan.clone().run(index)).detach();
    }
    // It takes all locks, gives none back, and dies: the others wait until it is reclaimed, wherever its locks are then.
    let doomed = world.add_node();
    let on = world.add_reactor(doomed);
    let holds = Rc::new(Cell::new(false));
    let holding = holds.clone();
    let hold_all = async move {
        let client = connect(99).await;
        let mut groups: Vec<_> = (0..COUNTERS).map(|n| (counter(n).group(), Write)).collect();
        groups.sort_unstable_by_key(|(group, _)| *group);
        client.lock_and_use(&groups).await.unwrap();
        holding.set(true);
        std::future::pending::<()>().await;
    };
    world.spawn(on, Class::Request, "doomed", hold_all).detach();
    assert!(world.run_until(|| holds.get(), LONG), "seed {seed}: nothing is granted");
    let (done, moves) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for n in 1..=CLIENTS {
        let node = world.add_node();
        let on = world.add_reactor(node);
        let (done, moves) = (done.clone(), moves.clone());
        let work = async move {
            let client = connect(n).await;
            for round in 0..ROUNDS {
                add(&client, [counter(round * n), counter(round * n + 1)]).await;
            }
            client.sync().await.unwrap();
            done.set(done.get() + 1);
            while done.get() < CLIENTS {
                vellum_rt::sleep(Duration::from_millis(10)).await;
            }
            let mut sum = 0;
            for n in 0..COUNTERS {
                sum += count(&client, counter(n)).await;
            }
            assert_eq!(sum, 2 * ROUNDS * CLIENTS, "seed {seed}");
            moves.set(moved(&client).await);
            client.conn.farewell().await.unwrap();
            done.set(done.get() + 1);
        };
        world.spawn(on, Class::Request, "client", work).detach();
    }
    world.run_for(Duration::from_millis(200));
    world.kill_node(doomed);
    let finished = world.run_until(|| done.get() == 2 * CLIENTS, LONG);
    assert!(finished, "seed {seed}: {} of {} are done\n{:#?}", done.get(), 2 * CLIENTS, world.recent_trace());
    moves.get()
}

#[test]
fn locks_live_on_wherever_their_shards_go() {
    let mut moves = 0;
    for seed in 0..10 {
        moves += run(seed, SimConfig::default());
    }
    println!("{moves} moves");
    assert!(moves > 200, "{moves}");
}

#[test]
fn also_on_a_hostile_network() {
    for seed in 100..115 {
        run(seed, SimConfig { reset_one_in: 200, ..SimConfig::hostile() });
    }
}
