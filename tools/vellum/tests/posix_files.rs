//! What POSIX and Linux say of content and attributes beyond the plain calls: holes, copies, nameless files, birth times,
//! access control lists, privileges. Each topic on its own mount, then a remount that must show the same.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use common::files::{fails, on_mount, random, rw};
use common::{Lab, can_mount, is_mounted, wait_until};
use rustix::fs::{AtFlags, CWD, FallocateFlags, OFlags, SeekFrom, StatxFlags, XattrFlags, fallocate, seek};
use rustix::io::Errno;

const BLOCK: u64 = 4096;
/// Somebody who is not root, and in no group of it.
const SOMEBODY: u32 = 54_321;

fn data_at(f: &File, at: u64) -> Result<u64, Errno> {
    seek(f, SeekFrom::Data(at))
}

fn hole_at(f: &File, at: u64) -> Result<u64, Errno> {
    seek(f, SeekFrom::Hole(at))
}

/// Runs a shell command as [`SOMEBODY`]; true when it succeeds.
fn somebody(m: &Path, command: &str) -> bool {
    let mut sh = Command::new("sh");
    sh.args(["-c", command]).current_dir(m).uid(SOMEBODY).gid(SOMEBODY);
    sh.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("sh starts").success()
}

/// Lets everybody reach the mount, which is in a directory of root's.
fn open_to_all(m: &Path) {
    fs::set_permissions(m.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(m, fs::Permissions::from_mode(0o777)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn ranges_are_allocated_punched_and_zeroed() {
    let mut expected = random(1, 1 << 20);
    expected[8000..50_000].fill(0);
    expected[700_000..].fill(0);
    expected.resize((1 << 20) + 10_000, 0);
    on_mount(
        "fallocate",
        "128M",
        |m| {
            let f = rw(&m.join("f"));
            f.write_all_at(&random(1, 1 << 20), 0).unwrap();
            f.sync_all().unwrap();
            let blocks = f.metadata().unwrap().blocks();
            assert_eq!(data_at(&f, 0), Ok(0));
            assert_eq!(hole_at(&f, 0), Ok(1 << 20));
            fallocate(&f, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 8000, 42_000).unwrap();
            assert_eq!((hole_at(&f, 0), data_at(&f, 8192)), (Ok(8192), Ok(12 * BLOCK)));
            assert_eq!(hole_at(&f, 20_000), Ok(20_000));
            f.sync_all().unwrap();
            assert_eq!(f.metadata().unwrap().blocks(), blocks - 10 * 8, "ten whole blocks lie within");
            // To the end, and beyond with and without a new size.
            fallocate(&f, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 700_000, 1 << 20).unwrap();
            assert_eq!(f.metadata().unwrap().len(), 1 << 20);
            assert_eq!(data_at(&f, 170 * BLOCK + 1).unwrap(), 170 * BLOCK + 1, "the block of the edge");
            assert_eq!(data_at(&f, 171 * BLOCK), Err(Errno::NXIO));
            fallocate(&f, FallocateFlags::ZERO_RANGE, 1 << 20, 10_000).unwrap();
            assert_eq!(f.metadata().unwrap().len(), (1 << 20) + 10_000);
            assert_eq!(data_at(&f, 2 << 20), Err(Errno::NXIO));
            assert!(fs::read(m.join("f")).unwrap() == expected);
            // A small file, which is kept without blocks.
            let small = rw(&m.join("small"));
            small.write_all_at(b"0123456789", 0).unwrap();
            fallocate(&small, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 2, 3).unwrap();
            small.sync_all().unwrap();
            fallocate(&small, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 7, 100).unwrap();
            // Room is looked for: there is no promise to keep, as nothing is overwritten in place.
            let room = rw(&m.join("room"));
            fallocate(&room, FallocateFlags::KEEP_SIZE, 0, 50_000).unwrap();
            assert_eq!(room.metadata().unwrap().len(), 0);
            fallocate(&room, FallocateFlags::empty(), 1000, 50_000).unwrap();
            assert_eq!(room.metadata().unwrap().len(), 51_000);
            assert_eq!(fallocate(&room, FallocateFlags::empty(), 0, 10 << 30), Err(Errno::NOSPC));
            for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE, FallocateFlags::UNSHARE_RANGE] {
                assert_eq!(fallocate(&room, flags, 0, BLOCK), Err(Errno::OPNOTSUPP), "{flags:?}");
            }
            assert_eq!(fallocate(&room, FallocateFlags::empty(), 0, 0), Err(Errno::INVAL));
            assert_eq!(fallocate(File::open(m.join("f")).unwrap(), FallocateFlags::empty(), 0, 1), Err(Errno::BADF));
        },
        |m| {
            assert!(fs::read(m.join("f")).unwrap() == expected);
            let f = File::open(m.join("f")).unwrap();
            assert_eq!((hole_at(&f, 0), data_at(&f, 8192)), (Ok(8192), Ok(12 * BLOCK)));
            assert_eq!(fs::read(m.join("small")).unwrap(), b"01\0\0\x0056\0\0\0");
            assert_eq!(fs::read(m.join("room")).unwrap(), vec![0; 51_000]);
        },
    );
}

/// Copies as applications do: until nothing more comes.
fn copy(from: &File, mut from_at: u64, to: &File, mut to_at: u64, len: usize) -> usize {
    let mut copied = 0;
    while copied < len {
        match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), len - copied).unwrap() {
            0 => break,
            n => copied += n,
        }
    }
    copied
}

