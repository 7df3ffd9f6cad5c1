//! A cluster of real processes on one image: members, mounts with all endpoints, and a load that knows what was
//! acknowledged. Everything started here ends with it, by pid.
#![allow(dead_code)] // each test binary uses its own part of it

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vellum_base::prng::Prng;

use super::{VELLUM, is_mounted, vellum, vellum_ok, wait_for, wait_until};

/// A network namespace with a loopback of its own, in which a member's address can be cut off.
pub struct Network {
    name: String,
}

impl Network {
    fn new() -> Network {
        let network = Network { name: format!("vellum-test-{}", std::process::id()) };
        let ok = |args: &[&str]| assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
        ok(&["netns", "add", &network.name]);
        ok(&["-n", &network.name, "link", "set", "lo", "up"]);
        network
    }

    fn add(&self, address: &str) {
        let args = ["-n", &self.name, "addr", "add", &format!("{address}/32"), "dev", "lo"];
        assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
    }

    /// Nothing gets to or from this address any more; or again.
    pub fn cut(&self, address: &str, cut: bool) {
        let verb = if cut { "add" } else { "del" };
        let args = ["-n", &self.name, "route", verb, "blackhole", address, "table", "local"];
        assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub struct ClusterLab {
    pub dir: tempfile::TempDir,
    pub addresses: Vec<String>,
    members: Vec<Option<Child>>,
    mounts: Vec<(PathBuf, Child)>,
    pub network: Option<Network>,
    /// The authority whose keys members (`nodes/nN`) and mounts (`clients/gw`) have.
    pub keys: Option<PathBuf>,
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
    /// A fresh filesystem of `size` with so many slots; nobody serves it yet.
    pub fn new(slots: usize, size: &str) -> ClusterLab {
        let addresses = (0..slots).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        ClusterLab::with(addresses, size, None)
    }

    /// In a network namespace, where each member has an address of its own.
    pub fn in_network(slots: usize, size: &str) -> ClusterLab {
        let addresses = (0..slots).map(|slot| format!("127.0.0.{}:7400", slot + 2)).collect();
        ClusterLab::with(addresses, size, Some(Network::new()))
    }

    /// In a network namespace, at addresses beyond loopback, with keys.
    pub fn with_keys(slots: usize, size: &str) -> ClusterLab {
        let network = Network::new();
        let hosts: Vec<String> = (0..slots).map(|slot| format!("10.77.0.{}", slot + 2)).collect();
        hosts.iter().for_each(|host| network.add(host));
        let mut lab = ClusterLab::with(hosts.iter().map(|host| format!("{host}:7400")).collect(), size, Some(network));
        lab.issue_keys(&hosts);
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

    /// The binary, in the lab's network, with the keys of that bundle.
    pub fn command_of(&self, bundle: &str) -> Command {
        let mut command = self.command();
        if let Some(keys) = &self.keys {
            command.env("VELLUM_KEYS", keys.join(bundle));
        }
        command
    }

    fn with(addresses: Vec<String>, size: &str, network: Option<Network>) -> ClusterLab {
        let dir = tempfile::tempdir().expect("a directory");
        let members = addresses.iter().map(|_| None).collect();
        let lab = ClusterLab { dir, addresses, members, mounts: Vec::new(), network, keys: None };
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

    /// The binary, in the lab's network.
    pub fn command(&self) -> Command {
        match &self.network {
            None => Command::new(VELLUM),
            Some(network) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{}", network.name)).arg("--").arg(VELLUM);
                command
            }
        }
    }

    pub fn start(&mut self, slot: usize) {
        assert!(self.members[slot].is_none(), "slot {slot} runs");
        let child = self
            .command_of(&format!("nodes/n{slot}"))
            .args(["-v", "serve", &self.image(), "--slot", &slot.to_string(), "--cores", "0"])
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
        fs::create_dir_all(&at).expect("a mount point");
        let child = self
            .command_of("clients/gw")
            .args(["-v", "mount", &self.endpoints(), at.to_str().expect("UTF-8")])
            .stdin(Stdio::null())
            .stderr(self.log(&format!("{name}.log")))
            .spawn()
            .expect("mount starts");
        self.mounts.push((at.clone(), child));
        wait_until("the mount is there", Duration::from_secs(30), || is_mounted(&at));
        at
    }

    /// SIGKILL to a gateway; its dead mount is detached.
    pub fn kill_mount(&mut self, at: &Path) {
        let index = self.mounts.iter().position(|(dir, _)| dir == at).expect("a mount");
        let (dir, mut child) = self.mounts.swap_remove(index);
        child.kill().expect("SIGKILL");
        child.wait().expect("it ends");
        let _ = rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH);
    }

    pub fn unmount(&mut self, at: &Path) {
        let index = self.mounts.iter().position(|(dir, _)| dir == at).expect("a mount");
        let (dir, mut child) = self.mounts.swap_remove(index);
        wait_until("the mount is not busy", Duration::from_secs(10), || {
            rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::empty()).is_ok()
        });
        let status = wait_for(&mut child, Duration::from_secs(30)).expect("the gateway ends after the unmount");
        assert!(status.success(), "the gateway ended with {status}");
    }

    /// Everything that runs ends in order, and the device is clean.
    pub fn finish(&mut self) {
        let mounts: Vec<PathBuf> = self.mounts.iter().map(|(dir, _)| dir.clone()).collect();
        mounts.iter().for_each(|at| self.unmount(at));
        // All at once: the last of them has no majority to ask.
        let running: Vec<usize> = (0..self.members.len()).filter(|slot| self.members[*slot].is_some()).collect();
        running.iter().for_each(|slot| self.terminate(*slot));
        running.iter().for_each(|slot| self.wait_stopped(*slot));
        vellum_ok(&["check", &self.image()]);
    }
}

impl Drop for ClusterLab {
    fn drop(&mut self) {
        for (dir, child) in &mut self.mounts {
            let _ = rustix::mount::unmount(&*dir, rustix::mount::UnmountFlags::DETACH);
            let _ = child.kill();
            let _ = child.wait();
        }
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

/// Content of a file is a function of its seed and length.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    Prng::new(seed).fill(&mut bytes);
    bytes
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Path below the mount: seed and length of what fsync acknowledged last.
    files: Mutex<BTreeMap<PathBuf, (u64, usize)>>,
    /// Per writer: when its last acknowledged operation began, and when it was acknowledged.
    last: Mutex<Vec<Option<(Instant, Instant)>>>,
    errors: Mutex<Vec<String>>,
}

/// Writers on a mount, each in a directory of its own: create or replace, fsync, remember.
pub struct Load {
    shared: Arc<Shared>,
    mount: PathBuf,
    writers: Vec<std::thread::JoinHandle<()>>,
}

/// Files of one writer that are replaced again and again; more are not kept, so that the image stays small.
const FILES: u64 = 200;

impl Load {
    pub fn start(mount: &Path, name: &str, writers: usize) -> Load {
        let shared = Arc::new(Shared { last: Mutex::new(vec![None; writers]), ..Shared::default() });
        let threads = (0..writers)
            .map(|n| {
                let (shared, mount) = (shared.clone(), mount.to_owned());
                let dir = PathBuf::from(format!("{name}-{n}"));
                std::thread::spawn(move || {
                    if let Err(error) = write_until_told(&shared, &mount, &dir, n) {
                        shared.errors.lock().unwrap().push(format!("{}: {error}", dir.display()));
                    }
                })
            })
            .collect();
        Load { shared, mount: mount.to_owned(), writers: threads }
    }

