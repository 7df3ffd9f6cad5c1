//! What applications may rely on, through a real mount with the engine inside: each topic on its own mount, then a
//! remount that must show the same, then a check of the device.
#![allow(unsafe_code)] // mmap of a file

mod common;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::files::{fails, on_mount, random, rw};
use common::{Lab, can_mount, terminate, vellum_ok, wait_for, wait_until};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use vellum_base::prng::Prng;

#[test]
fn files_are_created_written_and_truncated() {
    let sparse = 100 << 20;
    on_mount(
        "files",
        "256M",
        |m| {
            let path = m.join("f");
            let mut f = OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
            fails(OpenOptions::new().write(true).create_new(true).open(&path), Errno::EXIST);
            f.write_all(b"hello").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"hello");
            fails(File::open(m.join("none")), Errno::NOENT);
            fails(File::open(path.join("x")), Errno::NOTDIR);
            fails(OpenOptions::new().write(true).open(m), Errno::ISDIR);
            // Two appenders never overwrite each other.
            let open = || OpenOptions::new().append(true).create(true).open(m.join("log")).unwrap();
            let (mut a, mut b) = (open(), open());
            for i in 0..50 {
                a.write_all(format!("a{i:03}\n").as_bytes()).unwrap();
                b.write_all(format!("b{i:03}\n").as_bytes()).unwrap();
            }
            let text = fs::read_to_string(m.join("log")).unwrap();
            assert_eq!(text.len(), 500);
            assert!((0..50).all(|i| text.contains(&format!("a{i:03}\nb{i:03}\n"))));
            // Shrinking within a block and growing again shows zeros.
            let cut = rw(&m.join("cut"));
            let bytes = random(1, 50_000);
            cut.write_all_at(&bytes, 0).unwrap();
            cut.set_len(10_001).unwrap();
            assert_eq!(cut.metadata().unwrap().len(), 10_001);
            cut.set_len(30_000).unwrap();
            let found = fs::read(m.join("cut")).unwrap();
            assert!(found[..10_001] == bytes[..10_001] && found[10_001..].iter().all(|b| *b == 0));
            assert_eq!(found.len(), 30_000);
            cut.sync_all().unwrap();
            // A hole takes no space.
            let f = rw(&m.join("sparse"));
            f.set_len(sparse).unwrap();
            f.write_all_at(b"end", sparse + 5000).unwrap();
            f.sync_all().unwrap();
            assert!(f.metadata().unwrap().blocks() < 100, "{} blocks", f.metadata().unwrap().blocks());
            let mut middle = [1; 4096];
            f.read_exact_at(&mut middle, 50 << 20).unwrap();
            assert_eq!(middle, [0; 4096]);
            let mut past = [0; 10];
            assert_eq!(f.read_at(&mut past, sparse + 5003).unwrap(), 0);
            assert_eq!(f.read_at(&mut past, sparse + 5000).unwrap(), 3);
            // Truncation by open, and by name.
            fs::write(m.join("t"), random(2, 9000)).unwrap();
            fs::write(m.join("t"), b"short").unwrap();
            assert_eq!(fs::read(m.join("t")).unwrap(), b"short");
            let reader = File::open(&path).unwrap();
            fails(reader.set_len(1), Errno::INVAL);
            fails((&reader).write(b"x"), Errno::BADF);
        },
        |m| {
            assert_eq!(fs::read(m.join("f")).unwrap(), b"hello");
            assert_eq!(fs::metadata(m.join("log")).unwrap().len(), 500);
            let found = fs::read(m.join("cut")).unwrap();
            assert!(found[..10_001] == random(1, 50_000)[..10_001] && found[10_001..].iter().all(|b| *b == 0));
            assert_eq!(fs::metadata(m.join("sparse")).unwrap().len(), sparse + 5003);
            assert_eq!(fs::read(m.join("t")).unwrap(), b"short");
        },
    );
}