#[test]
fn ranges_are_copied_with_their_holes() {
    let sparse = 200 << 20;
    on_mount(
        "copy_file_range",
        "128M",
        |m| {
            let source = rw(&m.join("source"));
            source.set_len(sparse).unwrap();
            source.write_all_at(&random(2, 100_000), 50 << 20).unwrap();
            let target = rw(&m.join("target"));
            target.write_all_at(b"covered by a hole", 0).unwrap();
            assert_eq!(copy(&source, 0, &target, 0, usize::MAX >> 1), sparse as usize);
            assert_eq!(target.metadata().unwrap().len(), sparse);
            target.sync_all().unwrap();
            assert!(target.metadata().unwrap().blocks() < 300, "{} blocks", target.metadata().unwrap().blocks());
            // Not at the edges of blocks, and within one file.
            let odd = rw(&m.join("odd"));
            assert_eq!(copy(&source, (50 << 20) + 123, &odd, 77, 90_000), 90_000);
            assert_eq!(copy(&odd, 77, &odd, 200_000, 1000), 1000);
            let mut at = (0, 10);
            let overlap = rustix::fs::copy_file_range(&odd, Some(&mut at.0), &odd, Some(&mut at.1), 100);
            assert_eq!(overlap, Err(Errno::INVAL));
            assert_eq!(copy(&odd, 10 << 20, &target, 0, 1000), 0, "past the end");
        },
        |m| {
            let mut found = vec![0; 100_000];
            let target = File::open(m.join("target")).unwrap();
            target.read_exact_at(&mut found, 50 << 20).unwrap();
            assert!(found == random(2, 100_000));
            target.read_exact_at(&mut found[..17], 0).unwrap();
            assert_eq!(found[..17], [0; 17]);
            let odd = fs::read(m.join("odd")).unwrap();
            assert!(odd[77..90_077] == random(2, 100_000)[123..90_123]);
            assert_eq!((odd[200_000..] == random(2, 100_000)[123..1123], odd.len()), (true, 201_000));
        },
    );
}

fn nameless(m: &Path, more: OFlags) -> File {
    let flags = (OFlags::TMPFILE | more).bits() as i32;
    OpenOptions::new().read(true).write(true).mode(0o640).custom_flags(flags).open(m).unwrap()
}

fn link(f: &File, to: &Path) -> Result<(), Errno> {
    let from = format!("/proc/self/fd/{}", f.as_raw_fd());
    rustix::fs::linkat(CWD, from.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW)
}