    /// Waits until every writer has an acknowledgement of an operation that began after `event`; how long that took from
    /// there to the last of them.
    pub fn continues_after(&self, event: Instant, limit: Duration) -> Duration {
        loop {
            let errors = self.shared.errors.lock().unwrap().clone();
            assert!(errors.is_empty(), "applications saw {errors:?}");
            let last = self.shared.last.lock().unwrap().clone();
            if last.iter().all(|one| one.is_some_and(|(began, _)| began > event)) {
                let when = last.iter().flatten().map(|(_, acknowledged)| *acknowledged).max().unwrap_or(event);
                return when - event;
            }
            assert!(event.elapsed() < limit, "the load does not go on within {limit:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn acknowledged(&self) -> usize {
        self.shared.files.lock().unwrap().len()
    }

    /// Ends the writers; errors that they met.
    pub fn stop(&mut self) -> Vec<String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.writers.drain(..).for_each(|writer| writer.join().expect("a writer panicked"));
        self.shared.errors.lock().unwrap().clone()
    }

    /// What was acknowledged is at `mount`, byte for byte.
    pub fn verify(&self, mount: &Path) {
        for (path, (seed, len)) in self.shared.files.lock().unwrap().iter() {
            let found = fs::read(mount.join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(found.len(), *len, "{}: its length", path.display());
            assert!(found == content(*seed, *len), "{}: its content", path.display());
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn write_until_told(shared: &Shared, mount: &Path, dir: &Path, n: usize) -> std::io::Result<()> {
    let mut prng = Prng::new(77 + n as u64);
    fs::create_dir(mount.join(dir))?;
    File::open(mount.join(dir))?.sync_all()?;
    while !shared.stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let name = dir.join(format!("f{}", prng.below(FILES)));
        let len = match prng.below(4) {
            0 => prng.below(900) as usize,
            1 => 4096,
            2 => prng.below(20_000) as usize,
            _ => prng.below(120_000) as usize,
        };
        let seed = prng.next_u64();
        let temporary = mount.join(dir.join("temporary"));
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&temporary)?;
        file.write_all(&content(seed, len))?;
        file.sync_all()?;
        // From here on it is the old file or the new one.
        shared.files.lock().unwrap().remove(&name);
        fs::rename(&temporary, mount.join(&name))?;
        File::open(mount.join(dir))?.sync_all()?;
        shared.files.lock().unwrap().insert(name, (seed, len));
        if let Some(last) = shared.last.lock().unwrap().get_mut(n) {
            *last = Some((began, Instant::now()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