#[test]
fn random_writes_to_a_big_file_are_those_of_a_plain_file() {
    let len = 20u64 << 20;
    let dir = tempfile::tempdir().unwrap();
    let plain = rw(&dir.path().join("plain"));
    let same = |m: &Path| {
        let (ours, theirs) = (fs::read(m.join("big")).unwrap(), fs::read(dir.path().join("plain")).unwrap());
        assert_eq!(ours.len(), theirs.len());
        let first = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert_eq!(first, None, "the first byte that differs");
    };
    on_mount(
        "big file",
        "256M",
        |m| {
            let big = rw(&m.join("big"));
            let mut prng = Prng::new(20);
            for step in 0..400 {
                if prng.one_in(40) {
                    let cut = prng.below(len);
                    big.set_len(cut).unwrap();
                    plain.set_len(cut).unwrap();
                    continue;
                }
                let bytes = random(step, 1 + prng.below(150_000) as usize);
                let at = prng.below(len - bytes.len() as u64);
                big.write_all_at(&bytes, at).unwrap();
                plain.write_all_at(&bytes, at).unwrap();
                if prng.one_in(30) {
                    big.sync_data().unwrap();
                }
                let from = prng.below(len);
                let (mut a, mut b) = (vec![0; 5000], vec![0; 5000]);
                assert_eq!(big.read_at(&mut a, from).unwrap(), plain.read_at(&mut b, from).unwrap(), "at {from}");
                assert!(a == b, "5000 bytes at {from} in step {step}");
            }
            same(m);
        },
        same,
    );
}

