//! A leader that is stopped wakes up deposed: its host's key was preempted meanwhile, the device refuses what it writes,
//! and it ends by itself. Three members, each with a controller of its own on one shared namespace (the model, served
//! over vfio-user), no other fencer, nobody who kills.

mod common;

use std::fs::{File, read_to_string};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{VELLUM, vellum_fails, vellum_ok, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use vellum_nvme::Image;
use vellum_nvme::emu::{ControllerConfig, Medium, NamespaceConfig, Subsystem};
use vellum_nvme::vfio_user::{Server, ServerConfig};

const MEMBERS: usize = 3;
const SIZE_BYTES: u64 = 256 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// Controllers on one subsystem, a socket each.
struct Controllers {
    stops: Vec<Arc<AtomicBool>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Controllers {
    fn serve(sockets: &[PathBuf]) -> Controllers {
        let medium = Medium::memory(Image::zeroed(SIZE_BYTES), false);
        let namespace = NamespaceConfig { size_bytes: SIZE_BYTES, lba_bytes: 4096, medium };
        let subsystem = Subsystem::new("SHARED", false, vec![namespace]);
        let (mut stops, mut threads) = (Vec::new(), Vec::new());
        for socket in sockets {
            let config = ServerConfig { controller: ControllerConfig::default(), spin: false };
            let server = Server::bind(socket, subsystem.clone(), config).unwrap();
            stops.push(server.stopper());
            threads.push(std::thread::spawn(move || server.run().unwrap()));
        }
        Controllers { stops, threads }
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        self.stops.iter().for_each(|stop| stop.store(true, Ordering::Release));
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

struct Member {
    child: Child,
    out: PathBuf,
    log: PathBuf,
}

impl Member {
    fn start(dir: &Path, device: &str, slot: usize) -> Member {
        let (out, log) = (dir.join(format!("{slot}.out")), dir.join(format!("{slot}.log")));
        let child = Command::new(VELLUM)
            .args(["serve", device, "--slot", &slot.to_string(), "--cores", "0", "--fence", "reservation"])
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Member { child, out, log }
    }

    fn leads(&self) -> bool {
        let out = read_to_string(&self.out).unwrap();
        let mut lines = out.lines().filter(|line| line.contains(": leads,") || line.contains(": follows,"));
        lines.next_back().is_some_and(|line| line.contains(": leads,"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    UdpSocket::bind(("127.0.0.1", port)).unwrap();
    format!("127.0.0.1:{port}")
}

fn wait_leader(members: &[Member], except: Option<usize>) -> usize {
    let leader = || (0..members.len()).find(|slot| Some(*slot) != except && members[*slot].leads());
    wait_until("a leader", LIMIT, || leader().is_some());
    leader().unwrap()
}

#[test]
fn a_deposed_leader_is_refused_by_the_device_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let sockets: Vec<PathBuf> = (0..=MEMBERS).map(|i| dir.path().join(format!("controller{i}"))).collect();
    let _controllers = Controllers::serve(&sockets);
    let devices: Vec<String> = sockets.iter().map(|socket| format!("vfio-user:{}", socket.display())).collect();
    let spare = devices[MEMBERS].as_str();
    let slots: Vec<String> = (0..MEMBERS).map(|slot| format!("{slot}={}", address())).collect();
    let mut mkfs = vec!["mkfs", spare];
    slots.iter().for_each(|slot| mkfs.extend(["--slot", slot]));
    vellum_ok(&mkfs);

    let mut members: Vec<Member> = (0..MEMBERS).map(|slot| Member::start(dir.path(), &devices[slot], slot)).collect();
    let first = wait_leader(&members, None);
    let shown = vellum_ok(&["nvme", "reservations", spare]);
    assert!(shown.contains("registrants only"), "{shown}");
    assert_eq!(shown.matches("key 0x56").count(), MEMBERS, "{shown}");
    assert_eq!(shown.matches("holds it").count(), 1, "{shown}");
    // Whoever is no registrant writes nothing.
    vellum_fails(&["nvme", "write-zeroes", &format!("{spare}/1"), "--destroy-all-data"], 4, &["reservation conflict"]);

    members[first].signal(Signal::STOP);
    let second = wait_leader(&members, Some(first));
    let shown = vellum_ok(&["nvme", "reservations", spare]);
    assert_eq!(shown.matches("key 0x56").count(), MEMBERS - 1, "{shown}");
    assert!(!shown.contains(&format!("key 0x56{first:02x}")), "its key is gone: {shown}");

    members[first].signal(Signal::CONT);
    let status = wait_for(&mut members[first].child, LIMIT).expect("a fenced member ends");
    let log = read_to_string(&members[first].log).unwrap();
    assert!(!status.success() && log.contains("this node was fenced"), "{status}: {log}");
    assert!(members[second].leads());

    // A new run registers anew, and who leaves in order leaves no key.
    members[first] = Member::start(dir.path(), &devices[first], first);
    wait_until("the key of the new run", LIMIT, || {
        vellum_ok(&["nvme", "reservations", spare]).matches("key 0x56").count() == MEMBERS
    });
    for member in &mut members {
        member.signal(Signal::TERM);
    }
    for member in &mut members {
        let status = wait_for(&mut member.child, LIMIT).expect("a member leaves");
        assert!(status.success(), "{status}: {}", read_to_string(&member.log).unwrap());
    }
    let shown = vellum_ok(&["nvme", "reservations", spare]);
    assert!(shown.contains("not reserved") && !shown.contains("key"), "{shown}");
}