#[test]
fn a_file_without_a_name_gets_one_or_goes() {
    on_mount(
        "O_TMPFILE",
        "128M",
        |m| {
            let free = || {
                File::open(m).unwrap().sync_all().unwrap();
                rustix::fs::statvfs(m).unwrap().f_bfree
            };
            let f = nameless(m, OFlags::empty());
            f.write_all_at(&random(3, 100_000), 0).unwrap();
            assert_eq!((f.metadata().unwrap().nlink(), mode_of(&f)), (0, 0o640));
            assert_eq!(fs::read_dir(m).unwrap().count(), 0);
            link(&f, &m.join("named")).unwrap();
            assert_eq!(f.metadata().unwrap().nlink(), 1);
            link(&f, &m.join("again")).unwrap();
            assert_eq!(link(&f, &m.join("again")), Err(Errno::EXIST));
            // With O_EXCL it never gets one; nor does a file that lost its last.
            let f = nameless(m, OFlags::EXCL);
            assert_eq!(link(&f, &m.join("never")), Err(Errno::NOENT));
            fs::write(m.join("lost"), "x").unwrap();
            let f = File::open(m.join("lost")).unwrap();
            fs::remove_file(m.join("lost")).unwrap();
            assert_eq!(link(&f, &m.join("never")), Err(Errno::NOENT));
            // What is closed without a name frees its space.
            let before = free();
            let f = nameless(m, OFlags::empty());
            f.write_all_at(&random(4, 8 << 20), 0).unwrap();
            f.sync_all().unwrap();
            assert!(free() + 1500 < before);
            drop(f);
            wait_until("the space comes back", Duration::from_secs(20), || free() + 500 > before);
        },
        |m| {
            assert!(fs::read(m.join("named")).unwrap() == random(3, 100_000));
            assert_eq!(fs::metadata(m.join("again")).unwrap().nlink(), 2);
            assert_eq!(fs::read_dir(m).unwrap().count(), 2);
        },
    );
}

fn mode_of(f: &File) -> u32 {
    f.metadata().unwrap().mode() & 0o7777
}

#[test]
fn a_file_knows_when_it_was_made() {
    let born = |path: &Path| {
        let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, flags).unwrap();
        assert_ne!(stat.stx_mask & StatxFlags::BTIME.bits(), 0, "the kernel was told no birth time");
        SystemTime::UNIX_EPOCH + Duration::new(stat.stx_btime.tv_sec as u64, stat.stx_btime.tv_nsec)
    };
    let mut first = None;
    let first = &mut first;
    let again = std::cell::Cell::new(None);
    on_mount(
        "birth time",
        "128M",
        |m| {
            let before = SystemTime::now();
            fs::write(m.join("f"), "1").unwrap();
            let made = born(&m.join("f"));
            assert!(made + Duration::from_secs(1) > before && made < SystemTime::now() + Duration::from_secs(1));
            std::thread::sleep(Duration::from_millis(20));
            fs::write(m.join("f"), "2").unwrap();
            chmod(&m.join("f"), 0o600);
            fs::rename(m.join("f"), m.join("g")).unwrap();
            assert_eq!(born(&m.join("g")), made);
            fs::create_dir(m.join("d")).unwrap();
            assert!(born(&m.join("d")) > made);
            again.set(Some(made));
        },
        |m| *first = Some(born(&m.join("g"))),
    );
    assert_eq!(*first, again.get());
}

/// The kernel's form of an ACL.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&perm.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    out
}

const OWNER: u16 = 1;
const USER: u16 = 2;
const GROUP: u16 = 4;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn set_acl(path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty())
}

fn get_acl(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0u8; 4096];
    let n = rustix::fs::getxattr(path, name, &mut value[..])?;
    value.truncate(n);
    Ok(value)
}

