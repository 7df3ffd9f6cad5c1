//! How other systems' lock clients failed, told against the strict engine: it asserts that no two clients claim what
//! excludes each other (L1), and refuses every change outside a client's locks (L10). Timing comes from the seeds.

mod strict;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use strict::{FakeConfig, FakeEngine};
use vellum_base::{Ino, Key, View};
use vellum_client::{Client, ClientOptions, LockMode, LockName};
use vellum_rt::sim::{SimConfig, World};
use vellum_rt::{Class, JoinHandle, random_u64, sleep, spawn};

fn run<F: Future<Output = ()> + 'static>(seed: u64, test: impl FnOnce() -> F) {
    let mut world = World::new(seed, SimConfig::default());
    let node = world.add_node();
    let reactor = world.add_reactor(node);
    let task = world.enter(reactor, test);
    assert!(world.block_on(reactor, Duration::from_secs(3600), task).is_some(), "seed {seed}: it hangs");
}

async fn two(engine: &Rc<FakeEngine>) -> (Rc<Client>, Rc<Client>) {
    (engine.connect(ClientOptions::default()).await, engine.connect(ClientOptions::default()).await)
}

fn item(n: u64) -> Key {
    Key::fs(ino(n), 2, 1, 0, 0)
}

fn ino(n: u64) -> Ino {
    Ino((1 << 40) + (n << 10))
}

async fn put(client: &Rc<Client>, n: u64, value: u64) {
    let guard = client.lock(&[(LockName::of(ino(n)), LockMode::Write)]).await.unwrap();
    let mut txn = client.begin(&guard);
    txn.put(item(n), Bytes::from(value.to_string()));
    txn.commit().unwrap();
}

async fn get(client: &Rc<Client>, n: u64) -> u64 {
    let guard = client.lock(&[(LockName::of(ino(n)), LockMode::Read)]).await.unwrap();
    let value = client.get(&guard, item(n)).await.unwrap();
    value.map_or(0, |value| std::str::from_utf8(&value).unwrap().parse().unwrap())
}

fn in_background<F: Future<Output = ()> + 'static>(task: F) -> JoinHandle<()> {
    spawn(Class::Request, "story", task)
}

async fn a_moment(most: Duration) {
    sleep(Duration::from_nanos(random_u64() % most.as_nanos() as u64)).await;
}

/// Scenario 1: the leader dies while a client writes back for an invalidation. If the client then reported the mode that it is
/// going to, the next leader would grant the conflicting request while the cache is still dirty, and the reader would miss
/// the change. [L6]
/// Scenario 2: and the next leader sends that invalidation again, while the client is still busy with the first.
#[test]
fn scenario_1_and_2_l6_a_leader_dies_during_an_invalidation() {
    for seed in 0..150 {
        run(seed, move || async move {
            let engine = FakeEngine::new(FakeConfig::default());
            let (a, b) = two(&engine).await;
            for round in 1..=6 {
                put(&a, 1, round).await;
                let (reader, seen) = (b.clone(), Rc::new(Cell::new(0)));
                let out = seen.clone();
                let reading = in_background(async move { out.set(get(&reader, 1).await) });
                for _ in 0..1 + random_u64() % 2 {
                    a_moment(Duration::from_millis(8)).await;
                    engine.crash();
                }
                assert!(reading.await.is_ok());
                assert_eq!(seen.get(), round, "seed {seed}: the reader missed a change that was under the lock");
            }
            a.farewell().await.unwrap();
            b.farewell().await.unwrap();
        });
    }
}

/// Scenario 3, as clients see it, and scenario 12: two fight for one lock; each invalidation comes right behind a grant. None
/// is lost, and whoever is granted the lock gets to use it once. [L8]
#[test]
fn scenario_3_and_12_l8_every_grant_is_used_and_every_question_answered() {
    for seed in 0..20 {
        run(100 + seed, move || async move {
            let engine = FakeEngine::new(FakeConfig::default());
            let (a, b) = two(&engine).await;
            let done = Rc::new(Cell::new(0));
            let mut tasks = Vec::new();
            for client in [&a, &b, &a, &b] {
                let (client, done) = (client.clone(), done.clone());
                tasks.push(in_background(async move {
                    for _ in 0..25 {
                        let guard = client.lock(&[(LockName::of(ino(1)), LockMode::Write)]).await.unwrap();
                        drop(guard);
                        done.set(done.get() + 1);
                        a_moment(Duration::from_micros(300)).await;
                    }
                }));
            }
            for task in tasks {
                assert!(task.await.is_ok());
            }
            assert_eq!(done.get(), 100);
            a.farewell().await.unwrap();
            b.farewell().await.unwrap();
        });
    }
}