#[test]
fn names_are_linked_renamed_and_removed() {
    on_mount(
        "names",
        "128M",
        |m| {
            let at = |name: &str| m.join(name);
            let write = |name: &str, text: &str| fs::write(at(name), text).unwrap();
            let read = |name: &str| fs::read_to_string(at(name)).unwrap();
            let links = |name: &str| fs::symlink_metadata(at(name)).unwrap().nlink();
            write("a", "A");
            write("b", "B");
            fs::rename(at("a"), at("b")).unwrap();
            assert_eq!(read("b"), "A");
            fails(fs::metadata(at("a")), Errno::NOENT);
            // Directories.
            fs::create_dir_all(at("d1/sub/deep")).unwrap();
            assert_eq!((links("d1"), links("d1/sub")), (3, 3));
            fails(fs::rename(at("d1"), at("d1/sub/deep/loop")), Errno::INVAL);
            fails(fs::rename(at("d1"), at("d1/sub")), Errno::INVAL);
            fs::create_dir(at("d2")).unwrap();
            write("d2/x", "x");
            fails(fs::rename(at("d1"), at("d2")), Errno::NOTEMPTY);
            fails(fs::rename(at("b"), at("d2")), Errno::ISDIR);
            fails(fs::rename(at("d2"), at("b")), Errno::NOTDIR);
            fs::create_dir(at("d3")).unwrap();
            fs::rename(at("d1/sub"), at("d3")).unwrap();
            assert_eq!((links("d1"), links("d3")), (2, 3));
            fs::metadata(at("d3/deep")).unwrap();
            fails(fs::remove_dir(at("d3")), Errno::NOTEMPTY);
            fails(fs::remove_dir(at("b")), Errno::NOTDIR);
            fails(fs::remove_file(at("d3")), Errno::ISDIR);
            fails(fs::create_dir(at("d3")), Errno::EXIST);
            fails(fs::create_dir(at("none/x")), Errno::NOENT);
            fs::create_dir(at("d4")).unwrap();
            assert_eq!(fs::metadata(m).unwrap().nlink(), 2 + 4);
            // Exchange, and no replacing.
            write("e1", "1");
            write("e2", "2");
            let rename = |a, b, flags| rustix::fs::renameat_with(CWD, at(a), CWD, at(b), flags).map_err(Into::into);
            rename("e1", "e2", RenameFlags::EXCHANGE).unwrap();
            assert_eq!((read("e1"), read("e2")), ("2".into(), "1".into()));
            fails(rename("e1", "e2", RenameFlags::NOREPLACE), Errno::EXIST);
            rename("e1", "e3", RenameFlags::NOREPLACE).unwrap();
            // Hard links.
            fs::hard_link(at("b"), at("d2/hard")).unwrap();
            assert_eq!((links("b"), links("d2/hard")), (2, 2));
            fails(fs::hard_link(at("b"), at("d2/hard")), Errno::EXIST);
            fails(fs::hard_link(at("d2"), at("dirlink")), Errno::PERM);
            fs::rename(at("b"), at("d2/hard")).unwrap();
            assert_eq!(links("b"), 2, "a rename between two names of one file does nothing");
            fs::remove_file(at("b")).unwrap();
            assert_eq!((links("d2/hard"), read("d2/hard")), (1, "A".into()));
            // Symlinks.
            symlink("d2/hard", at("s")).unwrap();
            assert_eq!((fs::read_link(at("s")).unwrap(), read("s")), (PathBuf::from("d2/hard"), "A".into()));
            let long = "l/".repeat(2000);
            symlink(&long, at("long")).unwrap();
            assert_eq!(fs::read_link(at("long")).unwrap().as_os_str(), long.as_str());
            symlink("loop2", at("loop1")).unwrap();
            symlink("loop1", at("loop2")).unwrap();
            fails(fs::read(at("loop1")), Errno::LOOP);
            fails(fs::read_link(at("d2/hard")), Errno::INVAL);
            // Names.
            let longest = "n".repeat(255);
            write(&longest, "longest");
            fails(fs::write(at(&"n".repeat(256)), "x"), Errno::NAMETOOLONG);
            fails(fs::metadata(at(&"n".repeat(256))), Errno::NAMETOOLONG);
            let odd = "tab\tnewline\n\u{fc}\u{1f40b}";
            write(odd, "odd");
            assert!(fs::read_dir(m).unwrap().any(|e| e.unwrap().file_name() == odd));
            rustix::fs::mkfifoat(CWD, at("fifo"), Mode::from_raw_mode(0o640)).unwrap();
            assert!(fs::metadata(at("fifo")).unwrap().file_type().is_fifo());
            File::open(at("d2")).unwrap().sync_all().unwrap();
        },
        |m| {
            let listed: BTreeSet<String> =
                fs::read_dir(m).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            assert!(
                listed.is_superset(&["d1", "d2", "d3", "d4", "e2", "e3", "fifo", "long", "s"].map(Into::into).into())
            );
            assert_eq!(listed.len(), 13, "{listed:?}");
            assert_eq!(fs::read_to_string(m.join("s")).unwrap(), "A");
            assert_eq!(fs::read_link(m.join("long")).unwrap().as_os_str().len(), 4000);
            assert!(fs::metadata(m.join("fifo")).unwrap().file_type().is_fifo());
        },
    );
}

#[test]
fn a_big_directory_is_listed_once_while_names_go() {
    let name = |i: u32| format!("name-{i:05}");
    on_mount(
        "big directory",
        "256M",
        |m| {
            let dir = m.join("big");
            fs::create_dir(&dir).unwrap();
            (0..3000).for_each(|i| drop(File::create(dir.join(name(i))).unwrap()));
            let mut seen = BTreeSet::new();
            for entry in fs::read_dir(&dir).unwrap() {
                let entry = entry.unwrap().file_name().into_string().unwrap();
                let i: u32 = entry["name-".len()..].parse().unwrap();
                assert!(seen.insert(i), "{entry} came twice");
                // Every other one goes while the listing is under way: the one just seen.
                if i.is_multiple_of(2) {
                    fs::remove_file(dir.join(&entry)).unwrap();
                }
            }
            assert_eq!(seen, (0..3000).collect(), "a name that was there all the time is missing");
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 1500);
        },
        |m| {
            let dir = m.join("big");
            let left: BTreeSet<String> =
                fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            assert_eq!(left, (0..3000).filter(|i| i % 2 == 1).map(name).collect());
            fs::remove_dir_all(&dir).unwrap();
            assert_eq!(fs::read_dir(m).unwrap().count(), 0);
        },
    );
}

fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0u8; 65_536];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(n);
    Ok(value)
}

