//! Shards move from reactor to reactor in the simulated world while clients hold their locks, wait for them, answer
//! invalidations, and die. Each client adds to shared counters under WRITE locks: a lost, doubled or stale change shows
//! in the sum, a lock that is lost as a refused batch or as somebody who waits for ever.

mod fake;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use fake::TestClient;
use fake::nodes::*;
use vellum_base::{Ino, ItemOp, View};
use vellum_format::Inode;
use vellum_proto::Timers;
use vellum_rt::sim::{SimConfig, World};
use vellum_server::NodeOptions;
use vellum_store::{MkfsOptions, Rebalance};
use vellum_wire::{LockMode::*, LockName, Request, Response};

const CLIENTS: u64 = 4;
const ROUNDS: u64 = 40;
const COUNTERS: u64 = 6;

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
    TestClient::connect(address(), rid, Timers::DEFAULT.faster(10)).await
}

/// How many shards have moved.
async fn moved(client: &TestClient) -> u64 {
    let status = status(client).await;
    status["store"]["reactors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reactor| reactor["shards_moved"].as_u64().unwrap())
        .sum()
}

fn run(seed: u64, config: SimConfig) -> u64 {
    let mut world = World::new(seed, config);
    let device = sim_formatted(&mut world, seed, 128 << 20, MkfsOptions::default());
    let mut options = NodeOptions { timers: Timers::DEFAULT.faster(10), ..node_options(3) };
    options.store.rebalance = Rebalance::AtRandom(Duration::from_millis(3));
    let server = world.add_node();
    let _stop = start_node(&mut world, server, device.as_device(), options, |_| {});
    // It takes all locks, gives none back, and dies: the others wait until it is reclaimed, wherever its locks are then.
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
    let doomed = spawn_apart(&mut world, "doomed", hold_all);
    assert!(world.run_until(|| holds.get(), LONG), "seed {seed}: nothing is granted");
    let (done, moves) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for n in 1..=CLIENTS {
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
        spawn_apart(&mut world, "client", work);
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