#[test]
fn access_control_lists_are_kept_honoured_and_inherited() {
    let list = |group: u16, mask: u16| {
        acl(&[(OWNER, 6, NO_ID), (USER, 6, SOMEBODY), (GROUP, group, NO_ID), (MASK, mask, NO_ID), (OTHER, 0, NO_ID)])
    };
    on_mount(
        "ACLs",
        "128M",
        |m| {
            open_to_all(m);
            let f = m.join("f");
            fs::write(&f, "secret").unwrap();
            chmod(&f, 0o600);
            assert!(!somebody(m, "cat f"));
            set_acl(&f, ACCESS, &list(4, 6)).unwrap();
            assert_eq!(mode(&f), 0o660, "the group's bits are the mask");
            assert!(somebody(m, "cat f") && somebody(m, "echo more >> f"));
            // chmod changes the mask, and with it what named users may.
            chmod(&f, 0o640);
            assert_eq!(get_acl(&f, ACCESS).unwrap(), list(4, 4));
            assert!(somebody(m, "cat f") && !somebody(m, "echo more >> f"));
            chmod(&f, 0o600);
            assert!(!somebody(m, "cat f"));
            // An ACL that says no more than a mode is one.
            let g = m.join("g");
            fs::write(&g, "").unwrap();
            set_acl(&g, ACCESS, &acl(&[(OWNER, 7, NO_ID), (GROUP, 5, NO_ID), (OTHER, 1, NO_ID)])).unwrap();
            assert_eq!((mode(&g), get_acl(&g, ACCESS)), (0o751, Err(Errno::NODATA)));
            set_acl(&g, ACCESS, &list(7, 7)).unwrap();
            rustix::fs::removexattr(&g, ACCESS).unwrap();
            assert_eq!(get_acl(&g, ACCESS), Err(Errno::NODATA));
            // Nonsense.
            assert_eq!(set_acl(&g, ACCESS, &acl(&[(OWNER, 7, NO_ID)])), Err(Errno::INVAL));
            assert_eq!(set_acl(&g, DEFAULT, &list(4, 4)), Err(Errno::ACCESS));
            // What is made in a directory gets its default ACL, and no umask.
            let d = m.join("d");
            fs::create_dir(&d).unwrap();
            let default =
                acl(&[(OWNER, 7, NO_ID), (USER, 7, SOMEBODY), (GROUP, 5, NO_ID), (MASK, 7, NO_ID), (OTHER, 5, NO_ID)]);
            set_acl(&d, DEFAULT, &default).unwrap();
            assert!(
                Command::new("sh")
                    .args(["-c", "umask 077; echo x > d/f; mkdir d/sub"])
                    .current_dir(m)
                    .status()
                    .unwrap()
                    .success()
            );
            assert_eq!(mode(&d.join("f")), 0o664);
            let inherited =
                acl(&[(OWNER, 6, NO_ID), (USER, 7, SOMEBODY), (GROUP, 5, NO_ID), (MASK, 6, NO_ID), (OTHER, 4, NO_ID)]);
            assert_eq!(get_acl(&d.join("f"), ACCESS).unwrap(), inherited);
            assert_eq!(get_acl(&d.join("f"), DEFAULT), Err(Errno::NODATA));
            assert_eq!((mode(&d.join("sub")), get_acl(&d.join("sub"), DEFAULT).unwrap()), (0o775, default.clone()));
            assert_eq!(get_acl(&d.join("sub"), ACCESS).unwrap(), default);
            assert!(somebody(m, "echo more >> d/f"));
            let nameless = nameless(&d, OFlags::empty());
            assert_eq!(mode_of(&nameless), 0o640);
            // Elsewhere the umask counts.
            assert!(
                Command::new("sh")
                    .args(["-c", "umask 027; echo x > u; mkdir ud; mkfifo uf"])
                    .current_dir(m)
                    .status()
                    .unwrap()
                    .success()
            );
            assert_eq!((mode(&m.join("u")), mode(&m.join("ud")), mode(&m.join("uf"))), (0o640, 0o750, 0o640));
        },
        |m| {
            assert_eq!(get_acl(&m.join("f"), ACCESS).unwrap(), list(4, 0));
            assert_eq!(mode(&m.join("d/f")), 0o664);
        },
    );
}