#[test]
fn attributes_are_kept() {
    let (atime, mtime) =
        (Timespec { tv_sec: 1_000_000_007, tv_nsec: 123_456_789 }, Timespec { tv_sec: -5, tv_nsec: 999_999_999 });
    // Missing: Linux allows 65,536 bytes; the items of an attribute have room for one less.
    let max = random(3, 65_535);
    let look = |m: &Path| {
        let f = m.join("f");
        let meta = fs::metadata(&f).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o4711, 1234, 4_000_000_000));
        assert_eq!((meta.atime(), meta.atime_nsec()), (atime.tv_sec, atime.tv_nsec));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (mtime.tv_sec, mtime.tv_nsec));
        assert_eq!(xattr(&f, "user.a").unwrap(), b"replaced");
        assert_eq!(xattr(&f, "user.gone"), Err(Errno::NODATA));
        assert!(xattr(&f, "user.max").unwrap() == max, "the largest");
        assert_eq!(xattr(&f, "user.empty").unwrap(), b"");
        let mut list = vec![0u8; 1000];
        let n = rustix::fs::listxattr(&f, &mut list[..]).unwrap();
        let mut names: Vec<_> = list[..n].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
        names.sort();
        assert_eq!(names, [b"user.a".as_slice(), b"user.empty", b"user.max"]);
    };
    on_mount(
        "attributes",
        "128M",
        |m| {
            let f = m.join("f");
            fs::write(&f, "x").unwrap();
            let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&f, name, value, flags);
            set("user.a", b"first", XattrFlags::CREATE).unwrap();
            assert_eq!(set("user.a", b"again", XattrFlags::CREATE), Err(Errno::EXIST));
            assert_eq!(set("user.b", b"none", XattrFlags::REPLACE), Err(Errno::NODATA));
            set("user.a", b"replaced", XattrFlags::REPLACE).unwrap();
            set("user.gone", &[7; 9000], XattrFlags::empty()).unwrap();
            rustix::fs::removexattr(&f, "user.gone").unwrap();
            assert_eq!(rustix::fs::removexattr(&f, "user.gone"), Err(Errno::NODATA));
            set("user.max", b"small before", XattrFlags::empty()).unwrap();
            set("user.max", &max, XattrFlags::empty()).unwrap();
            assert_eq!(set("user.max", &[0; 65_536], XattrFlags::empty()), Err(Errno::TOOBIG));
            set("user.empty", b"", XattrFlags::empty()).unwrap();
            let mut tight = [0u8; 3];
            assert_eq!(rustix::fs::getxattr(&f, "user.a", &mut tight[..]), Err(Errno::RANGE));
            std::os::unix::fs::chown(&f, Some(1234), Some(4_000_000_000)).unwrap();
            fs::set_permissions(&f, fs::Permissions::from_mode(0o4711)).unwrap();
            let times = Timestamps { last_access: atime, last_modification: mtime };
            rustix::fs::utimensat(CWD, &f, &times, AtFlags::empty()).unwrap();
            look(m);
            // Of a symlink itself.
            symlink("f", m.join("s")).unwrap();
            std::os::unix::fs::lchown(m.join("s"), Some(77), Some(78)).unwrap();
            assert_eq!(fs::symlink_metadata(m.join("s")).unwrap().uid(), 77);
            // Writing moves mtime and ctime forward.
            let g = m.join("g");
            fs::write(&g, "1").unwrap();
            let before = fs::metadata(&g).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            OpenOptions::new().append(true).open(&g).unwrap().write_all(b"2").unwrap();
            let after = fs::metadata(&g).unwrap();
            assert!(after.modified().unwrap() > before.modified().unwrap());
            assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
            let stat = rustix::fs::statvfs(m).unwrap();
            assert_eq!((stat.f_namemax, stat.f_frsize), (255, 4096));
            assert!(stat.f_blocks * stat.f_frsize <= 128 << 20 && stat.f_bfree > 0 && stat.f_bavail <= stat.f_bfree);
        },
        look,
    );
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    let len = 8 << 20;
    on_mount(
        "unlinked",
        "128M",
        |m| {
            let free = || rustix::fs::statvfs(m).unwrap().f_bfree;
            File::open(m).unwrap().sync_all().unwrap();
            let path = m.join("f");
            let bytes = random(4, len);
            let mut f = rw(&path);
            f.write_all(&bytes).unwrap();
            f.sync_all().unwrap();
            let full = free();
            fs::remove_file(&path).unwrap();
            fails(File::open(&path), Errno::NOENT);
            assert_eq!(f.metadata().unwrap().nlink(), 0);
            f.write_all_at(b"still", 100).unwrap();
            let mut found = vec![0; len];
            f.seek(SeekFrom::Start(0)).unwrap();
            f.read_exact_at(&mut found, 0).unwrap();
            assert!(found[105..] == bytes[105..] && &found[100..105] == b"still");
            // The name may be had by another one.
            fs::write(&path, "other").unwrap();
            drop(f);
            wait_until("the space comes back", Duration::from_secs(20), || {
                File::open(m).unwrap().sync_all().unwrap();
                free() > full + 1500
            });
            // A name replaced by a rename, too.
            fs::write(m.join("victim"), random(5, 100_000)).unwrap();
            let victim = File::open(m.join("victim")).unwrap();
            fs::write(m.join("new"), "new").unwrap();
            fs::rename(m.join("new"), m.join("victim")).unwrap();
            let mut found = vec![0; 100_000];
            victim.read_exact_at(&mut found, 0).unwrap();
            assert!(found == random(5, 100_000));
            // A directory that is removed while it is somebody's.
            fs::create_dir(m.join("dir")).unwrap();
            let dir = File::open(m.join("dir")).unwrap();
            fs::remove_dir(m.join("dir")).unwrap();
            let made = rustix::fs::openat(&dir, "x", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600));
            assert_eq!(made.err(), Some(Errno::NOENT));
        },
        |m| {
            assert_eq!(fs::read(m.join("f")).unwrap(), b"other");
            assert_eq!(fs::read(m.join("victim")).unwrap(), b"new");
        },
    );
}

