//! Scrubs that begin by themselves, in virtual time: so long after the last one, over restarts, one at a time.

mod common;

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use vellum_nvme::Device;
use vellum_nvme::memory::MemoryDevice;
use vellum_rt::sim::{ReactorHandle, SimConfig, World};
use vellum_rt::{sleep, wall_clock};
use vellum_store::{OpenOptions, ScrubStatus, Store};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const EVERY: Duration = Duration::from_secs(7 * DAY);

/// A machine with a filesystem that was just made; its device.
fn made(seed: u64) -> (World, ReactorHandle, Arc<dyn Device>) {
    let mut world = World::new(seed, SimConfig::default());
    let node = world.add_node();
    let reactor = world.add_reactor(node);
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::new(64 * MIB));
    let new = device.clone();
    world.block_on(reactor, Duration::from_secs(60), async move { make(&new).await }).unwrap();
    (world, reactor, device)
}

fn run<T: 'static>(world: &mut World, on: ReactorHandle, work: impl Future<Output = T> + 'static) -> T {
    world.block_on(on, Duration::from_secs(400 * DAY), work).expect("it ends")
}

async fn serve(device: &Arc<dyn Device>) -> Rc<Store> {
    let (stores, _) = start(device, OpenOptions { scrub_every: Some(EVERY), ..options(2) }).await.unwrap();
    stores[0].clone()
}

async fn days(n: f64) {
    sleep(Duration::from_secs_f64(n * DAY as f64)).await;
}

async fn status(store: &Rc<Store>) -> ScrubStatus {
    store.scrub_status().await.unwrap()
}

fn now_s() -> u64 {
    wall_clock().secs as u64
}

#[test]
fn a_scrub_begins_so_long_after_the_last_one_and_a_restart_changes_nothing() {
    for seed in 1..6 {
        let (mut world, reactor, device) = made(seed);
        run(&mut world, reactor, async move {
            let made_s = now_s();
            let store = serve(&device).await;
            sleep(Duration::from_secs(1)).await;
            let first = status(&store).await;
            assert_eq!((first.last, first.completed), (None, 0));
            // Never scrubbed: as if the making had been one. Up to a tenth of the interval is chance.
            let due = first.next_at_s.unwrap();
            assert!((made_s + 7 * DAY..=made_s + 8 * DAY).contains(&due), "{}", due - made_s);
            days(6.9).await;
            assert_eq!(status(&store).await.completed, 0);
            sleep(Duration::from_secs(due + 60 - now_s())).await;
            let second = status(&store).await;
            assert_eq!((second.completed, second.running, second.problems), (1, false, 0));
            let last = second.last.unwrap();
            assert!((due..due + 60).contains(&last.ended_at_s));

            // Another run knows of it, and is as far from the next one.
            days(3.0).await;
            store.shutdown().await.unwrap();
            let store = serve(&device).await;
            sleep(Duration::from_secs(1)).await;
            let after = status(&store).await;
            assert_eq!((after.last, after.completed), (Some(last), 0));
            let due = after.next_at_s.unwrap();
            assert!((last.ended_at_s + 7 * DAY..=last.ended_at_s + 8 * DAY).contains(&due));
            sleep(Duration::from_secs(due + 60 - now_s())).await;
            assert_eq!(status(&store).await.completed, 1);
            store.shutdown().await.unwrap();
        });
    }
}

#[test]
fn what_is_overdue_waits_until_the_start_is_over() {
    let (mut world, reactor, device) = made(7);
    run(&mut world, reactor, async move {
        days(100.0).await;
        let started = now_s();
        let store = serve(&device).await;
        sleep(Duration::from_secs(1)).await;
        let due = status(&store).await.next_at_s.unwrap();
        assert!((started + 600..=started + 600 + HOUR + 1).contains(&due), "{}", due - started);
        sleep(Duration::from_secs(590)).await;
        let early = status(&store).await;
        assert_eq!((early.completed, early.running), (0, false));
        sleep(Duration::from_secs(HOUR + 120)).await;
        assert_eq!(status(&store).await.completed, 1);
        store.shutdown().await.unwrap();
    });
}

#[test]
fn what_an_operator_began_is_the_scrub_and_is_left_alone() {
    let (mut world, reactor, device) = made(8);
    run(&mut world, reactor, async move {
        let store = serve(&device).await;
        let mut client = Client::open(&store, RID).await;
        let data = blocks(64, 3).freeze();
        let ranges = store.write_data(RID, data.clone()).await.unwrap();
        let new = vellum_format::Inode { online_blocks: 64, ..inode(64 * 4096, 1) };
        let ops = vec![put_inode(ino(3, 2), &new), extent_op(ino(3, 2), 0, ranges[0], &data)];
        client.commit(&store, ops).await.unwrap();
        days(6.9).await;
        // So slow that it runs when the next one is due.
        let slow = 1;
        store.start_scrub(slow).await.unwrap();
        days(1.2).await;
        let running = status(&store).await;
        assert_eq!((running.running, running.rate_bytes_per_s, running.completed), (true, slow, 0));
        store.stop_scrub().await.unwrap();
        sleep(Duration::from_secs(60)).await;
        // It has not seen everything: another one comes, soon and not at once.
        let stopped = status(&store).await;
        assert_eq!((stopped.running, stopped.last), (false, None));
        let wait = stopped.next_at_s.unwrap() - now_s();
        assert!((DAY / 2..=DAY).contains(&wait), "{wait}");
        days(1.0).await;
        let ended = status(&store).await;
        assert_eq!((ended.completed, ended.problems, ended.read_bytes > 64 * 4096), (1, 0, true));
        // One that an operator begins, and lets end, puts off the next.
        days(3.0).await;
        store.start_scrub(0).await.unwrap();
        sleep(Duration::from_secs(60)).await;
        let asked = status(&store).await;
        assert_eq!(asked.completed, 2);
        assert!(asked.next_at_s.unwrap() >= now_s() + 7 * DAY - 120);
        store.shutdown().await.unwrap();
    });
}

#[test]
fn without_an_interval_none_begins() {
    let (mut world, reactor, device) = made(9);
    run(&mut world, reactor, async move {
        let (stores, _) = start(&device, options(2)).await.unwrap();
        days(300.0).await;
        let status = status(&stores[0]).await;
        assert_eq!((status.completed, status.running, status.next_at_s), (0, false, None));
        stores[0].shutdown().await.unwrap();
    });
}
