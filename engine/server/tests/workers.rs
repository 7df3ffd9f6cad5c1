//! Jobs that workers do for a leader, and every way in which a worker may be lost (C1 to C3, scenario 47).

mod crew;
mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crew::{Deed, LEADER, Lab};
use fake::nodes::*;
use serde_json::Value;
use vellum_base::{Epoch, Rid};
use vellum_link::{ConnectOptions, Connection, Identity, LinkError};
use vellum_nvme::fault::ProcessId;
use vellum_rt::Class;
use vellum_store::lsm::{Cancel, execute};
use vellum_wire::{ErrorCode, Greeting, LockMode, LockName, LockWant, Request};

#[test]
fn workers_compact_for_the_leader_in_rotation() {
    for (seed, reactors) in [(1, 1), (2, 2)] {
        let mut lab = Lab::new(seed, reactors);
        let workers = [lab.worker(1, ProcessId(11)), lab.worker(2, ProcessId(12))];
        lab.write(4);
        lab.wait_workers(2);
        for _ in 0..6 {
            lab.write(60);
            lab.compact().unwrap();
        }
        assert!(lab.sum("done_elsewhere") >= 6 && lab.sum("failed") == 0, "{:#}", lab.status());
        for worker in &workers {
            worker.stop.try_send(()).unwrap();
            let end = worker.end.clone();
            lab.until("the worker stops", move || end.borrow().is_some());
            assert!(matches!(*worker.end.borrow(), Some(Ok(()))));
        }
        lab.wait_workers(0);
        lab.write(60);
        lab.compact().unwrap();
        assert!(lab.sum("done") > 0, "without workers it is done here");
        lab.end();
    }
}

#[test]
fn a_worker_holds_no_locks_and_changes_nothing() {
    let mut lab = Lab::new(3, 1);
    lab.write(1);
    let link = ConnectOptions {
        flags: Greeting::worker_flags(Some(4)),
        open_within: None,
        insecure_network: true,
        ..ConnectOptions::default()
    };
    let group = lab.group.get();
    lab.on_client(async move {
        let connection =
            Connection::open(address(), Identity { rid: Rid(5), fsid: None }, link).await.expect("a connection");
        let wants = vec![LockWant { name: LockName::Group(group), mode: LockMode::Write }];
        for request in [Request::Lock { wants }, Request::StatFs, Request::WriteData, Request::CompactAll] {
            match connection.call(request, None).await {
                Err(LinkError::Remote(error)) => assert_eq!(error.code, ErrorCode::NotPermitted),
                other => panic!("{other:?}"),
            }
        }
        connection.farewell().await.unwrap();
    });
    lab.on_client(async move {
        let link = ConnectOptions { open_within: None, insecure_network: true, ..ConnectOptions::default() };
        let connection =
            Connection::open(address(), Identity { rid: Rid(6), fsid: None }, link).await.expect("a connection");
        for request in [Request::Work { jobs: 1 }, Request::Compact { job: Bytes::from_static(b"x") }] {
            assert!(matches!(connection.call(request, None).await, Err(LinkError::Remote(_))), "no worker");
        }
        connection.farewell().await.unwrap();
    });
    lab.end();
}

#[test]
fn c3_a_worker_that_dies_with_a_job_in_hand_leaks_nothing_and_hits_nothing_scenario_47() {
    for seed in 10..16 {
        let mut lab = Lab::new(seed, 1 + (seed % 2) as usize);
        lab.write(120);
        let worker = lab.worker(3, ProcessId(13));
        lab.wait_workers(1);
        let done = lab.begin_compact();
        // Somewhere in the middle of its writes.
        lab.world.run_for(Duration::from_micros(300 + seed * 170));
        lab.kill_worker(&worker);
        lab.until("it is done by somebody else", || done.get());
        lab.write(60);
        lab.compact().unwrap();
        let lost = lab.sum("lost");
        if lost > 0 {
            assert!(lab.sum("withheld_blocks") > 0, "it may still be writing: {:#}", lab.status());
            lab.world.run_for(Duration::from_secs(600));
            assert!(lab.sum("withheld_blocks") > 0, "time proves nothing");
        }
        // What it had in flight lands until it is fenced, and not later.
        lab.device.fence(ProcessId(13));
        lab.fenced.0.lock().unwrap().insert(3);
        lab.wait_sum("withheld_blocks", |blocks| blocks == 0);
        lab.write(100);
        lab.compact().unwrap();
        lab.end();
    }
}

