//! Devices, options, mount points and peers that are not what they should be: every one of them ends with the
//! documented exit code and a message that says what to do, and none with a panic.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Lab, VELLUM, can_mount, vellum, vellum_fails, vellum_ok};
use vellum_base::prng::Prng;
use vellum_base::{BLOCK_SIZE, BlockAddr};
use vellum_format::Superblock;
use vellum_format::superblock::FORMAT_VERSION;

const USAGE: i32 = 2;
const NOT_CLEAN: i32 = 3;
const DEVICE: i32 = 4;
const ENDPOINT: i32 = 5;
const MOUNT: i32 = 6;

const SMALL: &str = "64M";

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Prng::new(seed).fill(&mut bytes);
    bytes
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn flip(path: &Path, at: u64) {
    let (file, mut byte) = (open(path), [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

fn superblock(image: &Path) -> Superblock {
    let mut block = [0; BLOCK_SIZE];
    open(image).read_exact_at(&mut block, 0).unwrap();
    Superblock::decode(&block, BlockAddr(0)).unwrap()
}

/// Every command that opens a device refuses this one in the same way.
fn refused_by_all(device: &str, dir: &Path, says: &[&str]) {
    vellum_fails(&["serve", device, "--listen", &format!("unix:{}/refused.sock", dir.display())], DEVICE, says);
    vellum_fails(&["check", device], DEVICE, says);
    vellum_fails(&["df", &format!("file:{device}")], DEVICE, says);
    vellum_fails(&["mount", &format!("file:{device}"), text(dir)], DEVICE, says);
    vellum_fails(&["dump", device, "manifest"], DEVICE, says);
}

#[test]
fn devices_that_cannot_hold_a_filesystem_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let small = at("small");
    vellum_fails(&["mkfs", text(&small), "--size", "1M"], DEVICE, &["too small", "at least"]);
    File::create(&small).unwrap().set_len(1 << 20).unwrap();
    refused_by_all(text(&small), dir.path(), &["small"]);
    let missing = at("missing");
    vellum_fails(&["mkfs", text(&missing)], DEVICE, &["does not exist", "--size"]);
    assert!(!missing.exists(), "a refused mkfs makes nothing");
    refused_by_all(text(&missing), dir.path(), &["No such file", "missing"]);
    let folder = at("folder");
    fs::create_dir(&folder).unwrap();
    vellum_fails(&["mkfs", text(&folder)], DEVICE, &["folder"]);
    vellum_fails(&["mkfs", text(&folder), "--size", SMALL], DEVICE, &["folder"]);
    refused_by_all(text(&folder), dir.path(), &["not a device", "regular file"]);
    let empty = at("empty");
    File::create(&empty).unwrap();
    vellum_fails(&["mkfs", text(&empty)], DEVICE, &["--size"]);
    refused_by_all(text(&empty), dir.path(), &["smaller than one block"]);
    vellum_fails(&["mkfs", "nvme:ffff:01:00.0"], DEVICE, &["cannot look at nvme:ffff:01:00.0"]);
    vellum_fails(&["mkfs", "/no/such/dir/image", "--size", SMALL], DEVICE, &["/no/such/dir/image"]);
}

#[test]
fn other_formats_are_named_and_the_way_on_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let zeros = at("zeros");
    File::create(&zeros).unwrap().set_len(64 << 20).unwrap();
    refused_by_all(text(&zeros), dir.path(), &["no superblock", "mkfs"]);
    let ext4 = at("ext4");
    let mut bytes = random(1, 1 << 20);
    bytes[..1024].fill(0);
    bytes[1080..1082].copy_from_slice(&0xef53u16.to_le_bytes());
    fs::write(&ext4, &bytes).unwrap();
    open(&ext4).set_len(64 << 20).unwrap();
    refused_by_all(text(&ext4), dir.path(), &["no superblock", "mkfs"]);
    let garbage = at("garbage");
    fs::write(&garbage, random(2, 64 << 20)).unwrap();
    refused_by_all(text(&garbage), dir.path(), &["no superblock", "mkfs"]);
}

#[test]
fn an_existing_filesystem_is_not_overwritten_by_mistake() {
    let lab = Lab::new(SMALL);
    let image = lab.image_str();
    let before = superblock(&lab.image());
    vellum_fails(&["mkfs", &image], DEVICE, &["--force", &before.fsid.to_string()]);
    assert_eq!(superblock(&lab.image()), before, "a refused mkfs changes nothing");
    vellum_ok(&["mkfs", &image, "--force"]);
    assert_ne!(superblock(&lab.image()).fsid, before.fsid);
    lab.check();
}

#[test]
fn newer_versions_are_refused_and_not_overwritten() {
    let lab = Lab::new(SMALL);
    let newer = |change: &dyn Fn(&mut Superblock)| {
        let mut sb = superblock(&lab.image());
        change(&mut sb);
        for at in [BlockAddr(0), sb.copy] {
            open(&lab.image()).write_all_at(&sb.encode(at), at.bytes()).unwrap();
        }
    };
    let image = lab.image_str();
    newer(&|sb| sb.format_version = FORMAT_VERSION + 1);
    refused_by_all(&image, lab.dir.path(), &["format version", "newer"]);
    vellum_fails(&["mkfs", &image], DEVICE, &["--force"]);
    newer(&|sb| {
        sb.format_version = FORMAT_VERSION;
        sb.features.incompatible = 1 << 9;
    });
    refused_by_all(&image, lab.dir.path(), &["features", "newer"]);
    vellum_fails(&["mkfs", &image], DEVICE, &["--force"]);
    newer(&|sb| {
        sb.features.incompatible = 0;
        sb.features.read_only = 1 << 9;
    });
    vellum_fails(&["df", &format!("file:{image}")], DEVICE, &["features", "writing", "newer"]);
    lab.check();
    newer(&|sb| sb.features.read_only = 0);
    vellum_ok(&["df", &format!("file:{image}")]);
}

#[test]
fn a_truncated_image_is_refused_and_not_overwritten() {
    for bytes in [(64 << 20) - 4096, 32 << 20, 70_000] {
        let lab = Lab::new(SMALL);
        let image = lab.image_str();
        open(&lab.image()).set_len(bytes).unwrap();
        refused_by_all(&image, lab.dir.path(), &["smaller than its filesystem"]);
        let told = vellum_fails(&["check", &image], DEVICE, &[]);
        assert!(!told.contains("mkfs"), "mkfs would destroy it: {told}");
        vellum_fails(&["mkfs", &image, "--size", SMALL], DEVICE, &["--force"]);
        // Whatever was refused, the image is whole again with its length.
        open(&lab.image()).set_len(64 << 20).unwrap();
        if bytes == (64 << 20) - 4096 {
            vellum_ok(&["df", &format!("file:{image}")]);
        }
    }
}

#[test]
fn one_lost_superblock_is_repaired_and_two_are_an_error() {
    let mut lab = Lab::new(SMALL);
    let copy = superblock(&lab.image()).copy;
    for at in [BlockAddr(0), copy] {
        flip(&lab.image(), at.bytes() + 100);
        vellum_fails(&["check", &lab.image_str()], NOT_CLEAN, &["Superblock", "checksum"]);
        lab.serve();
        lab.stop_server();
        lab.check();
        let log = fs::read_to_string(lab.log()).unwrap();
        assert!(log.contains("Superblock"), "the repair is not said: {log}");
        fs::write(lab.log(), "").unwrap();
    }
    flip(&lab.image(), 100);
    flip(&lab.image(), copy.bytes() + 100);
    let file = format!("file:{}", lab.image_str());
    vellum_fails(&["df", &file], DEVICE, &["Superblock", "checksum"]);
    vellum_fails(&["check", &lab.image_str()], NOT_CLEAN, &["Superblock", "checksum"]);
    vellum_fails(&["mkfs", &lab.image_str()], DEVICE, &["--force"]);
}

#[test]
fn a_device_has_one_engine() {
    let mut lab = Lab::new(SMALL);
    lab.serve();
    let image = lab.image_str();
    refused_by_all(&image, lab.dir.path(), &["in use"]);
    vellum_fails(&["mkfs", &image], DEVICE, &["in use"]);
    vellum_fails(&["mkfs", &image, "--force"], DEVICE, &["in use"]);
    vellum_ok(&["df", &lab.endpoint()]);
    // A second engine may not take the first one's socket either.
    let other = lab.dir.path().join("other.img");
    vellum_ok(&["mkfs", text(&other), "--size", SMALL]);
    vellum_fails(&["serve", text(&other), "--listen", &lab.endpoint()], ENDPOINT, &["engine.sock"]);
    vellum_ok(&["df", &lab.endpoint()]);
    lab.stop_server();
    lab.check();
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    let lab = Lab::new(SMALL);
    let (image, dir) = (lab.image_str(), text(lab.dir.path()).to_owned());
    let file = format!("file:{image}");
    let wrong: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["frobnicate"], "frobnicate"),
        (&["mkfs"], "DEVICE"),
        (&["mkfs", &image, "--size", "lots"], "lots"),
        (&["mkfs", &image, "--size", "-1"], "-1"),
        (&["serve", &image, "--cores", "3-1"], "3-1"),
        (&["serve", &image, "--cores", "x"], "0,2-3"),
        (&["serve", &image, "--cores", ""], "0,2-3"),
        (&["serve", &image, "--cores", "1000"], "1000"),
        (&["serve", &image, "--poll", "sometimes"], "adaptive"),
        (&["serve", &image, "--cache", "much"], "much"),
        (&["serve", &image, "--listen", "http://x"], "unix:PATH"),
        (&["serve", &image, "--listen", "tcp:0.0.0.0:0"], "loopback"),
        (&["mount", &image, &dir], "unix:PATH"),
        (&["mount", "tcp:nowhere", &dir], "tcp:"),
        (&["walk", "meta-seq", "x", &file], "x"),
        (&["walk", "size", "0", &file], "meta-seq"),
        (&["walk", "meta-seq", "0", "x", &file], "sequence"),
        (&["ino-path", "x", &file], "x"),
        (&["check", &image, "--data=maybe"], "maybe"),
        (&["dump", &image, "everything"], "superblock"),
        (&["bench", "everything"], "mount"),
        (&["completion", "abacus"], "bash"),
    ];
    for (args, says) in wrong {
        vellum_fails(args, USAGE, &[says]);
    }
    lab.check();
}

