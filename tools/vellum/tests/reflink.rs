//! Copies by reference through a mount: `cp` and copy_file_range(2) of a long file take no space, and each copy is a file of
//! its own, also after SIGKILL of engine and gateway.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use common::{Lab, can_mount};
use rustix::fs::{FallocateFlags, fallocate};
use vellum_base::BlockAddr;
use vellum_base::prng::Prng;
use vellum_format::Superblock;

const LEN: u64 = 64 << 20;
const BLOCK: u64 = 4096;

fn random(seed: u64, len: u64) -> Vec<u8> {
    let mut out = vec![0; len as usize];
    Prng::new(seed).fill(&mut out);
    out
}

fn rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Free bytes once what was freed is free again.
fn free(mount: &Path) -> u64 {
    let dir = File::open(mount).unwrap();
    let of = || {
        rustix::fs::syncfs(&dir).unwrap();
        let stat = rustix::fs::fstatvfs(&dir).unwrap();
        stat.f_bfree * stat.f_frsize
    };
    let mut before = of();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(1100)); // gateways ask once a second
        let now = of();
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Metadata and whole chunks take some space; 64 MiB are much more.
fn about(a: u64, b: u64) -> bool {
    a.abs_diff(b) < 8 << 20
}

#[test]
fn a_long_copy_takes_no_space_and_lives_its_own_life() {
    if !can_mount("reflink") {
        return;
    }
    let mut lab = Lab::new("256M");
    lab.serve();
    let m = lab.mount("m0", None);
    let old = random(1, LEN);
    fs::write(m.join("a"), &old).unwrap();
    rw(&m.join("a")).sync_all().unwrap();
    let before = free(&m);
    let began = Instant::now();
    assert!(Command::new("cp").arg(m.join("a")).arg(m.join("b")).status().unwrap().success());
    let by_cp = began.elapsed();
    let (from, to) = (rw(&m.join("a")), rw(&m.join("c")));
    let (mut at, mut copied, began) = ((0, 0), 0, Instant::now());
    while copied < LEN as usize {
        let n = rustix::fs::copy_file_range(&from, Some(&mut at.0), &to, Some(&mut at.1), LEN as usize - copied);
        copied += n.unwrap();
    }
    println!("64 MiB: cp {by_cp:?}, copy_file_range {:?}", began.elapsed());
    to.sync_all().unwrap();
    let after = free(&m);
    assert!(about(after, before), "{before} bytes were free, and now {after}");
    for name in ["a", "b", "c"] {
        assert!(fs::read(m.join(name)).unwrap() == old, "{name}");
        assert_eq!(fs::metadata(m.join(name)).unwrap().blocks(), LEN / 512, "du counts each file");
    }
    // Each side is changed in its own way.
    let (mut a, mut b) = (old.clone(), old.clone());
    let new = random(2, 1 << 20);
    rw(&m.join("b")).write_all_at(&new, (5 << 20) + 100).unwrap();
    b[(5 << 20) + 100..][..1 << 20].copy_from_slice(&new);
    let keep = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(rw(&m.join("a")), keep, 10 << 20, 3 << 20).unwrap();
    a[10 << 20..13 << 20].fill(0);
    rw(&m.join("a")).set_len(60 << 20).unwrap();
    a.truncate(60 << 20);
    for name in ["a", "b"] {
        rw(&m.join(name)).sync_all().unwrap();
    }
    lab.kill_server();
    lab.kill_mount(&m);
    lab.serve();
    let m = lab.mount("m1", None);
    for (name, expected) in [("a", &a), ("b", &b), ("c", &old)] {
        assert!(fs::read(m.join(name)).unwrap() == *expected, "{name} after SIGKILL");
    }
    fs::remove_file(m.join("a")).unwrap();
    fs::remove_file(m.join("c")).unwrap();
    assert!(fs::read(m.join("b")).unwrap() == b, "the others are gone");
    let left = free(&m);
    assert!(about(left, before), "{before} bytes were free, and now {left}");
    fs::remove_file(m.join("b")).unwrap();
    let all = free(&m);
    assert!(about(all, before + LEN), "{before} bytes were free beside one copy, and now {all}");
    assert_eq!(BLOCK, rustix::fs::statvfs(&m).unwrap().f_frsize);
    lab.unmount(&m);
    lab.stop_server();
    lab.check();
}

/// An image as mkfs of an older vellum left it: `cp` copies, and nothing else is different.
#[test]
fn in_format_version_1_a_copy_takes_its_space() {
    if !can_mount("reflink") {
        return;
    }
    let mut lab = Lab::new("256M");
    let image = rw(&lab.image());
    let mut block = [0; BLOCK as usize];
    image.read_exact_at(&mut block, 0).unwrap();
    let sb = Superblock { format_version: 1, ..Superblock::decode(&block, BlockAddr(0)).unwrap() };
    for at in [BlockAddr(0), sb.copy] {
        image.write_all_at(&sb.encode(at), at.bytes()).unwrap();
    }
    lab.serve();
    let m = lab.mount("m0", None);
    let old = random(1, LEN);
    fs::write(m.join("a"), &old).unwrap();
    rw(&m.join("a")).sync_all().unwrap();
    let before = free(&m);
    assert!(Command::new("cp").arg(m.join("a")).arg(m.join("b")).status().unwrap().success());
    rw(&m.join("b")).sync_all().unwrap();
    let after = free(&m);
    assert!(about(after + LEN, before), "{before} bytes were free, and now {after}");
    lab.kill_server();
    lab.kill_mount(&m);
    lab.serve();
    let m = lab.mount("m1", None);
    fs::remove_file(m.join("a")).unwrap();
    assert!(fs::read(m.join("b")).unwrap() == old);
    lab.unmount(&m);
    lab.stop_server();
    lab.check();
    image.read_exact_at(&mut block, 0).unwrap();
    assert_eq!(Superblock::decode(&block, BlockAddr(0)).unwrap().format_version, 1);
}
