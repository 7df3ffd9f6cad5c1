//! Real threads: one reactor each, clients on all of them, over the native runtime.

mod common;

use std::rc::Rc;

use common::*;
use vellum_base::Rid;
use vellum_format::Inode;
use vellum_rt::native::{block_on, spawn_thread};
use vellum_store::{Everyone, Store, open};

#[test]
fn stores_on_threads_of_their_own_work_together() {
    let device = memory(128 * MIB);
    let seeds = block_on(async {
        make(&device).await;
        let (q, _p) = queue(&device);
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