/// Scenario 6: two clients unmount together, each with changes, and each with a task that waits for the other's lock.
/// Elsewhere each waited for the other to answer an invalidation. Here a client answers until its farewell is answered. [L9]
#[test]
fn scenario_6_l9_two_farewells_end() {
    for seed in 0..60 {
        run(200 + seed, move || async move {
            let engine = FakeEngine::new(FakeConfig::default());
            let (a, b) = two(&engine).await;
            put(&a, 1, 1).await;
            put(&b, 2, 2).await;
            for (client, n) in [(&a, 2), (&b, 1)] {
                let client = client.clone();
                in_background(async move {
                    drop(client.lock(&[(LockName::of(ino(n)), LockMode::Write)]).await);
                })
                .detach();
            }
            a_moment(Duration::from_millis(3)).await;
            let leaving = {
                let a = a.clone();
                in_background(async move { a.farewell().await.unwrap() })
            };
            a_moment(Duration::from_millis(3)).await;
            b.farewell().await.unwrap();
            assert!(leaving.await.is_ok());
            assert_eq!(engine.item(&item(1), View::Durable), Some(Bytes::from_static(b"1")), "seed {seed}");
            assert_eq!(engine.item(&item(2), View::Durable), Some(Bytes::from_static(b"2")), "seed {seed}");
        });
    }
}

/// Whatever was changed under a lock is durable, and what was cached is forgotten, before the lock is answered: the next
/// holder begins with nothing, and the one before reads what the next has made of it. [L3, L5]
#[test]
fn l3_l5_nothing_is_dirty_at_a_grant_and_nothing_is_used_after_an_answer() {
    for seed in 0..40 {
        run(300 + seed, move || async move {
            let engine = FakeEngine::new(FakeConfig::default());
            let (a, b) = two(&engine).await;
            for round in 0..20 {
                let (one, other) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
                put(one, 1, 2 * round + 1).await;
                a_moment(Duration::from_millis(2)).await;
                let guard = other.lock(&[(LockName::of(ino(1)), LockMode::Write)]).await.unwrap();
                let durable = engine.item(&item(1), View::Durable);
                assert_eq!(durable, Some(Bytes::from((2 * round + 1).to_string())), "L3, seed {seed}");
                assert!(!one.holds(LockName::of(ino(1)), LockMode::Read), "L5: it has answered");
                let mut txn = other.begin(&guard);
                txn.put(item(1), Bytes::from((2 * round + 2).to_string()));
                txn.commit().unwrap();
                drop(guard);
                assert_eq!(get(one, 1).await, 2 * round + 2, "L5, seed {seed}");
            }
            a.farewell().await.unwrap();
            b.farewell().await.unwrap();
        });
    }
}

/// After a recovery the engine believes each client to have at least what the client believes: its changes are taken (L10 is
/// asserted by the engine at each batch), whatever was asked for, granted or given back in the moment of the crash. [L2]
#[test]
fn l2_after_a_recovery_no_view_is_stronger_than_the_leaders() {
    for seed in 0..60 {
        run(400 + seed, move || async move {
            let engine = FakeEngine::new(FakeConfig::default());
            let options = ClientOptions { max_idle_locks: 4, ..ClientOptions::default() };
            let (a, b) = (engine.connect(options.clone()).await, engine.connect(options).await);
            let mut tasks = Vec::new();
            for client in [&a, &b] {
                let client = client.clone();
                tasks.push(in_background(async move {
                    for n in 0..60 {
                        let group = random_u64() % 8;
                        if random_u64().is_multiple_of(2) {
                            put(&client, group, n).await;
                        } else {
                            get(&client, group).await;
                        }
                    }
                    client.sync().await.unwrap();
                }));
            }
            for _ in 0..4 {
                a_moment(Duration::from_millis(10)).await;
                engine.crash();
            }
            for task in tasks {
                assert!(task.await.is_ok(), "seed {seed}");
            }
            a.farewell().await.unwrap();
            b.farewell().await.unwrap();
        });
    }
}

