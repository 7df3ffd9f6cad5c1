//! What an archiving agent lives on: walks of the indexes, paths of inodes, status; and two mounts of one engine.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use common::{Lab, VELLUM, can_mount, vellum_fails, vellum_ok};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} is no number in {value}"))
}

/// (sequence, inode) of each line.
fn walk(index: &str, from: u64, rest: &[&str]) -> Vec<(u64, u64)> {
    let from = from.to_string();
    let out = vellum_ok(&[&["walk", index, "--json", &from], rest].concat());
    out.lines().map(|line| (number(&parse(line), "seq"), number(&parse(line), "ino"))).collect()
}

fn ino(path: impl AsRef<Path>) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// The kernel passes syncfs(2) on to no FUSE filesystem but virtiofs; fsync of a directory syncs all.
fn sync(mount: &Path) {
    File::open(mount).unwrap().sync_all().unwrap();
}

fn stat(path: &Path) -> Value {
    parse(&vellum_ok(&["stat", "--json", path.to_str().unwrap()]))
}

fn inos(entries: &[(u64, u64)]) -> BTreeSet<u64> {
    entries.iter().map(|(_, ino)| *ino).collect()
}

#[test]
fn walks_show_exactly_what_changed() {
    if !can_mount("walks") {
        return;
    }
    let mut lab = Lab::new("256M");
    lab.serve();
    let m = lab.mount("m", None);
    let on = lab.endpoint();
    let at = |i: u32| m.join(format!("d{}/f{i}", i % 3));
    (0..3).for_each(|d| fs::create_dir(m.join(format!("d{d}"))).unwrap());
    (0..300).for_each(|i| fs::write(at(i), format!("content {i}")).unwrap());
    sync(&m);
    let all = walk("meta-seq", 0, &[&on]);
    assert!(all.is_sorted(), "ordered");
    assert_eq!(all.len(), 1 + 3 + 300);
    assert_eq!(inos(&all).len(), all.len(), "an inode is in the index once");
    let expected: BTreeSet<u64> =
        (0..300).map(|i| ino(at(i))).chain((0..3).map(|d| ino(m.join(format!("d{d}"))))).collect();
    assert!(inos(&all).is_superset(&expected));
    // Asked through a path of the mount it is the same.
    assert_eq!(walk("meta-seq", 0, &[m.to_str().unwrap()]), all);
    let files: BTreeSet<u64> = (0..300).map(|i| ino(at(i))).collect();
    assert!(inos(&walk("data-seq", 0, &[&on])).is_superset(&files));
    // Resumed anywhere, and bounded: the same list.
    let middle = all[all.len() / 2].0;
    let (before, after): (Vec<_>, Vec<_>) = all.iter().copied().partition(|(seq, _)| *seq < middle);
    assert_eq!(walk("meta-seq", middle, &[&on]), after);
    assert_eq!(walk("meta-seq", 0, &[&(middle - 1).to_string(), &on]), before);

    let newest = all.last().unwrap().0;
    let touched = [7, 77, 133, 200, 299];
    for i in touched {
        OpenOptions::new().append(true).open(at(i)).unwrap().write_all(b", changed").unwrap();
    }
    fs::set_permissions(at(150), fs::Permissions::from_mode(0o600)).unwrap();
    sync(&m);
    let data: BTreeSet<u64> = touched.iter().map(|i| ino(at(*i))).collect();
    let found = walk("data-seq", newest + 1, &[&on]);
    assert_eq!((inos(&found), found.len()), (data.clone(), 5));
    let meta: BTreeSet<u64> = data.iter().copied().chain([ino(at(150))]).collect();
    let found = walk("meta-seq", newest + 1, &[&on]);
    assert_eq!((inos(&found), found.len()), (meta, 6));
    assert!(found.is_sorted() && found.iter().all(|(seq, _)| *seq > newest));
    let whole = walk("meta-seq", 0, &[&on]);
    assert_eq!(whole.len(), all.len(), "a changed inode left its old place");
    // What is deleted is in no index.
    let gone = ino(at(5));
    fs::remove_file(at(5)).unwrap();
    sync(&m);
    assert!(!inos(&walk("meta-seq", 0, &[&on])).contains(&gone));
    assert!(!inos(&walk("data-seq", 0, &[&on])).contains(&gone));

    // The indexes outlive the engine, and are answered without a mount.
    let last = walk("meta-seq", 0, &[&on]);
    lab.unmount(&m);
    lab.stop_server();
    let file = format!("file:{}", lab.image_str());
    assert_eq!(walk("meta-seq", 0, &[&file]), last);
    lab.check();
}

