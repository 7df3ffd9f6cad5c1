//! What a signal leaves of the commands that start others: no process, no mount, no file.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{VELLUM, can_mount, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};

const LONG: Duration = Duration::from_secs(60);

fn start(args: &[&str], within: &Path) -> Child {
    let mut command = Command::new(VELLUM);
    command.args(args).env("TMPDIR", within).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("it starts")
}

/// Mounts below a directory.
fn mounts(dir: &Path) -> Vec<PathBuf> {
    vellum_fuse::mounts_below(&dir.canonicalize().expect("the directory")).expect("the mounts")
}

/// Processes that were started for something in that directory.
fn processes(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().expect("UTF-8");
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(dir)).collect()
}

/// Sends the signal once the command has mounted, and sees that nothing is left.
fn ends_with(signal: Signal, args: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = start(args, dir.path());
    wait_until("a mount", LONG, || !mounts(dir.path()).is_empty());
    wait_until("its processes", LONG, || processes(dir.path()).iter().any(|line| line.contains("mount")));
    kill_process(Pid::from_child(&child), signal).expect("the signal");
    let status = wait_for(&mut child, LONG).expect("it ends");
    assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
    assert_eq!(mounts(dir.path()), Vec::<PathBuf>::new());
    wait_until("the end of all processes", LONG, || processes(dir.path()).is_empty());
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("the directory").flatten().map(|e| e.path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn quickstart_leaves_nothing() {
    if can_mount("quickstart_leaves_nothing") {
        ends_with(Signal::TERM, &["quickstart"]);
        ends_with(Signal::INT, &["quickstart"]);
    }
}

#[test]
fn bench_leaves_nothing() {
    if can_mount("bench_leaves_nothing") {
        ends_with(Signal::TERM, &["bench", "directory", "--quick"]);
    }
}
