//! Directories of many names: listed in the order in which the names were made, each once, whatever happens meanwhile, and
//! with flat memory. And what is left by gateways that died with open files that had no name.

mod common;

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use common::files::{random, rw};
use common::{Lab, can_mount, wait_until};
use rustix::fs::{CWD, FileType, Mode, OFlags, lstat, mknodat};

/// How much more a gateway may have after ten times as many names: its cache's bound and half as much, since it counts what it
/// keeps and not what the allocator keeps.
const GATEWAY_GROWS_MIB: u64 = 12;
/// The same of an engine: memory for its block cache (16 MiB) that it had not used yet, and what it merges.
const ENGINE_GROWS_MIB: u64 = 48;

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

/// Goes through the directory with the attributes of each file, as `ls -l`; answers how many there are, in order.
fn list(dir: &Path) -> u64 {
    let mut count = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(number(&entry), count, "the order in which they were made");
        assert_eq!(lstat(entry.path()).unwrap().st_size, 0);
        count += 1;
    }
    count
}

/// What a gateway (of small bounds) and an engine have in memory after a directory of ten times as many names is not what
/// they would have if anything of it grew with the names: those of 10^5 take 50 MiB and more in the gateway's cache alone.
/// The same by hand at any size: `vellum bench directory --entries 10000000`.
#[test]
fn many_names_take_no_more_memory() {
    if !can_mount("many names") {
        return;
    }
    let mut lab = Lab::new("1G");
    lab.serve_with(&["--cache", "16M"]);
    let m = lab.mount("m", None);
    for (dir, names) in [("few", 10_000), ("many", 100_000)] {
        fs::create_dir(m.join(dir)).unwrap();
        (0..names).for_each(|i| make(&m.join(dir), i));
    }
    lab.unmount(&m);
    lab.stop_server();
    lab.serve_with(&["--cache", "16M"]);
    let m = lab.mount_with("again", None, &["--item-cache", "4M", "--kernel-inodes", "5000"]);
    let pids = [lab.mount_pid(&m), lab.server_pid()];
    assert_eq!(list(&m.join("few")), 10_000);
    let few = pids.map(memory_mib);
    assert_eq!(list(&m.join("many")), 100_000);
    assert_eq!(list(&m.join("many")), 100_000);
    let many = pids.map(memory_mib);
    println!("MiB of gateway and engine after 10^4 names {few:?}, after 10^5 {many:?}");
    assert!(many[0] < few[0] + GATEWAY_GROWS_MIB, "the gateway grew from {} to {} MiB", few[0], many[0]);
    assert!(many[1] < few[1] + ENGINE_GROWS_MIB, "the engine grew from {} to {} MiB", few[1], many[1]);
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

/// A gateway with the engine inside is killed while files without a name are open: who mounts next frees their space, and
/// nothing of them is left on the device.
#[test]
fn orphans_of_a_dead_engine_are_cleaned_up() {
    if !can_mount("orphans of an engine") {
        return;
    }
    let mut lab = Lab::new("256M");
    let endpoint = format!("file:{}", lab.image_str());
    let m = lab.mount("m", Some(&endpoint));
    let synced = |m: &Path| File::open(m).unwrap().sync_all().unwrap();
    let free = |m: &Path| {
        synced(m);
        rustix::fs::statvfs(m).unwrap().f_bfree
    };
    let before = free(&m);
    let nameless = OFlags::TMPFILE | OFlags::RDWR;
    let unlinked = rw(&m.join("unlinked"));
    let open = [unlinked, File::from(rustix::fs::open(&m, nameless, Mode::from_raw_mode(0o600)).unwrap())];
    for (i, f) in open.iter().enumerate() {
        std::os::unix::fs::FileExt::write_all_at(f, &random(i as u64, 16 << 20), 0).unwrap();
        f.sync_all().unwrap();
    }
    fs::remove_file(m.join("unlinked")).unwrap();
    assert!(free(&m) + 8000 < before, "the files take space as long as they are open");
    lab.kill_mount(&m);
    drop(open);
    let next = lab.mount("next", Some(&endpoint));
    // A new term has chunks for its own log and seals.
    wait_until("the space comes back", Duration::from_secs(120), || free(&next) + 2000 > before);
    assert_eq!(fs::read_dir(&next).unwrap().count(), 0);
    lab.unmount(&next);
    lab.check();
}