#[test]
fn privileges_do_not_outlive_a_change_by_others() {
    on_mount(
        "privileges",
        "128M",
        |m| {
            open_to_all(m);
            let privileged = |name: &str| {
                let path = m.join(name);
                fs::write(&path, "program").unwrap();
                chmod(&path, 0o6777);
                path
            };
            let f = privileged("written");
            assert!(somebody(m, "echo more >> written"));
            assert_eq!(mode(&f), 0o777);
            let f = privileged("cut");
            assert!(somebody(m, "truncate -s 1 cut"));
            assert_eq!(mode(&f), 0o777);
            let f = privileged("punched");
            assert!(somebody(m, "fallocate -p -o 0 -l 2 punched"));
            assert_eq!(mode(&f), 0o777);
            let f = privileged("given");
            std::os::unix::fs::chown(&f, Some(SOMEBODY), None).unwrap();
            assert_eq!(mode(&f), 0o777, "also when root gives it away");
            let f = privileged("root's");
            OpenOptions::new().append(true).open(&f).unwrap().write_all(b"more").unwrap();
            assert_eq!(mode(&f), 0o6777, "who may set them may keep them");
            // Times: only the owner sets them, who may write sets them to now.
            let f = m.join("times");
            fs::write(&f, "x").unwrap();
            chmod(&f, 0o666);
            assert!(somebody(m, "touch times") && !somebody(m, "touch -d 2001-01-01 times"));
            chmod(&f, 0o644);
            assert!(!somebody(m, "touch times"));
            // A sticky directory: only one's own names.
            fs::create_dir(m.join("sticky")).unwrap();
            chmod(&m.join("sticky"), 0o1777);
            fs::write(m.join("sticky/root's"), "x").unwrap();
            assert!(somebody(m, "echo x > sticky/mine && mv sticky/mine sticky/also && rm sticky/also"));
            assert!(!somebody(m, "rm -f \"sticky/root's\"") && !somebody(m, "mv \"sticky/root's\" sticky/x"));
            // A setgid directory gives its group on.
            fs::create_dir(m.join("shared")).unwrap();
            std::os::unix::fs::chown(m.join("shared"), None, Some(777)).unwrap();
            chmod(&m.join("shared"), 0o2777);
            assert!(somebody(m, "echo x > shared/f && mkdir shared/d"));
            assert_eq!(fs::metadata(m.join("shared/f")).unwrap().gid(), 777);
            assert_eq!(
                (fs::metadata(m.join("shared/d")).unwrap().gid(), mode(&m.join("shared/d")) & 0o2000),
                (777, 0o2000)
            );
            // Nobody but root gives files away.
            assert!(somebody(m, "echo x > own") && !somebody(m, "chown 0 own") && !somebody(m, "chgrp 0 own"));
        },
        |m| assert_eq!(mode(&m.join("root's")), 0o6777),
    );
}

#[test]
fn direct_and_synchronous_writes_are_plain_files() {
    let content = random(6, 1 << 20);
    on_mount(
        "O_DIRECT",
        "128M",
        |m| {
            let direct = |name: &str| {
                let flags = OFlags::DIRECT.bits() as i32;
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .custom_flags(flags)
                    .open(m.join(name))
            };
            let f = direct("f").unwrap();
            let mut buffer = vec![0u8; (1 << 20) + 4096];
            let skip = buffer.as_ptr().align_offset(4096);
            let aligned = &mut buffer[skip..skip + (1 << 20)];
            aligned.copy_from_slice(&content);
            f.write_all_at(aligned, 0).unwrap();
            assert!(fs::read(m.join("f")).unwrap() == content, "through the page cache");
            // What others write through the page cache is seen, and the other way round.
            rw(&m.join("f")).write_all_at(b"cached", 4096).unwrap();
            f.read_exact_at(&mut aligned[..8192], 0).unwrap();
            assert_eq!(&aligned[4096..4102], b"cached");
            f.write_all_at(&content[4096..8192], 4096).unwrap();
            let flags = (OFlags::SYNC | OFlags::APPEND).bits() as i32;
            let mut log = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(flags)
                .open(m.join("log"))
                .unwrap();
            (0..20).for_each(|i| writeln!(log, "line {i:02}").unwrap());
        },
        |m| {
            assert!(fs::read(m.join("f")).unwrap() == content);
            assert_eq!(fs::read_to_string(m.join("log")).unwrap().lines().count(), 20);
        },
    );
}