#[test]
fn endpoints_that_nobody_serves_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = format!("unix:{}/nobody.sock", dir.path().display());
    std::thread::scope(|scope| {
        scope.spawn(|| vellum_fails(&["df", &nobody], ENDPOINT, &["nobody.sock"]));
        scope.spawn(|| vellum_fails(&["mount", &nobody, text(dir.path())], ENDPOINT, &["nobody.sock"]));
        scope.spawn(|| vellum_fails(&["df", "tcp:127.0.0.1:1"], ENDPOINT, &["127.0.0.1:1"]));
        scope.spawn(|| vellum_fails(&["df", text(dir.path())], ENDPOINT, &["not on a Vellum mount"]));
        scope.spawn(|| vellum_fails(&["walk", "meta-seq", "0", "/"], ENDPOINT, &["not on a Vellum mount"]));
        scope.spawn(|| vellum_fails(&["stat", "/etc/passwd"], ENDPOINT, &["not on a Vellum mount"]));
    });
    let lab = Lab::new(SMALL);
    let nowhere = "unix:/no/such/dir/engine.sock";
    vellum_fails(&["serve", &lab.image_str(), "--listen", nowhere], ENDPOINT, &["/no/such/dir"]);
    lab.check();
}

#[test]
fn mount_points_that_cannot_be_used_are_named() {
    if !can_mount("mount points") {
        return;
    }
    let lab = Lab::new(SMALL);
    let file = format!("file:{}", lab.image_str());
    vellum_fails(&["mount", &file, "/no/such/dir"], MOUNT, &["/no/such/dir"]);
    let plain = lab.dir.path().join("plain");
    fs::write(&plain, "x").unwrap();
    vellum_fails(&["mount", &file, text(&plain)], MOUNT, &["plain"]);
    vellum_fails(&["mount", "--daemon", &file, text(&plain)], MOUNT, &[]);
    lab.check();
}

