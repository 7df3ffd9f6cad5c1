//! A lab for tests of the real binary: an image, a served engine, mounts; everything it started ends with it, by pid.
#![allow(dead_code)] // each test binary uses its own part of it

pub mod cluster;
pub mod files;
pub mod gateways;
pub mod load;
pub mod network;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use gateways::Gateways;

pub const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");

/// True when the test can mount. Without it the test says so and passes, but under CI it fails.
pub fn can_mount(test: &str) -> bool {
    let ok = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !ok {
        assert!(std::env::var_os("CI").is_none(), "{test} needs root and /dev/fuse, and CI must have both");
        println!("SKIPPED {test}: it needs root and /dev/fuse");
    }
    ok
}

pub fn vellum(args: &[&str]) -> Output {
    Command::new(VELLUM).args(args).stdin(Stdio::null()).output().expect("the binary starts")
}

/// Runs the binary and expects success; returns stdout.
pub fn vellum_ok(args: &[&str]) -> String {
    let out = vellum(args);
    assert!(
        out.status.success(),
        "vellum {args:?} ended with {}\nstdout: {}\nstderr: {}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).expect("output is UTF-8")
}

/// Runs the binary and expects this exit code, a message with each of `says`, and no panic; returns stderr.
pub fn vellum_fails(args: &[&str], code: i32, says: &[&str]) -> String {
    let out = vellum(args);
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let all = format!("vellum {args:?} ended with {}\nstdout: {stdout}\nstderr: {stderr}", out.status);
    assert_eq!(out.status.code(), Some(code), "{all}");
    assert!(!stderr.contains("panicked"), "{all}");
    for text in says {
        assert!(stderr.contains(text) || stdout.contains(text), "{text:?} is not said: {all}");
    }
    stderr.into_owned()
}

/// Polls until `ready`; panics with `what` after the limit.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn is_mounted(dir: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4) == dir.to_str())
}

pub struct Lab {
    pub dir: tempfile::TempDir,
    server: Option<Child>,
    mounts: Gateways,
}

impl Lab {
    /// A fresh filesystem of `size` (such as "512M").
    pub fn new(size: &str) -> Lab {
        let lab = Lab { dir: tempfile::tempdir().expect("a directory"), server: None, mounts: Gateways::default() };
        vellum_ok(&["mkfs", lab.image().to_str().expect("UTF-8"), "--size", size]);
        lab
    }

    /// Where everything started here writes its stderr.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("stderr.log")
    }

    fn stderr(&self) -> Stdio {
        std::fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("a log").into()
    }

    pub fn image(&self) -> PathBuf {
        self.dir.path().join("vellum.img")
    }

    pub fn image_str(&self) -> String {
        self.image().display().to_string()
    }

    pub fn endpoint(&self) -> String {
        format!("unix:{}", self.dir.path().join("engine.sock").display())
    }

    pub fn serve(&mut self) {
        self.serve_with(&[]);
    }

    pub fn serve_with(&mut self, more: &[&str]) {
        assert!(self.server.is_none());
        let socket = self.dir.path().join("engine.sock");
        let child = Command::new(VELLUM)
            .args(["serve", &self.image_str(), "--listen", &self.endpoint()])
            .args(more)
            .stdin(Stdio::null())
            .stderr(self.stderr())
            .spawn()
            .expect("serve starts");
        self.server = Some(child);
        wait_until("the engine serves", Duration::from_secs(30), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().expect("a server runs").id()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill_server(&mut self) {
        let mut child = self.server.take().expect("a server runs");
        child.kill().expect("SIGKILL");
        child.wait().expect("it ends");
    }

    /// SIGTERM; the server must end by itself with success.
    pub fn stop_server(&mut self) {
        let mut child = self.server.take().expect("a server runs");
        terminate(&child);
        let status = wait_for(&mut child, Duration::from_secs(30)).expect("the server ends on SIGTERM");
        assert!(status.success(), "the server ended with {status}");
    }

    /// Mounts `endpoint` (given, or this lab's) at a fresh directory of that name.
    pub fn mount(&mut self, name: &str, endpoint: Option<&str>) -> PathBuf {
        self.mount_with(name, endpoint, &[])
    }

    pub fn mount_with(&mut self, name: &str, endpoint: Option<&str>, more: &[&str]) -> PathBuf {
        let at = self.dir.path().join(name);
        let mut command = Command::new(VELLUM);
        command.args(["-v", "mount", endpoint.unwrap_or(&self.endpoint())]).args(more).stderr(self.stderr());
        self.mounts.start(&mut command, &at);
        at
    }

    pub fn mount_pid(&self, at: &Path) -> u32 {
        self.mounts.pid(at)
    }

    /// SIGKILL to a gateway; its dead mount is detached.
    pub fn kill_mount(&mut self, at: &Path) {
        self.mounts.kill(at);
    }

    /// A gateway whose mount somebody else took away must end by itself.
    pub fn wait_mount(&mut self, at: &Path) {
        self.mounts.wait(at);
    }

    /// Unmounts in the ordinary way; the gateway must end by itself with success.
    pub fn unmount(&mut self, at: &Path) {
        self.mounts.unmount(at);
    }

    /// SIGTERM to a gateway; it must unmount and end by itself with success.
    pub fn stop_mount(&mut self, at: &Path) {
        self.mounts.stop(at);
    }

    /// The device must verify clean; nobody may serve it.
    pub fn check(&self) {
        vellum_ok(&["check", &self.image_str()]);
    }
}

pub fn terminate(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
}

pub fn wait_for(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().expect("wait") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.mounts = Gateways::default();
        if let Some(child) = &mut self.server {
            let _ = child.kill();
            let _ = child.wait();
        }
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let told: Vec<&str> = log.lines().filter(|line| !line.contains(" INFO ")).collect();
        if std::thread::panicking() {
            told.iter().for_each(|line| eprintln!("{line}"));
        } else {
            assert!(!log.contains("panicked"), "something panicked: {log}");
        }
    }
}
