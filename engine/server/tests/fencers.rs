//! Fencers against real processes: what they kill, what they wait for, what they refuse to believe.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use vellum_base::{Rid, Slot, Term};
use vellum_format::quorum::ProcessIdentity;
use vellum_nvme::{Device, OpenMode};
use vellum_proto::quorum::{FenceReason, FenceTarget};
use vellum_rt::native::block_on;
use vellum_server::cluster::{FenceError, FenceOrder, FenceWith, Fencer, HostFencer, ScriptFencer};

/// Set in the child process of a test, which then is the member to be fenced.
const MEMBER_OF: &str = "VELLUM_TEST_MEMBER_OF";

fn order(slot: u8, process: Option<ProcessIdentity>) -> FenceOrder {
    let target = FenceTarget {
        slot: Slot(slot),
        rid: Some(Rid(0xabc)),
        term: Some(Term(17)),
        process,
        reason: FenceReason::EarlierLeader,
    };
    FenceOrder { target, address: Some(([127, 0, 0, 1], 7400).into()), by: Slot(2), for_term: Term(34) }
}

fn identity(pid: u32) -> ProcessIdentity {
    let boot: String = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let hex: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let start_ticks = rest.split(' ').nth(19).unwrap().parse().unwrap();
    ProcessIdentity { pid, boot_id: u128::from_str_radix(&hex, 16).unwrap().to_be_bytes(), start_ticks }
}

fn member(path: &Path, slot: u8) -> Arc<dyn Device> {
    let mode = OpenMode { slot: Some(slot), ..OpenMode::default() };
    vellum_nvme::open(path.to_str().unwrap(), mode).unwrap()
}

/// The other process: holds slot 1 with a queue that writes without end.
#[test]
fn child_that_is_a_member() {
    let Some(path) = std::env::var_os(MEMBER_OF) else { return };
    let device = member(Path::new(&path), 1);
    block_on(async {
        let queue = device.open_queue(32).unwrap();
        let polled = queue.clone();
        let _poller = vellum_rt::add_poller("device", move || polled.process_completions());
        println!("ready");
        loop {
            let data = || vellum_base::DmaBuf::zeroed(1 << 20).freeze();
            let writes: Vec<_> = (0..8).map(|i| queue.write(i << 20, data(), true)).collect();
            for write in writes {
                write.await.unwrap();
            }
        }
    });
}

struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_victim(path: &Path) -> Victim {
    use std::io::{BufRead, BufReader};
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child_that_is_a_member", "--exact", "--nocapture"])
        .env(MEMBER_OF, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let ready = out.lines().map_while(Result::ok).any(|line| line.contains("ready"));
    let victim = Victim(child);
    assert!(ready, "the member did not start");
    victim
}

#[test]
fn a_member_of_this_host_is_killed_and_its_last_write_waited_for() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("device");
    std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    let ours = member(&path, 2);
    let fencer = HostFencer::new(ours.clone(), Slot(2));
    let mut victim = start_victim(&path);
    let process = identity(victim.0.id());
    assert_eq!(ours.slot_has_io(1), Ok(Some(true)));

    let elsewhere = ProcessIdentity { boot_id: [9; 16], ..process };
    let refused = block_on(fencer.fence(order(1, Some(elsewhere)))).unwrap_err();
    assert!(matches!(&refused, FenceError::NotMine(why) if why.contains("another host")), "{refused}");
    assert!(block_on(fencer.fence(order(1, None))).is_err(), "nothing is known of the process");
    // A number that was used again is not killed, and the lock says that the slot is not free.
    assert!(victim.0.try_wait().unwrap().is_none(), "nobody was killed so far");

    block_on(fencer.fence(order(1, Some(process)))).unwrap();
    assert!(victim.0.try_wait().unwrap().is_some_and(|status| !status.success()), "it is dead");
    assert_eq!(ours.slot_has_io(1), Ok(Some(false)));
    // Gone already (F5), and again (F4).
    block_on(fencer.fence(order(1, Some(process)))).unwrap();
    block_on(fencer.fence(order(1, Some(process)))).unwrap();
    drop(member(&path, 1));
    // An earlier run of our own slot is gone: we could not have opened the device.
    block_on(fencer.fence(order(2, Some(process)))).unwrap();
}

fn script(dir: &Path, body: &str) -> ScriptFencer {
    let path = dir.join("fence.sh");
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    ScriptFencer::new(path)
}

#[test]
fn a_script_is_told_whom_to_fence_and_its_status_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("told");
    let fencer = script(dir.path(), &format!("env | grep ^VELLUM_FENCE_ | sort > {}", told.display()));
    block_on(fencer.fence(order(1, None))).unwrap();
    let told = std::fs::read_to_string(told).unwrap();
    for line in [
        "VELLUM_FENCE_ADDRESS=127.0.0.1:7400",
        "VELLUM_FENCE_BY_SLOT=2",
        "VELLUM_FENCE_FOR_TERM=34",
        "VELLUM_FENCE_REASON=earlier leader that has not stopped",
        "VELLUM_FENCE_RID=0000000000000abc",
        "VELLUM_FENCE_SLOT=1",
        "VELLUM_FENCE_TERM=17",
    ] {
        assert!(told.lines().any(|l| l == line), "{line} is not in\n{told}");
    }
    let refused = block_on(script(dir.path(), "exit 3").fence(order(1, None))).unwrap_err();
    assert!(refused.to_string().contains("exit status: 3"), "{refused}");
    let killed = block_on(script(dir.path(), "kill -9 $$").fence(order(1, None))).unwrap_err();
    assert!(matches!(killed, FenceError::Failed(_)));
    let missing = block_on(ScriptFencer::new("/no/such/script").fence(order(1, None))).unwrap_err();
    assert!(missing.to_string().contains("/no/such/script"), "{missing}");
    let slow = script(dir.path(), "exec sleep 600").within(Duration::from_millis(200));
    assert!(matches!(block_on(slow.fence(order(1, None))), Err(FenceError::TimedOut(_))));
}

#[test]
fn several_fencers_are_asked_in_turn_and_none_is_no_success() {
    let dir = tempfile::tempdir().unwrap();
    let no = || Arc::new(script(dir.path(), "exit 1")) as Arc<dyn Fencer>;
    let none = block_on(FenceWith(Vec::new()).fence(order(1, None))).unwrap_err();
    assert!(none.to_string().contains("--fence"), "{none}");
    let refused = block_on(FenceWith(vec![no()]).fence(order(1, None))).unwrap_err();
    assert!(matches!(refused, FenceError::Failed(_)));
    let other = tempfile::tempdir().unwrap();
    let yes: Arc<dyn Fencer> = Arc::new(script(other.path(), "exit 0"));
    block_on(FenceWith(vec![no(), yes]).fence(order(1, None))).unwrap();
}