#[test]
fn a_device_without_rights_is_refused() {
    if !can_mount("without rights") {
        return;
    }
    let lab = Lab::new(SMALL);
    let out = Command::new(VELLUM).args(["df", &embedded(&lab)]).uid(65_534).gid(65_534).output();
    let Ok(out) = out else { return println!("SKIPPED: the binary is not reachable for others") };
    let told = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(DEVICE), "{told}");
    assert!(told.contains("Permission denied") && told.contains("vellum.img"), "{told}");
}

/// Data on a fresh filesystem: some hundred small files, and one with blocks of its own.
fn filled(endpoint: impl Fn(&Lab) -> String) -> (Lab, PathBuf) {
    let mut lab = Lab::new(SMALL);
    let endpoint = endpoint(&lab);
    let mount = lab.mount("m", Some(&endpoint));
    fs::create_dir(mount.join("d")).unwrap();
    for i in 0..150u64 {
        fs::write(mount.join(format!("d/f{i}")), random(i, 50 + (i as usize * 131) % 9000)).unwrap();
    }
    fs::write(mount.join("victim"), random(9000, 16 * BLOCK_SIZE)).unwrap();
    File::open(&mount).unwrap().sync_all().unwrap();
    (lab, mount)
}

fn embedded(lab: &Lab) -> String {
    format!("file:{}", lab.image_str())
}

