//! A device grows and rots while it is served: what the operator does, and what the mount sees of it.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Lab, can_mount, vellum, vellum_fails, vellum_ok};
use serde_json::Value;

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&vellum_ok(args)).expect("JSON")
}

fn resize(image: &Path, mib: u64) {
    OpenOptions::new().write(true).open(image).unwrap().set_len(mib << 20).unwrap();
}

/// Content that no other place of the device has.
fn content(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(u32::from(seed)) as u8 ^ seed).collect()
}

#[test]
fn a_device_grows_under_a_mount() {
    if !can_mount("a_device_grows_under_a_mount") {
        return;
    }
    let mut lab = Lab::new("96M");
    lab.serve();
    let mount = lab.mount("m", None);
    fs::write(mount.join("before"), content(8 << 20, 1)).unwrap();
    let total = |at: &str| json(&["df", at, "--json"])["total_bytes"].as_u64().unwrap();
    let at = mount.display().to_string();
    assert_eq!(total(&at), 96 << 20);
    assert!(vellum_ok(&["grow", &at]).contains("nothing to gain"));

    resize(&lab.image(), 400);
    let growth = json(&["grow", &lab.endpoint(), "--json"]);
    assert_eq!((growth["before_bytes"].as_u64(), growth["after_bytes"].as_u64()), (Some(96 << 20), Some(400 << 20)));
    assert_eq!(total(&at), 400 << 20);
    // More than there was before, through the mount that was there before.
    let large = content(200 << 20, 2);
    fs::write(mount.join("after"), &large).unwrap();
    File::open(mount.join("after")).unwrap().sync_all().unwrap();
    lab.kill_server();
    lab.serve();
    assert!(fs::read(mount.join("after")).unwrap() == large);
    assert!(fs::read(mount.join("before")).unwrap() == content(8 << 20, 1));
    lab.unmount(&mount);
    lab.stop_server();
    lab.check();

    // When nobody serves it, by its name.
    resize(&lab.image(), 500);
    let text = vellum_ok(&["grow", &lab.image_str()]);
    assert!(text.contains("grown from") && text.contains("500"), "{text}");
    lab.check();
    // What became smaller is refused.
    resize(&lab.image(), 300);
    vellum_fails(&["grow", &lab.image_str()], 4, &["is smaller than its filesystem", "give it back its size"]);
}

#[test]
fn rot_is_found_while_the_device_is_served_and_the_file_is_named() {
    if !can_mount("rot_is_found_while_the_device_is_served_and_the_file_is_named") {
        return;
    }
    let mut lab = Lab::new("256M");
    lab.serve();
    let mount = lab.mount("m", None);
    fs::create_dir(mount.join("letters")).unwrap();
    let old = content(64 << 10, 3);
    for name in ["letters/old", "letters/new"] {
        fs::write(mount.join(name), if name.ends_with("old") { old.clone() } else { content(64 << 10, 4) }).unwrap();
    }
    File::open(mount.join("letters")).unwrap().sync_all().unwrap();
    let at = mount.display().to_string();
    let clean = vellum_ok(&["scrub", &at, "--rate", "0"]);
    assert!(clean.contains("0 problems"), "{clean}");

    // A byte of the file, and of the superblock, go bad on the medium.
    let image = File::options().read(true).write(true).open(lab.image()).unwrap();
    let bytes = fs::read(lab.image()).unwrap();
    let places: Vec<usize> =
        bytes.chunks(4096).enumerate().filter(|(_, b)| **b == old[4096..8192]).map(|(i, _)| i).collect();
    assert!(!places.is_empty(), "the block is on the device");
    for place in places.iter().map(|place| place * 4096 + 100).chain([700]) {
        image.write_all_at(&[bytes[place] ^ 0x40], place as u64).unwrap();
    }
    image.sync_all().unwrap();
    let out = vellum(&["scrub", &lab.endpoint()]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(3), "{text}");
    for part in [
        "/letters/old (inode",
        "from byte 4096",
        "restore the file",
        "superblock at block 0",
        "repaired; nothing is lost",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains("letters/new"), "{text}");
    let status = json(&["status", &at, "--json"]);
    assert_eq!(status["store"]["scrub"]["problems"].as_u64(), Some(2), "{status}");
    // The remedy that it names is one.
    fs::remove_file(mount.join("letters/old")).unwrap();
    File::open(mount.join("letters")).unwrap().sync_all().unwrap();
    assert!(vellum_ok(&["scrub", &at, "--rate", "0"]).contains("0 problems"));
    lab.unmount(&mount);
    lab.stop_server();
    lab.check();
}

#[test]
fn check_repairs_what_has_a_copy_and_names_the_rest() {
    let lab = Lab::new("128M");
    let image = File::options().read(true).write(true).open(lab.image()).unwrap();
    image.write_all_at(b"rot", 300).unwrap();
    vellum_fails(&["check", &lab.image_str()], 3, &["a copy"]);
    vellum_ok(&["check", "--repair", &lab.image_str()]);
    lab.check();
    let cluster = lab.dir.path().join("cluster.img").display().to_string();
    vellum_ok(&["mkfs", &cluster, "--size", "128M", "--slot", "0=127.0.0.1:7400"]);
    vellum_fails(&["check", "--repair", &cluster], 1, &["belongs to a cluster", "vellum scrub"]);
    vellum_fails(&["scrub", &lab.endpoint()], 5, &["cannot reach"]);
    vellum_fails(&["mkfs", &cluster, "--force", "--metadata-copies", "3"], 2, &["3"]);
}
