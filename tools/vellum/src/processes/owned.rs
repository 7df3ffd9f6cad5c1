//! What this process started and made, so that a signal leaves nothing of it behind: processes, mounts, temporary
//! directories.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, exit};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use tempfile::TempDir;
use vellum_fuse::{Unmount, mounts_below, unmount};

/// Times that a directory is removed in which a thread of ours may still be writing.
const REMOVALS: usize = 20;

static OWNED: Mutex<Owned> = Mutex::new(Owned { processes: BTreeMap::new(), dir: None });

struct Owned {
    /// By number; the descriptor names this process and no later one of its number.
    processes: BTreeMap<u32, OwnedFd>,
    dir: Option<PathBuf>,
}

fn owned() -> MutexGuard<'static, Owned> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary directory, and what is mounted below it. One at a time.
pub struct Workplace {
    dir: TempDir,
}

impl Workplace {
    pub fn new(prefix: &str, within: &Path) -> Result<Workplace> {
        let mut owned = owned();
        ensure!(owned.dir.is_none(), "one temporary directory at a time");
        let made = within.canonicalize().and_then(|within| tempfile::Builder::new().prefix(prefix).tempdir_in(within));
        let dir = made.with_context(|| format!("a temporary directory in {}", within.display()))?;
        owned.dir = Some(dir.path().to_owned());
        Ok(Workplace { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        let mut owned = owned(); // a signal waits until it is gone
        let _ = std::fs::remove_dir_all(self.path()); // what is left the directory's own drop tries again
        owned.dir = None;
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP end what this process owns, then itself.
pub fn end_with_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot wait for signals")?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Locked until the end: nothing more is started, and whoever gives something back waits.
            let owned = owned();
            owned.end();
            let _ = emulate_default_handler(signal);
            exit(1);
        }
    });
    Ok(())
}

impl Owned {
    /// Best effort: there is nobody left to tell.
    fn end(&self) {
        for process in self.processes.values() {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        let Some(dir) = &self.dir else { return };
        for mount in mounts_below(dir).unwrap_or_default().iter().rev() {
            let _ = unmount(mount, Unmount::Lazy);
        }
        for _ in 0..REMOVALS {
            match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => std::thread::sleep(Duration::from_millis(50)),
                _ => return,
            }
        }
    }
}

/// A process that is killed when this is dropped.
pub struct Process {
    child: Child,
}

impl Process {
    pub fn start(command: &mut Command) -> Result<Process> {
        let mut owned = owned();
        let process = Process { child: command.spawn().with_context(|| format!("starting {command:?}"))? };
        let opened = pidfd_open(Pid::from_child(&process.child), PidfdFlags::empty());
        let known = opened.map(|descriptor| owned.processes.insert(process.id(), descriptor));
        drop(owned); // the process locks it when it is dropped
        known?;
        Ok(process)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Until it has ended; it must end well.
    pub fn finish(&mut self, what: &str) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "{what} ended with {status}");
        Ok(())
    }

    /// SIGKILL; it has ended then.
    pub fn kill(&mut self) {
        let _ = self.child.kill(); // an error says that it has ended
        let _ = self.child.wait();
    }

    /// SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::TERM)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        owned().processes.remove(&self.child.id());
    }
}