#[test]
fn c3_a_late_answer_installs_nothing_and_frees_its_space() {
    let mut lab = Lab::new(20, 1);
    lab.write(120);
    let puppet = lab.puppet(5, Deed::Sits);
    lab.wait_workers(1);
    let done = lab.begin_compact();
    // It has taken its job and holds its connection; after the time for a job the work is done here.
    lab.until("it is done here", || done.get());
    let (taken, late) = (puppet.jobs.borrow().len(), puppet.jobs.borrow()[0].clone());
    assert!(taken >= 1 && lab.sum("lost") >= 1 && lab.sum("withheld_blocks") > 0);
    lab.read();
    puppet.go.set(true);
    lab.wait_sum("withheld_blocks", |blocks| blocks == 0);
    assert_eq!(lab.sum("done_elsewhere"), 0, "job {:?} came too late", late.first_id);
    lab.write(80);
    lab.compact().unwrap();
    assert!(lab.sum("done_elsewhere") > 0, "it answers in time now");
    lab.end();
}

#[test]
fn c3_a_worker_that_lies_is_sent_away() {
    let mut lab = Lab::new(30, 1);
    lab.write(120);
    let puppet = lab.puppet(6, Deed::Lies);
    lab.wait_workers(1);
    assert!(lab.compact().is_err(), "its outcome is not believed");
    assert_eq!(puppet.jobs.borrow().len(), 1);
    lab.wait_workers(0);
    lab.compact().unwrap();
    assert!(lab.sum("done_elsewhere") == 0 && lab.sum("done") > 0 && lab.sum("withheld_blocks") > 0);
    lab.world.kill_node(puppet.node);
    lab.device.fence(ProcessId(90));
    lab.fenced.0.lock().unwrap().insert(6);
    lab.wait_sum("withheld_blocks", |blocks| blocks == 0);
    lab.end();
}

/// A worker dies for good with a job in hand, and nothing here can know of it: the operator who does gives it up, and its blocks
/// come back. As long as it may come back itself an eviction only takes its connection.
#[test]
fn c3_an_operator_gives_up_a_worker_that_is_dead_for_good() {
    let mut lab = Lab::new(35, 1);
    lab.write(120);
    let puppet = lab.puppet(5, Deed::Sits);
    lab.wait_workers(1);
    let done = lab.begin_compact();
    let jobs = puppet.jobs.clone();
    lab.until("a job is taken", move || !jobs.borrow().is_empty());
    assert!(lab.evict(Rid(1005)).is_ok());
    lab.world.kill_node(puppet.node);
    lab.until("it is done by somebody else", || done.get());
    lab.world.run_for(Duration::from_secs(60));
    assert!(lab.sum("withheld_blocks") > 0, "a connection that was taken away proves nothing: {:#}", lab.status());
    lab.device.fence(ProcessId(90));
    assert!(lab.evict(Rid(1005)).is_ok());
    lab.wait_sum("withheld_blocks", |blocks| blocks == 0);
    assert!(lab.evict(Rid(1005)).is_err(), "there is no such client any more");
    lab.write(80);
    lab.compact().unwrap();
    lab.end();
}

/// The same when the leader died too: the next one knows the worker by its record alone.
#[test]
fn c3_an_operator_gives_up_a_dead_worker_of_an_earlier_term() {
    let mut lab = Lab::new(36, 1);
    lab.write(160);
    let puppet = lab.puppet(7, Deed::Sits);
    lab.wait_workers(1);
    let _done = lab.begin_compact();
    let jobs = puppet.jobs.clone();
    lab.until("a job is taken", move || !jobs.borrow().is_empty());
    lab.world.kill_node(puppet.node);
    lab.kill_leader(LEADER);
    lab.lead(ProcessId(2));
    lab.world.run_for(Duration::from_secs(60));
    let withheld = |status: Value| status["store"]["withheld_blocks"].as_u64().unwrap();
    assert!(withheld(lab.status()) > 0);
    lab.device.fence(ProcessId(90));
    assert!(lab.evict(Rid(1007)).is_ok());
    lab.world.run_for(Duration::from_secs(5));
    assert_eq!(withheld(lab.status()), 0, "{:#}", lab.status());
    lab.write(80);
    lab.compact().unwrap();
    lab.end();
}

