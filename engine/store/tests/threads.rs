//! Real threads: one reactor each, clients on all of them, over the native runtime.

mod common;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;
use vellum_base::{Bucket, Key, ReactorId, Rid, View};
use vellum_format::Inode;
use vellum_rt::native::{block_on, spawn_thread};
use vellum_rt::{Class, spawn};
use vellum_store::{Everyone, OpenOptions, Rebalance, Store, open};

#[test]
fn stores_on_threads_of_their_own_work_together() {
    let device = memory(128 * MIB);
    let seeds = block_on(async {
        make(&device).await;
        let q = queue(&device);
        open(&device, &q, options(3)).await.unwrap().seeds
    });
    let (done, all_done) = std::sync::mpsc::channel::<()>();
    let threads: Vec<_> = seeds
        .into_iter()
        .enumerate()
        .map(|(i, seed)| {
            let done = done.clone();
            let main = move || async move {
                let store = Store::start(seed, Rc::new(Everyone)).await.unwrap();
                let mut client = Client::open(&store, Rid(100 + i as u64)).await;
                for n in 0..200u64 {
                    let ops = (0..6).map(|j| put_inode(ino((n * 6 + j) as u8, 2 + n * 3 + i as u64), &inode(n, 1)));
                    let epoch = client.commit(&store, ops.collect()).await.unwrap();
                    if n % 5 == 0 {
                        store.wait_durable(epoch).await.unwrap();
                    }
                }
                for n in 0..200u64 {
                    let key = Inode::key(ino((n * 6) as u8, 2 + n * 3 + i as u64));
                    assert!(get(&store, key).await.is_some(), "{i} {n}");
                }
                done.send(()).unwrap();
                drop(done);
                // Everyone stays until the node is stopped: the others ask for what is here.
                if i == 0 {
                    while Rc::strong_count(&store) > 0 {
                        vellum_rt::sleep(std::time::Duration::from_millis(5)).await;
                        if store.status().await.unwrap().reactors.iter().map(|r| r.batches).sum::<u64>() == 600 {
                            vellum_rt::sleep(std::time::Duration::from_millis(200)).await;
                            break;
                        }
                    }
                    store.shutdown().await.unwrap();
                } else {
                    while store.wait_durable(vellum_base::Epoch(0)).await.is_ok() {
                        vellum_rt::sleep(std::time::Duration::from_millis(1)).await;
                    }
                }
            };
            spawn_thread(&format!("reactor {i}"), None, main).unwrap()
        })
        .collect();
    drop(done);
    for _ in 0..3 {
        all_done.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
    block_on(async {
        let (stores, _) = start(&device, options(2)).await.unwrap();
        for i in 0..3u64 {
            for n in 0..200u64 {
                let key = Inode::key(ino((n * 6) as u8, 2 + n * 3 + i));
                assert!(get(&stores[0], key).await.is_some(), "{i} {n}");
            }
        }
    });
}

const CLIENTS: u64 = 4;
const BATCHES: u64 = 150;
const ITEMS: u64 = 100;

/// Rids whose home is this reactor.
fn rids_of(store: &Store, reactor: u16) -> impl Iterator<Item = Rid> + '_ {
    (1u64..).map(|n| Rid(n * 0x9e37_79b9 + 1)).filter(move |rid| store.home_of(*rid).0 == reactor)
}

/// Clients of one reactor write into one shard; how long that took.
async fn write_into(store: &Rc<Store>, bucket: u8, round: u64) -> Duration {
    let began = Instant::now();
    let rids: Vec<Rid> = rids_of(store, if bucket == 0 { 0 } else { 1 }).take(CLIENTS as usize).collect();
    let tasks = rids.into_iter().zip(0..).map(|(rid, c)| {
        let store = store.clone();
        spawn(Class::Request, "client", async move {
            let mut client = Client::open(&store, rid).await;
            for n in 0..BATCHES {
                let first = 2 + ((c * 2 + round) * BATCHES + n) * ITEMS;
                let ops = (first..first + ITEMS).map(|i| put_inode(ino(bucket, i), &inode(n, round)));
                client.commit(&store, ops.collect()).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    began.elapsed()
}

async fn wait_for(count: &AtomicU64, n: u64) {
    count.fetch_add(1, Ordering::SeqCst);
    while count.load(Ordering::SeqCst) < n {
        vellum_rt::sleep(Duration::from_millis(1)).await;
    }
}

/// Two shards with all the work are on one reactor, then one of them moves to the other reactor, where its clients are. It
/// prints what that changed: on two free cores the rate grows; how much, only a quiet machine tells.
#[test]
fn a_move_gives_the_other_core_its_share() {
    let device = memory(512 * MIB);
    let options = OpenOptions { memtable_bytes: 64 << 20, rebalance: Rebalance::Never, ..options(2) };
    let seeds = block_on(async {
        make(&device).await;
        let q = queue(&device);
        open(&device, &q, options.clone()).await.unwrap().seeds
    });
    let met = Arc::new(AtomicU64::new(0));
    let threads = seeds.into_iter().enumerate().map(|(i, seed)| {
        let met = met.clone();
        let main = move || async move {
            let store = Store::start(seed, Rc::new(Everyone)).await.unwrap();
            let bucket = [0, 32][i];
            assert_eq!(store.reactor_of(Bucket(bucket)), ReactorId(0), "both are there");
            wait_for(&met, 2).await;
            let before = write_into(&store, bucket, 0).await;
            wait_for(&met, 4).await;
            if i == 0 {
                assert!(store.move_shard(Bucket(32), ReactorId(1)).await.unwrap());
            }
            wait_for(&met, 6).await;
            let after = write_into(&store, bucket, 1).await;
            wait_for(&met, 8).await;
            let rate = |time: Duration| (CLIENTS * BATCHES * ITEMS) as f64 / time.as_secs_f64() / 1000.0;
            println!("clients of reactor {i}: {:.0} k items/s, and {:.0} after the move", rate(before), rate(after));
            if i == 0 {
                let status = store.status().await.unwrap();
                assert_eq!(status.reactors[0].moves.done, 1);
                println!("nothing was admitted for {:?}", status.reactors[0].moves.longest);
                let keys: Vec<Key> = (2..2 + ITEMS).map(|i| Inode::key(ino(32, i))).collect();
                assert!(store.get(&keys, View::Applied).await.unwrap().iter().all(Option::is_some));
                store.shutdown().await.unwrap();
            } else {
                while store.wait_durable(vellum_base::Epoch(0)).await.is_ok() {
                    vellum_rt::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        spawn_thread(&format!("reactor {i}"), None, main).unwrap()
    });
    threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
}