#[test]
fn mapped_files_are_read_and_written() {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    let len = 300_000;
    let mut expected = random(6, len);
    expected[5000..5005].copy_from_slice(b"mmap!");
    expected[299_999] = 7;
    on_mount(
        "mmap",
        "128M",
        |m| {
            let f = rw(&m.join("f"));
            f.write_all_at(&random(6, len), 0).unwrap();
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping of a file that stays as long as the mapping is used.
            let at = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &f, 0).unwrap() };
            // SAFETY: the mapping has `len` bytes, and nobody else in this process touches it.
            let bytes = unsafe { std::slice::from_raw_parts_mut(at.cast::<u8>(), len) };
            assert!(bytes == random(6, len));
            bytes[5000..5005].copy_from_slice(b"mmap!");
            bytes[len - 1] = 7;
            // SAFETY: the whole mapping; `bytes` is not used after it.
            unsafe {
                msync(at, len, MsyncFlags::SYNC).unwrap();
                munmap(at, len).unwrap();
            }
            f.sync_all().unwrap();
            assert!(fs::read(m.join("f")).unwrap() == expected);
        },
        |m| assert!(fs::read(m.join("f")).unwrap() == expected),
    );
}

#[test]
fn what_is_not_supported_says_so() {
    use rustix::fs::{FallocateFlags, fallocate};
    on_mount(
        "unsupported",
        "128M",
        |m| {
            let path = m.join("f");
            let f = rw(&path);
            f.write_all_at(&random(8, 20_000), 0).unwrap();
            assert_eq!(fallocate(&f, FallocateFlags::COLLAPSE_RANGE, 0, 4096), Err(Errno::OPNOTSUPP));
            let whiteout = rustix::fs::renameat_with(CWD, &path, CWD, m.join("g"), RenameFlags::WHITEOUT);
            assert!(whiteout.is_err());
            let copy = rw(&m.join("copy"));
            assert_eq!(io::copy(&mut File::open(&path).unwrap(), &mut &copy).unwrap(), 20_000);
            let mut seeker = File::open(&path).unwrap();
            assert_eq!(seeker.seek(SeekFrom::End(0)).unwrap(), 20_000);
        },
        |m| {
            assert!(fs::read(m.join("f")).unwrap() == random(8, 20_000));
            assert!(fs::read(m.join("copy")).unwrap() == random(8, 20_000));
            let long = CString::new("x".repeat(5000)).unwrap();
            assert_eq!(rustix::fs::stat(long.as_c_str()).err(), Some(Errno::NAMETOOLONG));
        },
    );
}