#[test]
fn a_damaged_block_of_data_is_found_named_and_never_returned() {
    if !can_mount("damaged data") {
        return;
    }
    let (mut lab, mount) = filled(embedded);
    use std::os::unix::fs::MetadataExt;
    let ino = fs::metadata(mount.join("victim")).unwrap().ino();
    lab.unmount(&mount);
    lab.check();
    let content = random(9000, 16 * BLOCK_SIZE);
    let bytes = fs::read(lab.image()).unwrap();
    let block = bytes.chunks(BLOCK_SIZE).position(|b| b == &content[5 * BLOCK_SIZE..6 * BLOCK_SIZE]).unwrap() as u64;
    flip(&lab.image(), block * BLOCK_SIZE as u64 + 77);
    let says = [format!("block {block}: checksum"), "1 problems".to_owned(), "not clean".to_owned()];
    vellum_fails(&["check", &lab.image_str()], NOT_CLEAN, &says.each_ref().map(String::as_str));
    vellum_ok(&["check", &lab.image_str(), "--data=false"]);
    let out = vellum(&["check", "--json", &lab.image_str()]);
    assert_eq!(out.status.code(), Some(NOT_CLEAN));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&json["clean"], &json["problem_count"]), (&false.into(), &1.into()));
    let problem = json["problems"][0].as_str().unwrap();
    assert!(problem.contains(&format!("{ino}")) || problem.contains(&format!("{ino:x}")), "no inode in {problem:?}");

    let mount = lab.mount("again", Some(&embedded(&lab)));
    let error = fs::read(mount.join("victim")).expect_err("damaged data is never returned");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let victim = File::open(mount.join("victim")).unwrap();
    let mut intact = vec![0; 4 * BLOCK_SIZE];
    victim.read_exact_at(&mut intact, 10 * BLOCK_SIZE as u64).unwrap();
    assert!(intact == content[10 * BLOCK_SIZE..14 * BLOCK_SIZE]);
    drop(victim);
    for i in 0..150u64 {
        let expected = random(i, 50 + (i as usize * 131) % 9000);
        assert!(fs::read(mount.join(format!("d/f{i}"))).unwrap() == expected, "f{i}");
    }
    // Written anew it is whole.
    fs::write(mount.join("victim"), &content).unwrap();
    lab.unmount(&mount);
    lab.check();
}

/// Flips one byte in every `nth` block that is not all zeros: either the check says so, or nothing uses the block and
/// it finds exactly what it found before.
fn sweep(lab: &Lab, most: usize) {
    let image = lab.image();
    let check = || {
        let out = vellum(&["check", "--json", text(&image)]);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!stderr.contains("panicked"), "{stderr}");
        (out.status, String::from_utf8_lossy(&out.stdout).into_owned(), stderr)
    };
    let (status, clean, told) = check();
    assert!(status.success(), "{told}");
    // The last epoch may be one of a kill: nobody was told of it, and nothing was in it that a client asked for.
    let epochs = serde_json::from_str::<serde_json::Value>(&clean).unwrap()["replayed_epochs"].as_u64().unwrap();
    let count = |epochs: u64| format!("\"replayed_epochs\":{epochs}");
    let without_last_epoch = clean.replace(&count(epochs), &count(epochs.saturating_sub(1)));
    let bytes = fs::read(&image).unwrap();
    let used: Vec<u64> = bytes
        .chunks(BLOCK_SIZE)
        .enumerate()
        .filter(|(_, b)| b.iter().any(|byte| *byte != 0))
        .map(|(i, _)| i as u64)
        .collect();
    let mut prng = Prng::new(77);
    let (mut found, mut unused) = (0, 0);
    for block in used.iter().step_by(used.len().div_ceil(most)) {
        let at = block * BLOCK_SIZE as u64 + prng.below(BLOCK_SIZE as u64);
        flip(&image, at);
        let (status, report, told) = check();
        match status.code() {
            Some(0) => {
                let same = report == clean || report == without_last_epoch;
                assert!(
                    same,
                    "byte {at} of block {block} changed what is found, and check says clean: {report} {clean}"
                );
                unused += 1;
            }
            Some(NOT_CLEAN) => {
                assert!(told.len() > 20 || report.contains("problems"), "block {block}: {told:?}");
                found += 1;
            }
            other => panic!("block {block}: {other:?} {told}"),
        }
        flip(&image, at);
    }
    println!("{} blocks: {found} found, {unused} unused", used.len());
    assert!(found > most / 4, "only {found} of {most} were found");
    assert_eq!(check().1, clean);
}

