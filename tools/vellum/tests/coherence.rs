//! Several real mounts of one engine are one filesystem (P4): the suite, each check on its own, and what only this
//! fixture can do to an engine and to gateways.
#![allow(unsafe_code)] // fcntl, mmap

mod common;
mod suite;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::cluster::ClusterLab;
use common::{Lab, can_mount};
use suite::opens::{METADATA, used};
use suite::posix_lock::{Kind, Of, set};
use suite::{Check, Mounts, bytes, eventually};

/// An engine with so many mounts; the device must be clean afterwards. Or the mounts that the environment names.
fn on_mounts(test: &str, mounts: usize, checks: &[(&str, Check)]) {
    let run = |m: &Mounts| {
        for (name, check) in checks {
            let began = Instant::now();
            check(m);
            println!("{name}: {:?}", began.elapsed());
        }
    };
    if let Some(given) = Mounts::from_environment() {
        return run(&given);
    }
    if !can_mount(test) {
        return;
    }
    let mut lab = Lab::new("512M");
    lab.serve();
    let roots: Vec<PathBuf> = (0..mounts).map(|n| lab.mount(&format!("m{n}"), None)).collect();
    run(&Mounts::new(roots.clone()));
    roots.iter().for_each(|root| lab.unmount(root));
    lab.stop_server();
    lab.check();
}

#[test]
fn two_mounts_are_one_filesystem() {
    on_mounts("two_mounts", 2, suite::ALL);
}

#[test]
fn three_mounts_are_one_filesystem() {
    on_mounts("three_mounts", 3, suite::ALL);
}

/// [Q7] The same on a cluster whose leaders are killed, paused until they are fenced, and stopped, one after the other.
#[test]
fn two_mounts_are_one_filesystem_while_leaders_die() {
    if !can_mount("coherence of a failing cluster") {
        return;
    }
    let mut lab = ClusterLab::on_hosts(3, "1G");
    lab.start_all();
    let mounts = Mounts::new(vec![lab.mount("a"), lab.mount("b")]);
    let suite = std::thread::spawn(move || {
        for (name, check) in suite::ALL {
            let began = Instant::now();
            check(&mounts);
            println!("{name}: {:?}", began.elapsed());
        }
    });
    let mut leaders = 0;
    while !suite.is_finished() {
        let (leader, term) = lab.wait_leader(0);
        match leaders % 3 {
            0 => lab.kill(leader),
            1 => {
                lab.pause(leader);
                lab.wait_fenced(leader);
            }
            _ => lab.stop(leader),
        }
        lab.wait_leader(term);
        lab.start(leader);
        leaders += 1;
        std::thread::sleep(Duration::from_secs(1)); // the suite gets something done between two of them
    }
    println!("{leaders} leaders were succeeded meanwhile");
    suite.join().expect("the suite holds");
    assert!(leaders >= 3, "only {leaders} leaders were succeeded");
    lab.finish();
}

/// A helper process of the suite.
#[test]
#[ignore = "other tests run it"]
fn holder_of_a_lock() {
    suite::locks::be_a_holder();
}