#[test]
fn a_followed_walk_shows_changes_as_they_come() {
    if !can_mount("follow") {
        return;
    }
    let mut lab = Lab::new("128M");
    lab.serve();
    let m = lab.mount("m", None);
    fs::write(m.join("old"), "old").unwrap();
    sync(&m);
    let mut follower = Command::new(VELLUM)
        .args(["walk", "data-seq", "0", &lab.endpoint(), "--follow", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let (sender, receiver) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in lines {
            let entry = parse(&line.unwrap());
            if sender.send((number(&entry, "seq"), number(&entry, "ino"))).is_err() {
                return;
            }
        }
    });
    let mut last = 0;
    let mut until = |wanted: u64| {
        loop {
            let (seq, ino) = receiver.recv_timeout(PATIENCE).expect("the follower shows it");
            assert!(seq >= last, "{seq} after {last}");
            last = seq;
            if ino == wanted {
                return;
            }
        }
    };
    until(ino(m.join("old")));
    for i in 0..5 {
        let path = m.join(format!("new{i}"));
        fs::write(&path, "new").unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        until(ino(&path));
    }
    OpenOptions::new().append(true).open(m.join("old")).unwrap().write_all(b"er").unwrap();
    sync(&m);
    until(ino(m.join("old")));
    follower.kill().unwrap();
    follower.wait().unwrap();
    drop(receiver);
    reader.join().unwrap();
    lab.unmount(&m);
    lab.stop_server();
    lab.check();
}