#[test]
fn any_damaged_block_of_a_stopped_filesystem_is_found_or_unused() {
    if !can_mount("sweep of a stopped filesystem") {
        return;
    }
    let (mut lab, mount) = filled(embedded);
    lab.unmount(&mount);
    sweep(&lab, 60);
}

#[test]
fn any_damaged_block_of_a_killed_filesystem_is_found_or_unused() {
    if !can_mount("sweep of a killed filesystem") {
        return;
    }
    let (mut lab, mount) = filled(embedded);
    // The very last seals are known to be durable only once something written later says so (observed within a second);
    // until then damage there looks like a write that the crash cut off, and recovery ends before it without a word.
    std::thread::sleep(Duration::from_secs(1));
    lab.kill_mount(&mount);
    sweep(&lab, 60);
}

/// A frame's first bytes: legal but for the lengths.
fn header(kind: u8, control: u32, payload: u32) -> Vec<u8> {
    let mut bytes = vec![0; 56];
    bytes[..4].copy_from_slice(b"vlm\x01");
    bytes[4] = 1;
    bytes[5] = kind;
    bytes[48..52].copy_from_slice(&control.to_le_bytes());
    bytes[52..].copy_from_slice(&payload.to_le_bytes());
    bytes
}

#[test]
fn peers_that_speak_nonsense_do_not_disturb_the_others() {
    if !can_mount("nonsense peers") {
        return;
    }
    let mut lab = Lab::new("128M");
    lab.serve();
    let mount = lab.mount("m", None);
    let socket = lab.dir.path().join("engine.sock");
    let connect = || {
        let peer = UnixStream::connect(&socket).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        peer
    };
    let silent: Vec<UnixStream> = (0..20).map(|_| connect()).collect();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            for i in 0..200u64 {
                let path = mount.join(format!("f{i}"));
                fs::write(&path, random(i, 3000)).unwrap();
                assert!(fs::read(&path).unwrap() == random(i, 3000));
            }
        });
        // Refused at once, before anything is allocated for it.
        for (i, nonsense) in [
            random(1, 4096),
            vec![0xff; 4096],
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(4),
            header(3, u32::MAX, 0),
            header(3, 257, 0),
            header(3, 0, u32::MAX),
            header(1, u32::MAX, u32::MAX),
            header(1, 16, 0),
            header(9, 0, 0),
            [header(3, 200, 0), random(2, 200)].concat(),
        ]
        .into_iter()
        .enumerate()
        {
            let mut peer = connect();
            let _ = peer.write_all(&nonsense);
            let mut rest = Vec::new();
            match peer.read_to_end(&mut rest) {
                Ok(n) => assert!(n < 4096, "{n} bytes answer nonsense {i}"),
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "nonsense {i}: {e}"),
            }
        }
        // In mid-frame, and gone.
        for cut in [1, 20, 55, 56, 100] {
            let mut frame = header(3, 200, 0);
            frame.resize(256, 0);
            connect().write_all(&frame[..cut]).unwrap();
        }
        worker.join().unwrap();
    });
    drop(silent);
    vellum_ok(&["status", "--json", &lab.endpoint()]);
    lab.unmount(&mount);
    lab.stop_server();
    lab.check();
}