#[test]
fn limits_are_where_they_are_said_to_be() {
    on_mount(
        "limits",
        "256M",
        |m| {
            // A path of PATH_MAX is reached by steps.
            let name = "d".repeat(250);
            let mut deep = m.to_path_buf();
            while deep.as_os_str().len() + 251 < 4095 {
                deep.push(&name);
                fs::create_dir(&deep).unwrap();
            }
            fs::write(deep.join("f"), "deep").unwrap();
            fails(fs::metadata(deep.join(&name).join(&name)), Errno::NAMETOOLONG);
            // Many names of one file.
            fs::write(m.join("f"), "x").unwrap();
            (0..2000).for_each(|i| fs::hard_link(m.join("f"), m.join(format!("l{i}"))).unwrap());
            assert_eq!(fs::metadata(m.join("f")).unwrap().nlink(), 2001);
            // The largest offset is that of off_t.
            let f = rw(&m.join("far"));
            f.write_all_at(b"end", i64::MAX as u64 - 3).unwrap();
            assert_eq!(f.metadata().unwrap().len(), i64::MAX as u64);
            // Names of extended attributes.
            let set = |name: &str| rustix::fs::setxattr(m.join("f"), name, b"v", XattrFlags::empty());
            set(&format!("user.{}", "n".repeat(250))).unwrap();
            assert_eq!(set(&format!("user.{}", "n".repeat(251))), Err(Errno::RANGE));
            assert_eq!(set("user."), Err(Errno::INVAL));
            assert_eq!(set("system.other"), Err(Errno::OPNOTSUPP));
            set("trusted.agent").unwrap();
            set("security.label").unwrap();
        },
        |m| assert_eq!(fs::metadata(m.join("l1999")).unwrap().nlink(), 2001),
    );
}

/// `umount -f` under load: everybody who waits gets an error, the gateway says what happened and ends, and a new mount at
/// the same place works at once and has what was synced.
#[test]
fn a_forced_unmount_leaves_room_for_the_next_mount() {
    if !can_mount("forced unmount") {
        return;
    }
    let mut lab = Lab::new("256M");
    lab.serve();
    let m = lab.mount("m", None);
    fs::write(m.join("kept"), random(7, 50_000)).unwrap();
    File::open(&m).unwrap().sync_all().unwrap();
    let mut open = rw(&m.join("open"));
    let writer = std::thread::spawn(move || {
        loop {
            if let Err(error) = open.write_all(&[1; 10_000]) {
                return (error.raw_os_error(), open.read(&mut [0; 10]).is_err());
            }
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    rustix::mount::unmount(&m, rustix::mount::UnmountFlags::FORCE | rustix::mount::UnmountFlags::DETACH).unwrap();
    let (errno, dead) = writer.join().unwrap();
    let errors = [Errno::NOTCONN, Errno::CONNABORTED, Errno::IO].map(|e| Some(e.raw_os_error()));
    assert!(errors.contains(&errno) && dead, "{errno:?}");
    assert!(!is_mounted(&m));
    lab.wait_mount(&m);
    let m = lab.mount("m", None);
    assert!(fs::read(m.join("kept")).unwrap() == random(7, 50_000));
    fs::write(m.join("next"), "works").unwrap();
    lab.unmount(&m);
    lab.stop_server();
    lab.check();
}

/// Nothing is synced: what write(2) took on a full device is there all the same, and what it could not take it refused.
#[test]
fn a_full_device_refuses_the_write_and_loses_none_that_it_took() {
    const CHUNK: usize = 100_000;
    let taken = std::cell::Cell::new(0);
    let same = |m: &Path| {
        let found = fs::read(m.join("f")).unwrap();
        assert!(found.len() >= taken.get() * CHUNK, "{} of {} chunks are left", found.len() / CHUNK, taken.get());
        for (i, chunk) in found.chunks(CHUNK).take(taken.get()).enumerate() {
            assert!(chunk == random(i as u64, CHUNK), "chunk {i} of {}", taken.get());
        }
    };
    on_mount(
        "ENOSPC",
        "64M",
        |m| {
            let mut f = rw(&m.join("f"));
            let error = loop {
                match f.write_all(&random(taken.get() as u64, CHUNK)) {
                    Ok(()) => taken.set(taken.get() + 1),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{error} after {} chunks", taken.get());
            assert!(taken.get() > 50, "full after {} chunks", taken.get());
            drop(f);
            same(m);
            assert!(rustix::fs::statvfs(m).unwrap().f_bavail < 1000, "it is full");
            fs::remove_file(m.join("f")).unwrap();
            wait_until("there is room again", Duration::from_secs(20), || {
                File::open(m).unwrap().sync_all().unwrap();
                rustix::fs::statvfs(m).unwrap().f_bavail as usize * 4096 > taken.get() * CHUNK * 3 / 4
            });
            fs::write(m.join("f"), random(0, CHUNK)).unwrap();
            taken.set(1);
        },
        same,
    );
}
