//! The transport under a real kernel: a filesystem in memory, mounted, used through system calls.

mod common;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::memfs::Watch;
use common::{MemFs, TestMount, block_on, can_mount, eventually};
use vellum_fuse::{End, MountError, MountOptions, Statistics, Unmount, mount_filesystem};

fn mounted() -> (TestMount, Arc<Watch>) {
    let watch = Arc::new(Watch::default());
    let theirs = watch.clone();
    (TestMount::new(MountOptions::default(), move || MemFs::new(theirs)), watch)
}

#[test]
fn files_directories_and_links_behave() {
    if !can_mount("files_directories_and_links_behave") {
        return;
    }
    let (mount, _) = mounted();
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("d/a"), b"hello").unwrap();
    assert_eq!(fs::read(mount.join("d/a")).unwrap(), b"hello");
    fs::hard_link(mount.join("d/a"), mount.join("b")).unwrap();
    assert_eq!(fs::metadata(mount.join("b")).unwrap().nlink(), 2);
    symlink("d/a", mount.join("s")).unwrap();
    assert_eq!(fs::read_link(mount.join("s")).unwrap().to_str(), Some("d/a"));
    assert_eq!(fs::read(mount.join("s")).unwrap(), b"hello");
    fs::rename(mount.join("b"), mount.join("c")).unwrap();
    assert_eq!(fs::metadata(mount.join("b")).unwrap_err().kind(), ErrorKind::NotFound);
    fs::remove_file(mount.join("c")).unwrap();
    assert_eq!(fs::remove_dir(mount.join("d")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    let long = mount.join(&"x".repeat(255));
    fs::write(&long, b"").unwrap();
    assert!(long.exists());
    let file = File::options().write(true).open(mount.join("d/a")).unwrap();
    file.set_len(2).unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(mount.join("d/a")).unwrap(), b"he");
    let (end, statistics) = mount.finish_after(file);
    assert_eq!(end, End::Unmounted);
    let count = |name| statistics.ops.iter().find(|op| op.name == name).map_or(0, |op| op.count);
    assert_eq!((count("mkdir"), count("symlink"), count("link"), count("fsync")), (1, 1, 1, 1), "{statistics:#?}");
    assert!(count("destroy") <= 1 && statistics.malformed == 0);
}

#[test]
fn large_files_come_back_as_they_were() {
    if !can_mount("large_files_come_back_as_they_were") {
        return;
    }
    let (mount, _) = mounted();
    let content: Vec<u8> = (0..5_000_011u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(mount.join("f"), &content).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert!(fs::read(mount.join("f")).unwrap() == content);
    let mut file = File::options().read(true).write(true).open(mount.join("f")).unwrap();
    file.write_all_at(b"middle", 3_000_001).unwrap();
    file.seek(SeekFrom::Start(3_000_000)).unwrap();
    let mut part = [0; 8];
    file.read_exact(&mut part).unwrap();
    assert_eq!(&part[1..7], b"middle");
}

#[test]
fn a_listing_of_many_names_is_whole() {
    if !can_mount("a_listing_of_many_names_is_whole") {
        return;
    }
    let (mount, _) = mounted();
    for i in 0..3000 {
        File::create(mount.join(&format!("file-{i}"))).unwrap();
    }
    let mut names: Vec<usize> = fs::read_dir(mount.path())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            assert!(entry.metadata().unwrap().is_file());
            entry.file_name().to_str().unwrap().strip_prefix("file-").unwrap().parse().unwrap()
        })
        .collect();
    names.sort_unstable();
    assert_eq!(names, (0..3000).collect::<Vec<_>>());
}

#[test]
fn attributes_with_values_up_to_64_kib() {
    if !can_mount("attributes_with_values_up_to_64_kib") {
        return;
    }
    let (mount, _) = mounted();
    let path = mount.join("f");
    fs::write(&path, b"").unwrap();
    let value = vec![9u8; 65_536];
    rustix::fs::setxattr(&path, "user.big", &value, rustix::fs::XattrFlags::empty()).unwrap();
    let mut room = vec![0u8; 65_536];
    assert_eq!(rustix::fs::getxattr(&path, "user.big", &mut room[..]).unwrap(), 65_536);
    assert_eq!(room, value);
    assert_eq!(rustix::fs::getxattr(&path, "user.big", &mut room[..10]).unwrap_err(), rustix::io::Errno::RANGE);
    assert_eq!(rustix::fs::getxattr(&path, "user.none", &mut room[..]).unwrap_err(), rustix::io::Errno::NODATA);
    let len = rustix::fs::listxattr(&path, &mut room[..]).unwrap();
    assert_eq!(&room[..len], b"user.big\0");
}

