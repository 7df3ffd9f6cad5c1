//! A filesystem in memory, and a way to mount it for one test. The transport's tests stand on it.
#![allow(dead_code)] // each test binary uses its part

pub mod memfs;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use vellum_fuse::{End, MountOptions, Notifier, Statistics, Unmount, Unmounter, mount_filesystem};
use vellum_rt as rt;

pub use memfs::MemFs;

/// Whether real mounts can be made here. A skip is printed with the test's name; under CI it is a failure.
pub fn can_mount(test: &str) -> bool {
    let able = rustix::process::geteuid().is_root()
        && std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !able {
        assert!(std::env::var_os("CI").is_none(), "{test}: CI must be able to mount (root and /dev/fuse)");
        eprintln!("SKIPPED {test}: needs root and /dev/fuse");
    }
    able
}

/// A mounted filesystem on a reactor thread of its own.
pub struct TestMount {
    dir: tempfile::TempDir,
    pub unmounter: Unmounter,
    pub notifier: Notifier,
    server: Option<JoinHandle<(End, Statistics)>>,
}

impl TestMount {
    pub fn new(options: MountOptions, make: impl FnOnce() -> MemFs + Send + 'static) -> TestMount {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        let (tell, told) = mpsc::channel();
        let server = std::thread::spawn(move || {
            rt::native::block_on(async move {
                let handle = mount_filesystem(Rc::new(make()), &path, &options).unwrap();
                tell.send((handle.unmounter(), handle.notifier())).unwrap();
                let end = handle.until_unmounted().await;
                (end, handle.statistics())
            })
        });
        let (unmounter, notifier) = told.recv().unwrap();
        TestMount { dir, unmounter, notifier, server: Some(server) }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Unmounts and answers how the session ended and what it counted.
    pub fn finish(mut self, how: Unmount) -> (End, Statistics) {
        self.unmounter.unmount(how).unwrap();
        self.server.take().unwrap().join().unwrap()
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        if self.server.is_some() {
            let _ = self.unmounter.unmount(Unmount::Force);
        }
    }
}

/// Runs `f` on this thread's own reactor.
pub fn block_on<F: Future>(f: F) -> F::Output {
    rt::native::block_on(f)
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never came true: {what}");
}
