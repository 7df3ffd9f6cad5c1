//! Requests that wait for ever, and who may end them; two readers of one mount.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use common::{block_on, can_mount, eventually};
use vellum_fuse::{
    Attr, Context, Dirents, End, Entry, Errno, Filesystem, MountOptions, Name, Payload, ReadRequest, Statfs, Unmount,
    mount_filesystem,
};

/// A shell with a handler for USR1 that opens a file itself, and waits in LOOKUP for it.
fn shell_that_waits(path: &Path) -> Child {
    let script = format!("trap : USR1; : < {}/wait", path.display());
    Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).spawn().unwrap()
}

/// Programs do not expect EINTR from looking up a name: a handled signal ends nothing. But the kernel tells of the first
/// signal only, so the KILL that follows must be noticed by ourselves.
#[test]
fn a_handled_signal_ends_no_lookup_but_a_kill_after_it_does() {
    if !can_mount("a_handled_signal_ends_no_lookup_but_a_kill_after_it_does") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().to_path_buf();
    let parked = Arc::new(AtomicU64::new(0));
    let (tell, told) = std::sync::mpsc::channel();
    let server = {
        let (path, parked) = (path.clone(), parked.clone());
        std::thread::spawn(move || {
            block_on(async move {
                let handle = mount_filesystem(Rc::new(Sleeper(parked)), &path, &MountOptions::default()).unwrap();
                tell.send(handle.unmounter()).unwrap();
                handle.until_unmounted().await;
                handle.statistics()
            })
        })
    };
    let unmounter = told.recv().unwrap();
    let mut shell = shell_that_waits(&path);
    eventually("it waits", || parked.load(SeqCst) == 1);
    let pid = rustix::process::Pid::from_child(&shell);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(parked.load(SeqCst), 1, "the lookup goes on");
    assert!(shell.try_wait().unwrap().is_none());
    shell.kill().unwrap();
    shell.wait().unwrap();
    eventually("it is dropped", || parked.load(SeqCst) == 0);
    eventually("the mount is idle", || unmounter.unmount(Unmount::WhenIdle).is_ok());
    assert_eq!(server.join().unwrap().interrupted, 1, "the kernel told once");
}

/// Two reactors read one mount through cloned descriptors; a waiting request is interrupted whoever hears of it.
#[test]
fn two_readers_share_a_mount() {
    if !can_mount("two_readers_share_a_mount") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    let (tell, told) = std::sync::mpsc::channel();
    let parked = Arc::new(AtomicU64::new(0));
    let first = {
        let (path, parked) = (path.clone(), parked.clone());
        std::thread::spawn(move || {
            block_on(async move {
                let handle = mount_filesystem(Rc::new(Sleeper(parked)), &path, &MountOptions::default()).unwrap();
                while handle.info().is_none() {
                    vellum_rt::sleep(Duration::from_millis(1)).await;
                }
                tell.send((handle.another_reader().unwrap(), handle.unmounter())).unwrap();
                handle.until_unmounted().await;
                handle.statistics()
            })
        })
    };
    let (reader, unmounter) = told.recv().unwrap();
    let second = {
        let parked = parked.clone();
        std::thread::spawn(move || block_on(async move { reader.run(Rc::new(Sleeper(parked))).await.unwrap() }))
    };
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || {
                (0..2000).for_each(|_| {
                    rustix::fs::statvfs(&path).unwrap();
                })
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    for _ in 0..10 {
        // Each waits for ever in `lookup`, at one reader or the other.
        let mut child = Command::new("stat").arg(path.join("wait")).stderr(Stdio::null()).spawn().unwrap();
        eventually("it waits", || parked.load(SeqCst) == 1);
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("it is dropped", || parked.load(SeqCst) == 0);
    }
    eventually("the mount is idle", || unmounter.unmount(Unmount::WhenIdle).is_ok());
    let statistics = first.join().unwrap();
    assert_eq!(second.join().unwrap(), End::Unmounted);
    let statfs = statistics.ops.iter().find(|op| op.name == "statfs").map_or(0, |op| op.count);
    assert!(statfs < 8000, "the other reader had its share");
}

/// Only a root directory, in which looking up a name takes for ever.
struct Sleeper(Arc<AtomicU64>);

struct Waits<'a>(&'a AtomicU64);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Filesystem for Sleeper {
    fn forget(&self, _ino: u64, _lookups: u64) {}
    async fn lookup(&self, _ctx: &Context, _parent: u64, _name: &Name) -> vellum_fuse::Result<Entry> {
        self.0.fetch_add(1, SeqCst);
        let _waits = Waits(&self.0);
        std::future::pending().await
    }
    async fn getattr(&self, _ctx: &Context, ino: u64, _fh: Option<u64>) -> vellum_fuse::Result<(Attr, Duration)> {
        Ok((Attr { ino, mode: libc::S_IFDIR | 0o755, nlink: 2, ..Attr::default() }, Duration::ZERO))
    }
    async fn read(&self, _ctx: &Context, _ino: u64, _request: &ReadRequest) -> vellum_fuse::Result<Payload> {
        Err(Errno::EISDIR)
    }
    async fn fsync(&self, _ctx: &Context, _ino: u64, _fh: u64, _data_only: bool) -> vellum_fuse::Result<()> {
        Ok(())
    }
    async fn readdir(&self, _c: &Context, _i: u64, _fh: u64, _at: u64, _list: &mut Dirents) -> vellum_fuse::Result<()> {
        Ok(())
    }
    async fn fsyncdir(&self, _ctx: &Context, _ino: u64, _fh: u64, _data_only: bool) -> vellum_fuse::Result<()> {
        Ok(())
    }
    async fn statfs(&self, _ctx: &Context, _ino: u64) -> vellum_fuse::Result<Statfs> {
        Ok(Statfs { bsize: 4096, namelen: 255, ..Statfs::default() })
    }
    async fn syncfs(&self, _ctx: &Context) -> vellum_fuse::Result<()> {
        Ok(())
    }
}