/// Every lookup that was answered is given back: after the caches are dropped none is left.
#[test]
fn forgets_are_exact() {
    if !can_mount("forgets_are_exact") {
        return;
    }
    let (mount, watch) = mounted();
    for i in 0..500 {
        File::create(mount.join(&format!("f{i}"))).unwrap();
    }
    for entry in fs::read_dir(mount.path()).unwrap() {
        entry.unwrap().metadata().unwrap();
    }
    assert!(watch.lookups.load(SeqCst) >= 500);
    eventually("all lookups are forgotten", || {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        watch.lookups.load(SeqCst) == 0
    });
}

/// A reader that waits for data can be killed, and leaves nothing behind.
#[test]
fn a_waiting_reader_dies_at_once() {
    if !can_mount("a_waiting_reader_dies_at_once") {
        return;
    }
    let (mount, watch) = mounted();
    fs::write(mount.join("wait"), b"").unwrap();
    let child = Command::new("dd")
        .args(["bs=4096", "count=1", "of=/dev/null", &format!("if={}", mount.join("wait").display())])
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.unwrap();
    eventually("the reader is parked", || watch.parked.load(SeqCst) == 1);
    let began = Instant::now();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "took {:?}", began.elapsed());
    eventually("the parked read is dropped", || watch.parked.load(SeqCst) == 0);
    assert_eq!(watch.dropped.load(SeqCst), 1);
    let (_, statistics) = mount.finish(Unmount::WhenIdle);
    assert!(statistics.interrupted >= 1 && statistics.in_flight == 0, "{statistics:#?}");
}

/// Another reader's data arrives while one waits: the reactor goes on meanwhile.
#[test]
fn a_waiting_reader_blocks_nobody_and_is_answered() {
    if !can_mount("a_waiting_reader_blocks_nobody_and_is_answered") {
        return;
    }
    let (mount, watch) = mounted();
    fs::write(mount.join("wait"), b"").unwrap();
    let path = mount.join("wait");
    let child = Command::new("dd")
        .args(["bs=4096", "count=1", &format!("if={}", path.display())])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the reader is parked", || watch.parked.load(SeqCst) == 1);
    fs::write(mount.join("other"), b"x").unwrap();
    fs::write(&path, b"recalled").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"recalled");
    assert_eq!(watch.dropped.load(SeqCst), 0);
}

#[test]
fn a_forced_unmount_ends_those_who_wait() {
    if !can_mount("a_forced_unmount_ends_those_who_wait") {
        return;
    }
    let (mount, watch) = mounted();
    fs::write(mount.join("wait"), b"").unwrap();
    let mut child = Command::new("dd")
        .args(["bs=4096", "of=/dev/null", &format!("if={}", mount.join("wait").display())])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the reader is parked", || watch.parked.load(SeqCst) == 1);
    let (end, statistics) = mount.finish(Unmount::Force);
    assert_eq!((end, statistics.cut_off), (End::Aborted, 1));
    assert!(!child.wait().unwrap().success());
    eventually("the parked read is dropped", || watch.parked.load(SeqCst) == 0);
}

#[test]
fn a_busy_mount_stays_unless_lazily_unmounted() {
    if !can_mount("a_busy_mount_stays_unless_lazily_unmounted") {
        return;
    }
    let (mount, _) = mounted();
    let mut file = File::create(mount.join("f")).unwrap();
    let busy = mount.unmounter.unmount(Unmount::WhenIdle).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
    mount.unmounter.unmount(Unmount::Lazy).unwrap();
    assert!(!mount.join("f").exists());
    file.write_all(b"still there").unwrap();
    drop(file);
}

