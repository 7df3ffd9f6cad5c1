//! Directories of many names: listed in the order in which the names were made, each once, whatever happens meanwhile, and
//! with flat memory. And what is left by gateways that died with open files that had no name.

mod common;

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::files::{random, rw};
use common::{Lab, can_mount, wait_until};
use rustix::fs::{CWD, FileType, Mode, mknodat};

fn name(i: u64) -> String {
    format!("name-{i:08}")
}

fn number(entry: &fs::DirEntry) -> u64 {
    let name = entry.file_name();
    std::str::from_utf8(&name.as_bytes()["name-".len()..]).unwrap().parse().unwrap()
}

fn make(dir: &Path, i: u64) {
    mknodat(CWD, dir.join(name(i)), FileType::RegularFile, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// Resident memory of a process in MiB, without the file pages that it maps.
fn memory_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn names_are_listed_in_the_order_of_their_making() {
    if !can_mount("order of names") {
        return;
    }
    let mut lab = Lab::new("256M");
    lab.serve();
    let m = lab.mount("m", None);
    let other = lab.mount("other", None);
    let dir = m.join("d");
    fs::create_dir(&dir).unwrap();
    (0..4000).for_each(|i| make(&dir, i));
    // One reader is in the middle while names go, come, and change.
    let mut reader = fs::read_dir(&dir).unwrap();
    let first: Vec<u64> = reader.by_ref().take(1500).map(|e| number(&e.unwrap())).collect();
    assert!(first.iter().copied().eq(0..1500));
    (0..4000).step_by(3).for_each(|i| fs::remove_file(other.join("d").join(name(i))).unwrap());
    fs::rename(dir.join(name(1)), dir.join(name(9000))).unwrap();
    (5000..5500).for_each(|i| make(&other.join("d"), i));
    let rest: Vec<u64> = reader.map(|e| number(&e.unwrap())).collect();
    assert!(
        rest.is_sorted_by_key(|i| if *i == 9000 { 4500 } else { *i }),
        "creation order, also in the middle of changes"
    );
    assert!((1500..4000).filter(|i| i % 3 != 0).all(|i| rest.contains(&i)), "a name that was there all the time");
    let expected: Vec<u64> = (2..4000).filter(|i| i % 3 != 0).chain([9000]).chain(5000..5500).collect();
    for at in [&m, &other] {
        let listed: Vec<u64> = fs::read_dir(at.join("d")).unwrap().map(|e| number(&e.unwrap())).collect();
        assert_eq!(listed, expected);
    }
    lab.unmount(&other);
    lab.unmount(&m);
    lab.stop_server();
    lab.check();
}

/// `VELLUM_ENTRIES=1000000 cargo nextest run -p vellum --run-ignored all many_names`
#[test]
#[ignore = "takes minutes; shows flat memory, asserts order"]
fn many_names_take_no_more_memory() {
    if !can_mount("many names") {
        return;
    }
    let n: u64 = std::env::var("VELLUM_ENTRIES").ok().map_or(100_000, |n| n.parse().expect("a number"));
    let mut lab = Lab::new(&format!("{}M", 512 + n / 500));
    lab.serve();
    let m = lab.mount("m", None);
    let dir = m.join("d");
    fs::create_dir(&dir).unwrap();
    let start = Instant::now();
    (0..n).for_each(|i| make(&dir, i));
    let made = start.elapsed();
    lab.unmount(&m);
    let m = lab.mount("again", None);
    let (pid, start) = (lab.mount_pid(&m), Instant::now());
    let mut memory = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(m.join("d")).unwrap() {
        assert_eq!(number(&entry.unwrap()), count);
        count += 1;
        if count % (n / 10) == 0 {
            memory.push(memory_mib(pid));
        }
    }
    assert_eq!(count, n);
    println!("{n} names: made in {made:?}, listed in {:?}, gateway MiB at each tenth {memory:?}", start.elapsed());
    // The item cache holds what it was told, at about 200 bytes a name, up to its bound (128 MiB as it counts).
    assert!(memory.iter().all(|mib| *mib < 320), "memory grows with the listing: {memory:?}");
    lab.unmount(&m);
    lab.stop_server();
    lab.check();
}

/// A gateway is killed with open files that have no name (any more): the next one frees their space.
#[test]
fn orphans_of_a_dead_gateway_are_cleaned_up() {
    if !can_mount("orphans") {
        return;
    }
    let mut lab = Lab::new("256M");
    lab.serve();
    let m = lab.mount("m", None);
    let lives = lab.mount("lives", None);
    let free = || {
        File::open(&lives).unwrap().sync_all().unwrap();
        rustix::fs::statvfs(&lives).unwrap().f_bfree
    };
    let before = free();
    let open: Vec<File> = (0..8u64)
        .map(|i| {
            let path = m.join(name(i));
            let f = rw(&path);
            std::os::unix::fs::FileExt::write_all_at(&f, &random(i, 4 << 20), 0).unwrap();
            f.sync_all().unwrap();
            fs::remove_file(&path).unwrap();
            f
        })
        .collect();
    File::open(&m).unwrap().sync_all().unwrap();
    assert!(free() + 8000 < before, "the files take space as long as they are open");
    lab.kill_mount(&m);
    drop(open);
    let next = lab.mount("next", None);
    wait_until("the space comes back", Duration::from_secs(120), || free() + 1000 > before);
    lab.unmount(&next);
    lab.unmount(&lives);
    lab.stop_server();
    lab.check();
}