/// The leader dies; its worker lives and has a job in hand, whose outputs the next leader knows nothing of.
#[test]
fn c3_what_a_dead_leader_handed_over_is_not_reused_before_its_worker_is_quiet() {
    let mut lab = Lab::new(40, 1);
    lab.write(160);
    let puppet = lab.puppet(7, Deed::Sits);
    lab.wait_workers(1);
    let _done = lab.begin_compact();
    let jobs = puppet.jobs.clone();
    lab.until("a job is taken", move || !jobs.borrow().is_empty());
    let job = puppet.jobs.borrow()[0].clone();
    lab.kill_leader(LEADER);
    lab.world.partition(puppet.node, lab.leader); // it hears of nothing
    lab.lead(ProcessId(2));
    let status = lab.status();
    assert!(status["store"]["withheld_blocks"].as_u64().unwrap() > 0, "{status:#}");
    assert_eq!(status["reactors"][0]["workers_of_earlier_terms"], 1);
    // Nobody waits for a worker's locks: the client goes on, and its segments lie elsewhere.
    lab.write(200);
    lab.compact().unwrap();
    lab.world.run_for(Duration::from_secs(900));
    // Only now it does its old job.
    let (device, old) = (lab.device.opened_by(ProcessId(90)).as_device(), job.clone());
    let written = Arc::new(AtomicBool::new(false));
    let flag = written.clone();
    lab.world
        .spawn(puppet.on, Class::Compaction, "late", async move {
            let queue = open_queue(&device);
            let _ = execute(&queue, &old, &Cancel::default()).await; // its inputs may be gone
            for range in &old.space {
                let data = vellum_base::DmaBuf::copy_from(&vec![0xee; range.len_bytes()], true).freeze();
                queue.write(range.start.bytes(), data, false).await.unwrap();
            }
            flag.store(true, Ordering::SeqCst);
        })
        .detach();
    lab.until("it has written", move || written.load(Ordering::SeqCst));
    lab.read();
    lab.compact().unwrap();
    assert_eq!(lab.status()["reactors"][0]["workers_of_earlier_terms"], 1);
    // It comes back, quiet: what was withheld is free.
    lab.world.heal_all();
    let back = lab.worker(7, ProcessId(91));
    lab.wait_workers(1);
    for _ in 0..200 {
        lab.world.run_for(Duration::from_millis(100));
        if lab.status()["store"]["withheld_blocks"] == 0 {
            break;
        }
    }
    let status = lab.status();
    assert_eq!(status["store"]["withheld_blocks"], 0, "{status:#}");
    assert_eq!(status["reactors"][0]["workers_of_earlier_terms"], 0);
    back.stop.try_send(()).unwrap();
    lab.write(60);
    lab.compact().unwrap();
    lab.end();
}

#[test]
fn a_worker_goes_on_under_the_next_leader() {
    for seed in 50..54 {
        let mut lab = Lab::new(seed, 1);
        lab.write(120);
        let worker = lab.worker(8, ProcessId(14));
        lab.wait_workers(1);
        let _done = lab.begin_compact();
        lab.world.run_for(Duration::from_micros(200 + (seed - 50) * 300));
        lab.kill_leader(LEADER);
        lab.world.run_for(Duration::from_secs(1));
        lab.lead(ProcessId(2));
        lab.wait_workers(1);
        for _ in 0..100 {
            lab.world.run_for(Duration::from_millis(100));
            if lab.status()["store"]["withheld_blocks"] == 0 {
                break;
            }
        }
        let status = lab.status();
        assert_eq!(status["store"]["withheld_blocks"], 0, "it has said that it is quiet: {status:#}");
        lab.write(120);
        lab.compact().unwrap();
        assert!(lab.sum("done_elsewhere") > 0);
        worker.stop.try_send(()).unwrap();
        lab.until("the worker stops", {
            let end = worker.end.clone();
            move || end.borrow().is_some()
        });
        lab.end();
    }
}

#[test]
fn nothing_is_withheld_when_there_was_no_worker() {
    let mut lab = Lab::new(60, 2);
    lab.write(40);
    lab.compact().unwrap();
    lab.kill_leader(LEADER);
    lab.lead(ProcessId(2));
    lab.world.run_for(Duration::from_secs(1));
    assert_eq!(lab.status()["store"]["withheld_blocks"], 0);
    let durable = lab.status()["durable_epoch"].as_u64().map(Epoch);
    assert!(durable.is_some());
    lab.end();
}
