//! Clients and a node in the simulated world: latencies, resets, leaders that die at any moment. Every seed must count
//! right: each client adds to shared counters under WRITE locks, so a lost, doubled or stale change shows in the sum.

mod fake;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use fake::nodes::{LONG, address, endpoint, spawn_apart};
use fake::{Disk, FakeStore, TestClient, key};
use vellum_base::ItemOp;
use vellum_proto::Timers;
use vellum_rt::Class;
use vellum_rt::sim::{ReactorHandle, SimConfig, World};
use vellum_server::{Backend, NodeOptions, Reactor, ReactorParts, TableAuthority, mesh};
use vellum_wire::{LockMode::*, LockName};

const CLIENTS: u64 = 3;
const ROUNDS: u64 = 25;

fn start_node(world: &mut World, on: ReactorHandle, disk: &Rc<RefCell<Disk>>) {
    let disk = disk.clone();
    world
        .spawn(on, Class::Request, "node", async move {
            let authority = TableAuthority::default();
            let store = FakeStore::open(&disk, authority.clone());
            let known = store.rids().await.unwrap();
            let (ends, options) = (mesh(1).remove(0), NodeOptions { insecure_network: true, ..NodeOptions::default() });
            let reactor = Reactor::start(ReactorParts { ends, backend: store.clone(), authority, options, known });
            reactor.listen(&endpoint()).unwrap();
            std::future::pending::<()>().await;
            drop((reactor, store));
        })
        .detach();
}

async fn add(client: &Rc<TestClient>, groups: [u64; 2]) {
    client.lock_and_use(&[(groups[0], Write), (groups[1], Write)]).await.unwrap();
    // An invalidation may be queued by now, and waits until we are done.
    let held = |group: &u64| client.locks.borrow()[&LockName::Group(*group)].mode == Write;
    assert!(groups.iter().all(held), "what was granted is held while it is used");
    let mut ops = Vec::new();
    for group in groups {
        let value: u64 = client.get(group).await.map_or(0, |value| value.parse().unwrap());
        ops.push(ItemOp::Put { key: key(group), value: Bytes::from((value + 1).to_string()) });
    }
    client.commit(ops).await.unwrap();
    client.unuse();
}

fn run(seed: u64, config: SimConfig, kills: u64) -> u64 {
    let mut world = World::new(seed, config);
    let disk: Rc<RefCell<Disk>> = Rc::default();
    let server = world.add_node();
    let reactor = world.add_reactor(server);
    start_node(&mut world, reactor, &disk);
    let done = Rc::new(Cell::new(0));
    for n in 1..=CLIENTS {
        let done = done.clone();
        spawn_apart(&mut world, "client", async move {
            let client = TestClient::connect(address(), n, Timers::DEFAULT).await;
            for round in 0..ROUNDS {
                let first = (round * n) % 5;
                add(&client, [first, first + 1]).await;
            }
            client.sync().await.unwrap();
            client.conn.farewell().await.unwrap();
            done.set(done.get() + 1);
        });
    }
    for _ in 0..kills {
        world.run_for(Duration::from_millis(300));
        world.kill_node(server);
        world.run_for(Duration::from_millis(200));
        let reactor = world.add_reactor(server);
        start_node(&mut world, reactor, &disk);
    }
    let finished = world.run_until(|| done.get() == CLIENTS, LONG);
    assert!(finished, "seed {seed}: {} of {CLIENTS} clients are done\n{:#?}", done.get(), world.recent_trace());
    let sum: u64 = disk.borrow().items.values().map(|v| std::str::from_utf8(v).unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(sum, 2 * ROUNDS * CLIENTS, "seed {seed}");
    assert!(disk.borrow().rids.is_empty(), "seed {seed}: nobody is left");
    world.trace_hash()
}

#[test]
fn healthy_networks_count_right_and_repeat_themselves() {
    for seed in 0..10 {
        assert_eq!(run(seed, SimConfig::default(), 0), run(seed, SimConfig::default(), 0), "seed {seed}");
    }
}

#[test]
fn hostile_networks_count_right() {
    for seed in 100..200 {
        run(seed, SimConfig { reset_one_in: 100, ..SimConfig::hostile() }, 0);
    }
}

#[test]
fn dying_leaders_count_right() {
    for seed in 300..400 {
        run(seed, SimConfig::hostile(), 4);
    }
}
