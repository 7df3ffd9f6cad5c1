//! A cluster of real processes on one image: members, and mounts with all endpoints. Everything started here ends with it,
//! by pid.

use std::fs::{self, OpenOptions};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::gateways::Gateways;
use super::network::{Network, command_in};
use super::{VELLUM, vellum, vellum_ok, wait_for};

pub struct ClusterLab {
    pub dir: tempfile::TempDir,
    pub addresses: Vec<String>,
    members: Vec<Option<Child>>,
    mounts: Gateways,
    /// Each member is a host of it; mounts run where the bridge is.
    pub network: Option<Network>,
    /// The authority whose keys members (`nodes/nN`) and mounts (`clients/gw`) have.
    keys: Option<PathBuf>,
}

/// A port that is free for both kinds of socket.
fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl ClusterLab {
    /// A fresh filesystem of `size` with so many slots; nobody serves it yet. The members are all on loopback.
    pub fn new(slots: usize, size: &str) -> ClusterLab {
        let addresses = (0..slots).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        ClusterLab::with(addresses, size, None)
    }

    /// With each member on a host of its own, and keys.
    pub fn on_hosts(slots: usize, size: &str) -> ClusterLab {
        let addresses = (0..slots).map(|slot| format!("{}:7400", Network::address(slot))).collect();
        let mut lab = ClusterLab::with(addresses, size, Some(Network::new(slots)));
        lab.issue_keys(&(0..slots).map(Network::address).collect::<Vec<_>>());
        lab
    }

    /// On loopback, with keys: who asks may be a node.
    pub fn with_keys_on_loopback(slots: usize, size: &str) -> ClusterLab {
        let mut lab = ClusterLab::new(slots, size);
        lab.issue_keys(&vec!["127.0.0.1".to_owned(); slots]);
        lab
    }

    /// Of an authority of its own: a node's for each slot, and a client's.
    fn issue_keys(&mut self, hosts: &[String]) {
        let authority = self.dir.path().join("authority");
        let at = authority.to_str().expect("UTF-8");
        vellum_ok(&["keys", "init", at]);
        for (slot, host) in hosts.iter().enumerate() {
            vellum_ok(&["keys", "node", at, &format!("n{slot}"), "--address", host]);
        }
        vellum_ok(&["keys", "client", at, "gw"]);
        self.keys = Some(authority);
    }

    fn with(addresses: Vec<String>, size: &str, network: Option<Network>) -> ClusterLab {
        let dir = tempfile::tempdir().expect("a directory");
        let members = addresses.iter().map(|_| None).collect();
        let lab = ClusterLab { dir, addresses, members, mounts: Gateways::default(), network, keys: None };
        let slots: Vec<String> = lab.addresses.iter().enumerate().map(|(i, a)| format!("{i}={a}")).collect();
        let image = lab.image();
        let mut args = vec!["mkfs", image.as_str(), "--size", size];
        slots.iter().for_each(|slot| args.extend(["--slot", slot]));
        vellum_ok(&args);
        lab
    }

    pub fn image(&self) -> String {
        self.dir.path().join("vellum.img").display().to_string()
    }

    pub fn endpoints(&self) -> String {
        self.addresses.iter().map(|a| format!("tcp:{a}")).collect::<Vec<_>>().join(",")
    }

    fn log(&self, name: &str) -> Stdio {
        OpenOptions::new().create(true).append(true).open(self.dir.path().join(name)).expect("a log").into()
    }

    /// The binary as a gateway or a command has it: beside the members, with no keys.
    pub fn command(&self) -> Command {
        self.network.as_ref().map_or_else(|| Command::new(VELLUM), |network| command_in(network.hub(), VELLUM))
    }

    /// The same with the keys of that bundle.
    pub fn command_of(&self, bundle: &str) -> Command {
        let mut command = self.command();
        self.give_keys(&mut command, bundle);
        command
    }

    /// The binary on the host of a slot, with its keys.
    fn node(&self, slot: usize) -> Command {
        let on_its_host = |network: &Network| command_in(&network.host(slot), VELLUM);
        let mut command = self.network.as_ref().map_or_else(|| Command::new(VELLUM), on_its_host);
        self.give_keys(&mut command, &format!("nodes/n{slot}"));
        command
    }

    fn give_keys(&self, command: &mut Command, bundle: &str) {
        if let Some(keys) = &self.keys {
            command.env("VELLUM_KEYS", keys.join(bundle));
        }
    }

    pub fn start(&mut self, slot: usize) {
        self.start_with(slot, &[]);
    }

    pub fn start_with(&mut self, slot: usize, more: &[&str]) {
        assert!(self.members[slot].is_none(), "slot {slot} runs");
        let child = self
            .node(slot)
            .args(["-v", "serve", &self.image(), "--slot", &slot.to_string(), "--cores", "0"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(self.log(&format!("member{slot}.out")))
            .stderr(self.log(&format!("member{slot}.log")))
            .spawn()
            .expect("serve starts");
        self.members[slot] = Some(child);
    }

    pub fn start_all(&mut self) {
        (0..self.addresses.len()).for_each(|slot| self.start(slot));
        self.wait_leader(0);
    }

    fn signal(&self, slot: usize, signal: Signal) {
        let child = self.members[slot].as_ref().expect("a member");
        kill_process(Pid::from_child(child), signal).expect("a signal");
    }

    pub fn pause(&self, slot: usize) {
        self.signal(slot, Signal::STOP);
    }

    pub fn resume(&self, slot: usize) {
        self.signal(slot, Signal::CONT);
    }

    /// SIGKILL, and waits for the end; also of one that was fenced.
    pub fn kill(&mut self, slot: usize) {
        let mut child = self.members[slot].take().expect("a member");
        let _ = child.kill();
        child.wait().expect("it ends");
    }

    /// Waits until another member has killed it.
    pub fn wait_fenced(&mut self, slot: usize) {
        let mut child = self.members[slot].take().expect("a member");
        let status = wait_for(&mut child, Duration::from_secs(30)).expect("the member is fenced");
        assert!(!status.success(), "it was killed, and did not end by itself: {status}");
    }

    /// SIGTERM.
    pub fn terminate(&self, slot: usize) {
        self.signal(slot, Signal::TERM);
    }

    /// SIGTERM; it must leave by itself with success.
    pub fn stop(&mut self, slot: usize) {
        self.terminate(slot);
        self.wait_stopped(slot);
    }

    /// After SIGTERM.
    pub fn wait_stopped(&mut self, slot: usize) {
        let mut child = self.members[slot].take().expect("a member");
        let status = wait_for(&mut child, Duration::from_secs(30)).expect("the member ends on SIGTERM");
        assert!(status.success(), "slot {slot} ended with {status}:\n{}", self.tail(&format!("member{slot}.log")));
    }

    pub fn is_running(&mut self, slot: usize) -> bool {
        self.members[slot].as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub fn tail(&self, log: &str) -> String {
        let text = fs::read_to_string(self.dir.path().join(log)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The slot and term that serve, by the blocks on the device: FENCE is there before the first request is answered.
    pub fn leader(&mut self) -> Option<(usize, u64)> {
        let out = vellum(&["quorum", "status", &self.image(), "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&out.stdout).ok()?;
        let leads = |slot: &serde_json::Value| {
            let (number, term) = (slot["slot"].as_u64()?, slot["elected"].as_u64()?);
            (slot["events"]["fence"]["term"].as_u64() == Some(term)).then_some((number as usize, term))
        };
        let newest = status["slots"].as_array()?.iter().filter_map(leads).max_by_key(|(_, term)| *term)?;
        self.is_running(newest.0).then_some(newest)
    }

    /// Waits for a leader of a greater term.
    pub fn wait_leader(&mut self, after: u64) -> (usize, u64) {
        let mut found = None;
        let start = Instant::now();
        while found.is_none() {
            if start.elapsed() > Duration::from_secs(60) {
                let logs: Vec<String> = (0..self.addresses.len())
                    .map(|slot| format!("--- slot {slot}\n{}", self.tail(&format!("member{slot}.log"))))
                    .collect();
                panic!("no leader after term {after} within a minute\n{}", logs.join("\n"));
            }
            // Twice: one may be about to be succeeded.
            let before = self.leader().filter(|(_, term)| *term > after);
            std::thread::sleep(Duration::from_millis(20));
            found = self.leader().filter(|leader| before == Some(*leader));
        }
        found.unwrap()
    }

    pub fn mount(&mut self, name: &str) -> PathBuf {
        let at = self.dir.path().join(name);
        let mut command = self.command_of("clients/gw");
        command.args(["-v", "mount", &self.endpoints()]).stderr(self.log(&format!("{name}.log")));
        self.mounts.start(&mut command, &at);
        at
    }

    /// SIGKILL to a gateway; its dead mount is detached.
    pub fn kill_mount(&mut self, at: &Path) {
        self.mounts.kill(at);
    }

    /// Everything that runs ends in order, and the device is clean.
    pub fn finish(&mut self) {
        self.mounts.all().iter().for_each(|at| self.mounts.unmount(at));
        // All at once: the last of them has no majority to ask.
        let running: Vec<usize> = (0..self.members.len()).filter(|slot| self.members[*slot].is_some()).collect();
        running.iter().for_each(|slot| self.terminate(*slot));
        running.iter().for_each(|slot| self.wait_stopped(*slot));
        vellum_ok(&["check", &self.image()]);
    }
}

impl Drop for ClusterLab {
    fn drop(&mut self) {
        self.mounts = Gateways::default();
        for child in self.members.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let logs = fs::read_dir(self.dir.path()).into_iter().flatten().flatten().map(|e| e.path());
        for log in logs.filter(|path| path.extension().is_some_and(|e| e == "log")) {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if std::thread::panicking() {
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {}", log.display());
                lines[lines.len().saturating_sub(60)..].iter().for_each(|line| eprintln!("{line}"));
            } else {
                for bad in ["panicked", "left queues open", "does not stop in order"] {
                    assert!(!text.contains(bad), "{bad}: {}: {text}", log.display());
                }
            }
        }
    }
}