#[test]
fn inodes_paths_space_and_status_are_told() {
    if !can_mount("queries") {
        return;
    }
    let mut lab = Lab::new("128M");
    lab.serve();
    let m = lab.mount("m", None);
    let on = lab.endpoint();
    fs::create_dir_all(m.join("a/b")).unwrap();
    fs::create_dir(m.join("c")).unwrap();
    fs::write(m.join("a/b/one"), vec![5; 50_000]).unwrap();
    fs::hard_link(m.join("a/b/one"), m.join("c/two")).unwrap();
    fs::write(m.join("small"), "small").unwrap();
    std::os::unix::fs::symlink("small", m.join("link")).unwrap();
    sync(&m);
    let file = ino(m.join("a/b/one"));
    let paths = |ino: u64, on: &str| -> BTreeSet<String> {
        vellum_ok(&["ino-path", &ino.to_string(), on]).lines().map(Into::into).collect()
    };
    let both: BTreeSet<String> = ["/a/b/one".into(), "/c/two".into()].into();
    assert_eq!(paths(file, &on), both);
    assert_eq!(paths(file, m.to_str().unwrap()), both);
    let json = vellum_ok(&["ino-path", "--json", &file.to_string(), &on]);
    let json: BTreeSet<String> = json.lines().map(|l| parse(l)["path"].as_str().unwrap().into()).collect();
    assert_eq!(json, both);
    assert_eq!(paths(ino(m.join("a/b")), &on), ["/a/b".into()].into());
    assert_eq!(paths(ino(&m), &on), ["/".into()].into());
    vellum_fails(&["ino-path", "987654321", &on], 1, &["987654321"]);
    fs::rename(m.join("a/b"), m.join("c/moved")).unwrap();
    fs::remove_file(m.join("c/two")).unwrap();
    sync(&m);
    assert_eq!(paths(file, &on), ["/c/moved/one".into()].into());

    let told = stat(&m.join("c/moved/one"));
    assert_eq!((number(&told, "ino"), number(&told, "size"), number(&told, "nlink")), (file, 50_000, 1));
    assert_eq!((number(&told, "online_blocks"), number(&told, "offline_blocks")), (13, 0));
    assert_eq!((told["kind"].as_str(), told["inline"].as_bool()), (Some("regular"), Some(false)));
    assert_eq!(told["mode"].as_str(), Some("644"));
    let (meta, data) = (number(&told, "meta_seq"), number(&told, "data_seq"));
    assert!(data > 0 && meta >= data && number(&told, "committed_seq") >= meta, "{told}");
    assert!(number(&told, "data_version") > 0);
    let mtime = fs::metadata(m.join("c/moved/one")).unwrap();
    assert_eq!(told["mtime"].as_str(), Some(format!("{}.{:09}", mtime.mtime(), mtime.mtime_nsec()).as_str()));
    assert_eq!(stat(&m.join("small"))["inline"].as_bool(), Some(true));
    assert_eq!(stat(&m.join("link"))["kind"].as_str(), Some("symlink"));
    assert_eq!(stat(&m)["kind"].as_str(), Some("directory"));
    let text = vellum_ok(&["stat", m.join("small").to_str().unwrap()]);
    assert!(text.contains("data_version") && text.contains("committed_seq"));
    // A change of content counts; one of the mode does not.
    let before = stat(&m.join("small"));
    fs::set_permissions(m.join("small"), fs::Permissions::from_mode(0o600)).unwrap();
    sync(&m);
    let moded = stat(&m.join("small"));
    assert_eq!(moded["data_seq"], before["data_seq"]);
    assert_eq!(moded["data_version"], before["data_version"]);
    assert!(number(&moded, "meta_seq") > number(&before, "meta_seq"));
    fs::write(m.join("small"), "other").unwrap();
    sync(&m);
    let written = stat(&m.join("small"));
    assert!(number(&written, "data_seq") > number(&before, "data_seq"));
    assert!(number(&written, "data_version") > number(&before, "data_version"));

    let df = parse(&vellum_ok(&["df", "--json", &on]));
    let (total, free, available) =
        (number(&df, "total_bytes"), number(&df, "free_bytes"), number(&df, "available_bytes"));
    assert!(total <= 128 << 20 && free < total && available <= free && available > 32 << 20, "{df}");
    let statvfs = rustix::fs::statvfs(&m).unwrap();
    assert_eq!(statvfs.f_blocks * statvfs.f_frsize, total);
    assert!(vellum_ok(&["df", m.to_str().unwrap()]).contains("available"));

    let status = parse(&vellum_ok(&["status", "--json", &on]));
    for bound in [
        "clients",
        "requests_per_client",
        "data_bytes_per_client",
        "locks_per_client_and_reactor",
        "control_bytes_per_frame",
        "payload_bytes_per_frame",
        "invalidation_ms",
    ] {
        assert!(number(&status["limits"], bound) > 0, "{bound}");
    }
    let reactors = status["reactors"].as_array().unwrap();
    let clients: u64 = reactors.iter().map(|r| number(r, "clients")).sum();
    assert!(clients >= 2 && clients <= number(&status["limits"], "clients"), "the mount and the asker: {status}");
    assert!(number(&status, "durable_epoch") >= number(&written, "meta_seq"));
    assert!(status["fsid"].is_string() && status["store"].is_object() && status["store"]["error"].is_null());
    let store = status["store"].to_string();
    let bounds = ["memtable_bound_bytes", "log_bound_bytes", "cache_bound_bytes", "shard_bound_bytes", "seals_bound"];
    assert!(number(&status["store"]["memory"], "bound_bytes") > number(&status["store"]["memory"], "buffer_bytes"));
    for bound in bounds {
        assert!(store.contains(bound), "{bound} is not in {store}");
    }
    let text = vellum_ok(&["status", &on]);
    assert!(text.contains("epochs") && text.contains("durable"), "{text}");
    lab.unmount(&m);
    lab.stop_server();
    lab.check();
}