/// Idle locks beyond the bound go back oldest first, in pages; what was used last stays, and one who wants any of them
/// meanwhile is served. [L8]
#[test]
fn l8_idle_locks_go_oldest_first_and_starve_nobody() {
    run(500, || async {
        let engine = FakeEngine::new(FakeConfig::default());
        let bounded = ClientOptions { max_idle_locks: 300, ..ClientOptions::default() };
        let (a, b) = (engine.connect(bounded).await, engine.connect(ClientOptions::default()).await);
        for n in 0..2_000 {
            get(&a, n).await;
            get(&a, 0).await; // used again and again
            if n % 100 == 99 {
                put(&b, n - 50, n).await;
            }
        }
        sleep(Duration::from_millis(100)).await;
        assert!(a.stats().locks_held <= 310, "{:?}", a.stats());
        let held = |n: u64| a.holds(LockName::of(ino(n)), LockMode::Read);
        assert!(held(0) && (1_900..2_000).filter(|n| *n != 1_949).all(held), "the newest stay");
        assert!(!(1..1_000).any(held), "the oldest go");
        a.farewell().await.unwrap();
        b.farewell().await.unwrap();
    });
}

/// E12: one change dirties two ranges, as a rename does, and another client asks for one of them. Both halves are durable
/// before that lock goes; what a crash at any moment leaves is both, or neither.
#[test]
fn e12_both_ranges_of_a_change_are_written_back_when_one_is_asked_for() {
    for seed in 0..60 {
        run(600 + seed, move || async move {
            let engine = FakeEngine::new(FakeConfig::default());
            let (a, b) = two(&engine).await;
            let durable = |n| engine.item(&item(n), View::Durable);
            for round in 1..=8u64 {
                let value = Bytes::from(round.to_string());
                let names = [1, 2].map(|n| (LockName::of(ino(n)), LockMode::Write));
                let guard = a.lock(&names).await.unwrap();
                let mut txn = a.begin(&guard);
                txn.put(item(1), value.clone());
                txn.put(item(2), value.clone());
                txn.commit().unwrap();
                drop(guard);
                assert_eq!(durable(1), durable(2), "seed {seed}: half a change is durable");
                a_moment(Duration::from_millis(3)).await;
                if random_u64().is_multiple_of(4) {
                    engine.crash();
                }
                assert_eq!(durable(1), durable(2), "seed {seed}: a crash left half a change");
                let wanted = 1 + random_u64() % 2;
                assert_eq!(get(&b, wanted).await, round);
                assert_eq!((durable(1), durable(2)), (Some(value.clone()), Some(value)), "seed {seed}");
            }
            a.farewell().await.unwrap();
            b.farewell().await.unwrap();
        });
    }
}

/// E13: an item is changed, and not durable, when the cache is full of others and the leader dies. If it had been evicted, it
/// would be read again in its old state, and the next change would build on that.
#[test]
fn e13_what_is_not_durable_is_not_evicted_and_read_again_in_its_old_state() {
    for seed in 0..60 {
        run(700 + seed, move || async move {
            let engine = FakeEngine::new(FakeConfig::default());
            let a = engine.connect(ClientOptions { cache_bytes: 1_000, ..ClientOptions::default() }).await;
            for round in 0..12u64 {
                assert_eq!(get(&a, 1).await, round, "seed {seed}: an old state came back");
                put(&a, 1, round + 1).await;
                for other in 2..40 {
                    get(&a, other).await;
                }
                if random_u64().is_multiple_of(2) {
                    engine.crash();
                }
            }
            assert!(a.stats().evictions > 0, "nothing was evicted");
            a.farewell().await.unwrap();
            assert_eq!(engine.item(&item(1), View::Durable), Some(Bytes::from_static(b"12")), "seed {seed}");
        });
    }
}