#[test]
fn a_full_device_says_so_and_recovers_by_deletion() {
    on_mount(
        "full device",
        "64M",
        |m| {
            let fill = |dir: &Path, first: u64| -> u64 {
                for i in first.. {
                    let made = File::create(dir.join(format!("f{i}")))
                        .and_then(|mut f| f.write_all(&random(i, 200_000)).and_then(|()| f.sync_all()));
                    match made {
                        Ok(()) => {}
                        Err(e) => {
                            assert_eq!(e.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{e}");
                            return i;
                        }
                    }
                }
                unreachable!()
            };
            fs::write(m.join("kept"), random(99, 50_000)).unwrap();
            let n = fill(m, 0);
            assert!(n > 20, "full after {n} files");
            for i in 0..n {
                assert!(fs::read(m.join(format!("f{i}"))).unwrap() == random(i, 200_000), "f{i}");
            }
            assert!(fs::read(m.join("kept")).unwrap() == random(99, 50_000));
            for i in 0..=n {
                let _ = fs::remove_file(m.join(format!("f{i}")));
            }
            wait_until("there is space again", Duration::from_secs(20), || {
                File::open(m).unwrap().sync_all().unwrap();
                let stat = rustix::fs::statvfs(m).unwrap();
                stat.f_bavail * stat.f_frsize > n * 200_000 / 2
            });
            let again = fill(m, 1000) - 1000;
            assert!(again * 10 > n * 7, "{n} files fitted at first, then {again}");
            (0..again / 2).for_each(|i| fs::remove_file(m.join(format!("f{}", 1000 + i))).unwrap());
        },
        |m| {
            assert!(fs::read(m.join("kept")).unwrap() == random(99, 50_000));
            fs::write(m.join("more"), random(98, 300_000)).unwrap();
            assert!(fs::read(m.join("more")).unwrap() == random(98, 300_000));
        },
    );
}

#[test]
fn sigterm_ends_cleanly_and_the_next_start_says_so() {
    if !can_mount("SIGTERM") {
        return;
    }
    let mut lab = Lab::new("128M");
    lab.serve();
    let mount = lab.mount("m", None);
    fs::write(mount.join("served"), random(10, 70_000)).unwrap();
    lab.stop_mount(&mount);
    lab.stop_server();
    lab.check();
    let endpoint = format!("file:{}", lab.image_str());
    let mount = lab.mount("e", Some(&endpoint));
    assert!(fs::read(mount.join("served")).unwrap() == random(10, 70_000));
    fs::write(mount.join("embedded"), random(11, 70_000)).unwrap();
    lab.stop_mount(&mount);
    lab.check();
    let log = fs::read_to_string(lab.log()).unwrap();
    assert!(log.contains("term 2: clean"), "{log}");
    let mut next = std::process::Command::new(common::VELLUM)
        .args(["serve", &lab.image_str(), "--listen", &lab.endpoint()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("it serves", Duration::from_secs(20), || lab.dir.path().join("engine.sock").exists());
    vellum_ok(&["df", &lab.endpoint()]);
    terminate(&next);
    let status = wait_for(&mut next, Duration::from_secs(20)).unwrap();
    assert!(status.success(), "{status}");
    let said = io::read_to_string(next.stdout.take().unwrap()).unwrap();
    assert!(said.contains("term 3: clean"), "{said}");
    assert!(!lab.dir.path().join("engine.sock").exists(), "its socket is left");
}
