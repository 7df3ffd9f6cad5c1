//! `vellum mount` processes and where they are mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::mount::UnmountFlags;

use super::{is_mounted, terminate, wait_for, wait_until};

/// They end with this, by pid.
#[derive(Default)]
pub struct Gateways(Vec<(PathBuf, Child)>);

impl Gateways {
    /// Starts `command`, which says where it writes its log, with the directory as its last argument.
    pub fn start(&mut self, command: &mut Command, at: &Path) {
        fs::create_dir_all(at).expect("a mount point");
        let child = command.arg(at).stdin(Stdio::null()).spawn().expect("mount starts");
        self.0.push((at.to_owned(), child));
        wait_until("the mount is there", Duration::from_secs(30), || is_mounted(at));
    }

    pub fn all(&self) -> Vec<PathBuf> {
        self.0.iter().map(|(dir, _)| dir.clone()).collect()
    }

    pub fn pid(&self, at: &Path) -> u32 {
        self.0.iter().find(|(dir, _)| dir == at).expect("a mount").1.id()
    }

    fn take(&mut self, at: &Path) -> (PathBuf, Child) {
        let index = self.0.iter().position(|(dir, _)| dir == at).expect("a mount");
        self.0.swap_remove(index)
    }

    /// SIGKILL; the dead mount is detached.
    pub fn kill(&mut self, at: &Path) {
        let (dir, mut child) = self.take(at);
        child.kill().expect("SIGKILL");
        child.wait().expect("it ends");
        let _ = rustix::mount::unmount(&dir, UnmountFlags::DETACH);
    }

    /// One whose mount somebody else took away must end by itself.
    pub fn wait(&mut self, at: &Path) {
        let (_, mut child) = self.take(at);
        wait_for(&mut child, Duration::from_secs(30)).expect("the gateway ends without its mount");
    }

    /// Unmounts in the ordinary way; the gateway must end by itself with success.
    pub fn unmount(&mut self, at: &Path) {
        let (dir, mut child) = self.take(at);
        wait_until("the mount is not busy", Duration::from_secs(10), || {
            rustix::mount::unmount(&dir, UnmountFlags::empty()).is_ok()
        });
        let status = wait_for(&mut child, Duration::from_secs(30)).expect("the gateway ends after the unmount");
        assert!(status.success(), "the gateway ended with {status}");
    }

    /// SIGTERM; it must unmount and end by itself with success.
    pub fn stop(&mut self, at: &Path) {
        let (dir, mut child) = self.take(at);
        terminate(&child);
        let status = wait_for(&mut child, Duration::from_secs(30)).expect("the gateway ends on SIGTERM");
        assert!(status.success(), "the gateway ended with {status}");
        assert!(!is_mounted(&dir), "the gateway left its mount");
    }
}

impl Drop for Gateways {
    fn drop(&mut self) {
        for (dir, child) in &mut self.0 {
            let _ = rustix::mount::unmount(&*dir, UnmountFlags::DETACH);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