#[test]
fn two_mounts_see_each_others_changes() {
    if !can_mount("two mounts") {
        return;
    }
    let mut lab = Lab::new("256M");
    lab.serve();
    let (a, b) = (lab.mount("a", None), lab.mount("b", None));
    let names = |m: &Path| -> BTreeMap<String, u64> {
        let entry = |e: std::io::Result<fs::DirEntry>| {
            let e = e.unwrap();
            (e.file_name().into_string().unwrap(), e.ino())
        };
        fs::read_dir(m).unwrap().map(entry).collect()
    };
    for round in 0..20 {
        let (one, other) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let name = format!("f{round}");
        // A name that was looked for in vain appears.
        assert!(fs::metadata(other.join(&name)).is_err());
        fs::write(one.join(&name), format!("written in round {round}")).unwrap();
        assert_eq!(fs::read_to_string(other.join(&name)).unwrap(), format!("written in round {round}"));
        OpenOptions::new().append(true).open(other.join(&name)).unwrap().write_all(b", appended").unwrap();
        assert_eq!(fs::read_to_string(one.join(&name)).unwrap(), format!("written in round {round}, appended"));
        let len = fs::metadata(one.join(&name)).unwrap().len();
        assert_eq!(fs::metadata(other.join(&name)).unwrap().len(), len);
        // An open file sees what is written and cut elsewhere.
        let open = File::open(one.join(&name)).unwrap();
        fs::write(other.join(&name), "short").unwrap();
        assert_eq!(std::io::read_to_string(&open).unwrap(), "short");
        fs::set_permissions(one.join(&name), fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(fs::metadata(other.join(&name)).unwrap().mode() & 0o777, 0o640);
        fs::rename(other.join(&name), other.join(format!("r{round}"))).unwrap();
        assert!(fs::metadata(one.join(&name)).is_err(), "round {round}: the old name is still there");
        assert_eq!(fs::read_to_string(one.join(format!("r{round}"))).unwrap(), "short");
        assert_eq!(names(one), names(other), "round {round}");
        if round % 3 == 0 {
            fs::remove_file(one.join(format!("r{round}"))).unwrap();
            assert!(fs::metadata(other.join(format!("r{round}"))).is_err());
            // Unlinked elsewhere while open here.
            drop(open);
        }
        assert_eq!(names(one), names(other), "round {round}");
    }
    // Both at once in one directory and on one file.
    fs::create_dir(a.join("shared")).unwrap();
    std::thread::scope(|scope| {
        for (m, who) in [(&a, "a"), (&b, "b")] {
            scope.spawn(move || {
                for i in 0..50 {
                    fs::write(m.join(format!("shared/{who}{i}")), who).unwrap();
                    let mut log = OpenOptions::new().append(true).create(true).open(m.join("log")).unwrap();
                    log.write_all(format!("{who}{i:02}\n").as_bytes()).unwrap();
                }
            });
        }
    });
    assert_eq!(names(&a.join("shared")).len(), 100);
    assert_eq!(names(&a.join("shared")), names(&b.join("shared")));
    let log = fs::read_to_string(a.join("log")).unwrap();
    let lines: BTreeSet<&str> = log.lines().collect();
    assert_eq!((lines.len(), log.len()), (100, 400), "appends of two mounts overwrote each other: {log:?}");
    assert_eq!(fs::read_to_string(b.join("log")).unwrap(), log);
    lab.unmount(&a);
    lab.unmount(&b);
    lab.stop_server();
    lab.check();
}