/// [L11] The engine is killed and started again while locks are held and waited for and while files without names are open, on
/// two mounts. Nothing of that is lost, and nobody sees an error.
#[test]
fn l11_locks_and_open_files_survive_the_engine() {
    if !can_mount("l11") {
        return;
    }
    let mut lab = Lab::new("256M");
    lab.serve();
    let (a, b) = (lab.mount("a", None), lab.mount("b", None));
    let rw = |path: PathBuf| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let content = bytes(1, 2_000_000);
    let mut open = Vec::new();
    for (name, by) in [("there", &b), ("here", &a)] {
        fs::write(a.join(name), &content).unwrap();
        open.push(rw(a.join(name)));
        fs::remove_file(by.join(name)).unwrap();
    }
    let (fa, fb) = (rw(a.join("f")), rw(b.join("f")));
    set(&fa, Of::Process, Kind::Write, 0, 10).unwrap();
    set(&fb, Of::Description, Kind::Read, 20, 10).unwrap();
    rustix::fs::flock(&fb, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| suite::posix_lock::wait(&fb, Of::Process, Kind::Write, 5, 1));
        std::thread::sleep(suite::A_WHILE);
        for _ in 0..2 {
            lab.kill_server();
            lab.serve();
            suite::fails(set(&fb, Of::Process, Kind::Read, 0, 1), rustix::io::Errno::AGAIN);
            suite::fails(set(&fa, Of::Process, Kind::Write, 25, 1), rustix::io::Errno::AGAIN);
            let shared = rustix::fs::flock(&fa, rustix::fs::FlockOperation::NonBlockingLockShared);
            assert_eq!(shared, Err(rustix::io::Errno::WOULDBLOCK));
            assert!(!waiter.is_finished());
            for file in &open {
                let mut found = vec![0; content.len()];
                file.read_exact_at(&mut found, 0).unwrap();
                assert!(found == content);
            }
        }
        set(&fa, Of::Process, Kind::Unlock, 0, 0).unwrap();
        waiter.join().unwrap().unwrap();
    });
    // A new engine has logs of its own, so only the difference says something: 488 blocks each.
    let full = used(&b);
    drop(open);
    eventually("nothing of the files is left", || used(&b) + 2 * 480 < full);
    drop((fa, fb));
    lab.unmount(&a);
    lab.unmount(&b);
    lab.stop_server();
    lab.check();
}

/// A gateway is killed with locks and open files without names: the others get all of it.
#[test]
fn a_killed_gateway_leaves_nothing_behind() {
    if !can_mount("killed gateway") {
        return;
    }
    let mut lab = Lab::new("256M");
    lab.serve();
    let (a, b) = (lab.mount("a", None), lab.mount("b", None));
    let rw = |path: PathBuf| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let (fa, fb) = (rw(a.join("f")), rw(b.join("f")));
    set(&fa, Of::Process, Kind::Write, 0, 0).unwrap();
    let before = used(&b);
    fs::write(a.join("big"), bytes(1, 8 << 20)).unwrap();
    let open = File::open(a.join("big")).unwrap();
    File::open(&a).unwrap().sync_all().unwrap();
    fs::remove_file(b.join("big")).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| suite::posix_lock::wait(&fb, Of::Process, Kind::Write, 0, 0));
        std::thread::sleep(suite::A_WHILE);
        assert!(!waiter.is_finished());
        lab.kill_mount(&a);
        waiter.join().unwrap().unwrap();
    });
    drop((fa, open, fb));
    // A new gateway looks for what nobody deleted.
    let c = lab.mount("c", None);
    eventually("the space comes back", || used(&c) < before + METADATA);
    lab.unmount(&b);
    lab.unmount(&c);
    lab.stop_server();
    lab.check();
}

/// A gateway that has not heard of the engine for longer than its lease answers nothing from its caches, nor does its
/// kernel: another may have changed it all.
#[test]
fn a_gateway_that_is_cut_off_does_not_answer_from_its_caches() {
    if !can_mount("lease") {
        return;
    }
    let mut lab = Lab::new("64M");
    lab.serve();
    let a = lab.mount("a", None);
    fs::write(a.join("f"), "content").unwrap();
    fs::metadata(a.join("f")).unwrap();
    let engine = rustix::process::Pid::from_raw(lab.server_pid() as i32).unwrap();
    rustix::process::kill_process(engine, rustix::process::Signal::STOP).unwrap();
    // The lease is 9 seconds.
    std::thread::sleep(Duration::from_secs(11));
    let (path, asked) = (a.join("f"), Instant::now());
    let looker = std::thread::spawn(move || fs::metadata(path).map(|m| m.len()));
    std::thread::sleep(Duration::from_secs(2));
    let answered = looker.is_finished();
    rustix::process::kill_process(engine, rustix::process::Signal::CONT).unwrap();
    assert!(!answered, "an answer without a lease, after {:?}", asked.elapsed());
    assert_eq!(looker.join().unwrap().unwrap(), 7);
    lab.unmount(&a);
    lab.stop_server();
    lab.check();
}

/// 10^5 names, under concurrent change.
#[test]
fn a_directory_of_many_names_is_one_on_two_mounts() {
    let check: Check = suite::directories::a_directory_of_many_names_is_listed_while_it_changes;
    on_mounts("large directory", 2, &[("a directory of many names", check)]);
}
