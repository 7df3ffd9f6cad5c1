//! One shard has all there is to do, on one of two reactors of a simulated node. It is split where its load divides, a
//! half moves, and nothing more happens: both have about as much to do.

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
use vellum_rt::{Instant, now, sleep};
use vellum_store::MkfsOptions;
use vellum_wire::LockMode::Write;
use vellum_wire::{Request, Response};

/// Buckets of the first of eight shards.
const HOT: u64 = 32;
/// Of each bucket in one request: five such a second are some percent of a core.
const GETS: usize = 50;
const EVERY: Duration = Duration::from_millis(200);

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
    let status = status(client).await;
    let (mut hot, mut shards) = ([0; 2], 0);
    for (reactor, hot) in status["store"]["reactors"].as_array().unwrap().iter().zip(&mut hot) {
        for shard in reactor["shard_ranges"].as_array().unwrap() {
            let bucket = |name: &str| shard[name].as_u64().unwrap();
            *hot += (bucket("last_bucket") + 1).min(HOT).saturating_sub(bucket("first_bucket"));
            shards += 1;
        }
    }
    (hot, shards)
}

async fn work() -> Duration {
    let client = TestClient::connect(address(), 77, Timers::DEFAULT).await;
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
    let device = sim_formatted(&mut world, 1, 128 << 20, MkfsOptions::default());
    let server = world.add_node();
    let _stop = start_node(&mut world, server, device.as_device(), node_options(2), |_| {});
    let took = Rc::new(Cell::new(None));
    let said = took.clone();
    spawn_apart(&mut world, "client", async move { said.set(Some(work().await)) });
    assert!(world.run_until(|| took.get().is_some(), LONG), "{:#?}", world.recent_trace());
    println!("even after {:?}", took.get().unwrap());
}
