//! One shard has all there is to do, on one of two reactors of a simulated node. It is split where its load divides, a
//! half moves, and nothing more happens: both have about as much to do.

mod fake;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fake::TestClient;
use serde_json::Value;
use vellum_base::{Ino, ItemOp, View};
use vellum_format::Inode;
use vellum_link::Address;
use vellum_nvme::Image;
use vellum_nvme::fault::{FaultConfig, FaultDevice, ProcessId};
use vellum_proto::Timers;
use vellum_rt::net::Endpoint;
use vellum_rt::sim::{SimConfig, World};
use vellum_rt::{Class, Instant, add_poller, now, sleep};
use vellum_server::{NodeOptions, Plan};
use vellum_store::{MkfsOptions, OpenOptions, mkfs};
use vellum_wire::LockMode::Write;
use vellum_wire::{Request, Response};

const LONG: Duration = Duration::from_secs(900);
/// Buckets of the first of eight shards.
const HOT: u64 = 32;
/// Of each bucket in one request: five such a second are some percent of a core.
const GETS: usize = 50;
const EVERY: Duration = Duration::from_millis(200);

fn endpoint() -> Endpoint {
    "tcp:10.0.0.1:7000".parse().unwrap()
}

fn inode(bucket: u64) -> Ino {
    Ino(bucket << 56 | 1 << 10)
}

/// Asks for every inode of the hot shard, some times.
async fn ask(client: &TestClient) {
    let keys = (0..HOT).flat_map(|bucket| [Inode::key(inode(bucket)); GETS]).collect();
    let Response::Items { values } =
        client.conn.call(Request::Get { keys, view: View::Applied }, None).await.unwrap().body
    else {
        panic!()
    };
    for (at, value) in values.iter().enumerate() {
        let found = Inode::decode(value.as_ref().unwrap()).unwrap();
        assert_eq!(found.size, 1 + (at / GETS) as u64, "of another inode");
    }
}

/// How many buckets of the hot shard each reactor has, and how many shards there are.
async fn places(client: &TestClient) -> ([u64; 2], usize) {
    let Response::Status { json } = client.conn.call(Request::Status, None).await.unwrap().body else { panic!() };
    let status: Value = serde_json::from_str(&json).unwrap();
    let reactors = status["store"]["reactors"].as_array().or(status["reactors"].as_array()).unwrap();
    let (mut hot, mut shards) = ([0; 2], 0);
    for (reactor, hot) in reactors.iter().zip(&mut hot) {
        for shard in reactor["shard_ranges"].as_array().unwrap() {
            let bucket = |name: &str| shard[name].as_u64().unwrap();
            *hot += (bucket("last_bucket") + 1).min(HOT).saturating_sub(bucket("first_bucket"));
            shards += 1;
        }
    }
    (hot, shards)
}

async fn work() -> Duration {
    let client = TestClient::connect(Address::Net(endpoint()), 77, Timers::DEFAULT).await;
    let groups: Vec<_> = (0..HOT).map(|bucket| (inode(bucket).group(), Write)).collect();
    client.lock_and_use(&groups).await.unwrap();
    let put = |bucket: u64| {
        let value = Inode { mode: 0o100644, size: 1 + bucket, ..Inode::default() }.encode();
        ItemOp::Put { key: Inode::key(inode(bucket)), value }
    };
    client.commit((0..HOT).map(put).collect()).await.unwrap();
    client.unuse();
    assert_eq!(places(&client).await, ([HOT, 0], 8), "before");
    let began = now();
    let mut even = None;
    // Ten looks more, after it is even: one that would split or move again for nothing would do it by then.
    while even.is_none_or(|(at, _): (Instant, Duration)| at.elapsed() < Duration::from_secs(100)) {
        ask(&client).await;
        sleep(EVERY).await;
        if even.is_none() && places(&client).await.0[1] > 0 {
            even = Some((now(), began.elapsed()));
        }
        assert!(began.elapsed() < Duration::from_secs(400), "it stays: {:?}", places(&client).await);
    }
    let (hot, shards) = places(&client).await;
    assert_eq!((hot, shards), ([HOT / 2; 2], 9), "each half of the load, and one shard more");
    client.conn.farewell().await.unwrap();
    even.unwrap().1
}

#[test]
fn one_hot_shard_ends_on_both_reactors() {
    let mut world = World::new(1, SimConfig::default());
    let faults = FaultConfig { hook: Some(Arc::new(vellum_rt::wake_after)), ..FaultConfig::default() };
    let device = FaultDevice::new(Image::zeroed(128 << 20), 1, faults);
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
    let server = world.add_node();
    let store = OpenOptions { cache_bytes: 4 << 20, memtable_bytes: 2 << 20, ..OpenOptions::default() };
    let options = NodeOptions {
        cores: vec![None; 2],
        listen: vec![endpoint()],
        insecure_network: true,
        store,
        ..NodeOptions::default()
    };
    let (plan, _dialer, _stop) = Plan::new(device.opened_by(ProcessId(1)).as_device(), options, |_| {}).unwrap();
    for index in 0..2 {
        let on = world.add_reactor(server);
        world.spawn(on, Class::Request, "node", plan.clone().run(index)).detach();
    }
    let node = world.add_node();
    let on = world.add_reactor(node);
    let took = Rc::new(Cell::new(None));
    let said = took.clone();
    world.spawn(on, Class::Request, "client", async move { said.set(Some(work().await)) }).detach();
    assert!(world.run_until(|| took.get().is_some(), LONG), "{:#?}", world.recent_trace());
    println!("even after {:?}", took.get().unwrap());
}