/// Names are cached while their time runs; a notification ends that.
#[test]
fn notifications_drop_what_the_kernel_keeps() {
    if !can_mount("notifications_drop_what_the_kernel_keeps") {
        return;
    }
    let watch = Arc::new(Watch::default());
    let theirs = watch.clone();
    let mount = TestMount::new(MountOptions::default(), move || {
        let mut fs = MemFs::new(theirs);
        fs.ttl = Duration::from_secs(1000);
        fs
    });
    fs::write(mount.join("f"), b"x").unwrap();
    let ino = fs::metadata(mount.join("f")).unwrap().ino();
    let calls = || watch.lookup_calls.load(SeqCst);
    let before = calls();
    for _ in 0..10 {
        fs::metadata(mount.join("f")).unwrap();
    }
    assert_eq!(calls(), before, "cached");
    let notifier = mount.notifier.clone();
    block_on(async {
        notifier.inval_pages(ino, 0, 0).await.unwrap();
        notifier.inval_attributes(424_242).await.unwrap();
        notifier.inval_attributes_of([ino, 424_242, ino]).await.unwrap();
        notifier.queue_inval_entry(1, b"f").await;
    });
    eventually("the name is asked for again", || {
        fs::metadata(mount.join("f")).unwrap();
        calls() > before
    });
    let before = calls();
    block_on(async { notifier.inc_epoch().await }).unwrap();
    fs::metadata(mount.join("f")).unwrap();
    assert_eq!(calls(), before + 1, "the epoch ends all names");
}

/// What the kernel keeps only because it has memory goes when it is asked to forget it; what somebody uses stays.
#[test]
fn the_kernel_forgets_what_it_is_asked_to() {
    if !can_mount("the_kernel_forgets_what_it_is_asked_to") {
        return;
    }
    let (mount, watch) = mounted();
    let names: Vec<_> = (0..1000).map(|i| mount.join(&format!("f{i}"))).collect();
    let inos: Vec<u64> = names
        .iter()
        .map(|name| {
            fs::write(name, b"x").unwrap();
            fs::metadata(name).unwrap().ino()
        })
        .collect();
    let open = File::open(&names[7]).unwrap();
    let held = watch.lookups.load(SeqCst);
    assert!(held >= 1000, "the kernel holds {held}");
    let notifier = mount.notifier.clone();
    match block_on(async { notifier.prune(inos.iter().copied().chain([424_242])).await }) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            println!("SKIPPED: this kernel cannot be asked (before 6.18)");
            return;
        }
        result => result.unwrap(),
    }
    eventually("what nobody uses is forgotten", || watch.lookups.load(SeqCst) < 10);
    assert!(watch.lookups.load(SeqCst) >= 1, "an open file stays");
    assert_eq!(open.metadata().unwrap().ino(), inos[7]);
    assert_eq!(fs::read(&names[8]).unwrap(), b"x");
}

const GATEWAY_DIR: &str = "VELLUM_FUSE_TEST_GATEWAY_DIR";

/// No test by itself: the process that the next test kills.
#[test]
fn gateway_to_be_killed() {
    let Some(dir) = std::env::var_os(GATEWAY_DIR) else { return };
    block_on(async move {
        let fs = Rc::new(MemFs::new(Arc::default()));
        let handle = mount_filesystem(fs, dir.as_ref(), &MountOptions::default()).unwrap();
        handle.until_unmounted().await
    });
}

fn path_is_mounted(path: &std::path::Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.contains(&format!(" {} ", path.display())))
}

/// The gateway dies: users get ENOTCONN, and the place can be mounted again at once.
#[test]
fn a_dead_gateway_leaves_a_place_to_mount_again() {
    if !can_mount("a_dead_gateway_leaves_a_place_to_mount_again") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    let mut gateway = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "gateway_to_be_killed", "--nocapture"])
        .env(GATEWAY_DIR, &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the gateway serves", || path_is_mounted(&path) && fs::write(path.join("f"), b"x").is_ok());
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    eventually("the mount is dead", || fs::metadata(&path).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN)));
    let end = block_on(async {
        let fs = Rc::new(MemFs::new(Arc::default()));
        let handle = mount_filesystem(fs.clone(), &path, &MountOptions::default()).unwrap();
        assert!(matches!(mount_filesystem(fs, &path, &MountOptions::default()), Err(MountError::AlreadyMounted(_))));
        // The refused mount's look at the place may still be under way.
        while handle.unmount(Unmount::WhenIdle).await.is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY)) {
            vellum_rt::sleep(Duration::from_millis(10)).await;
        }
        handle.until_unmounted().await
    });
    assert_eq!(end, End::Unmounted);
    assert!(fs::metadata(&path).unwrap().is_dir());
}

impl TestMount {
    fn finish_after(self, file: File) -> (End, Statistics) {
        drop(file);
        self.finish(Unmount::WhenIdle)
    }
}
