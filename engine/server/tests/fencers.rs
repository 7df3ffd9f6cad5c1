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
use vellum_server::cluster::{FenceError, FenceOrder, FenceWith, Fencer, HostFencer, ReservationFencer, ScriptFencer};

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
        let queue = vellum_store::PolledQueue::open(&*device, 32, "device").unwrap();
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

/// Hosts with a controller each on one namespace.
struct Hosts(Arc<vellum_nvme::emu::Subsystem>);

impl Hosts {
    fn new() -> Hosts {
        use vellum_nvme::emu::{Medium, NamespaceConfig, Subsystem};
        let medium = Medium::memory(vellum_nvme::Image::zeroed(1 << 20), false);
        Hosts(Subsystem::new("SHARED", false, vec![NamespaceConfig { size_bytes: 1 << 20, lba_bytes: 4096, medium }]))
    }

    fn attach(&self, reservations: bool) -> Arc<dyn Device> {
        use vellum_nvme::driver::{Controller, NvmeDevice, Options};
        use vellum_nvme::emu::{ControllerConfig, EmuTransport, ProcessBus};
        let config = ControllerConfig { reservations, ..ControllerConfig::default() };
        let bus = ProcessBus::new(config.io_queues).unwrap();
        let model = vellum_nvme::emu::Controller::new(bus, self.0.clone(), config);
        let controller = Controller::open(EmuTransport::new(model), Options::default()).unwrap();
        Arc::new(NvmeDevice::open(controller, None, false).unwrap())
    }

    fn member(&self, slot: u8, pid: u32) -> (Arc<dyn Device>, ReservationFencer) {
        let device = self.attach(true);
        let fencer = ReservationFencer::register(device.clone(), Slot(slot), &run(pid)).unwrap();
        (device, fencer)
    }
}

fn run(pid: u32) -> ProcessIdentity {
    ProcessIdentity { pid, boot_id: [7; 16], start_ticks: 1 }
}

fn write(device: &Arc<dyn Device>) -> Result<(), vellum_nvme::DeviceError> {
    let queue = device.open_queue(1).unwrap();
    vellum_nvme::testing::block_on(&queue, queue.write(0, vellum_base::DmaBuf::zeroed(4096).freeze(), true))
}

fn fence(fencer: &ReservationFencer, order: FenceOrder) -> Result<(), FenceError> {
    block_on(fencer.fence(order))
}

#[test]
fn a_host_whose_key_is_preempted_writes_nothing_any_more() {
    let hosts = Hosts::new();
    let ((a, by_a), (b, by_b), (c, _by_c)) = (hosts.member(0, 10), hosts.member(1, 11), hosts.member(2, 12));
    for device in [&a, &b, &c] {
        write(device).expect("registrants write");
    }
    fence(&by_b, order(0, Some(run(10)))).unwrap();
    let refused = write(&a).unwrap_err();
    assert!(refused.is_taken_away() && refused.to_string().contains("reservation conflict"), "{refused}");
    write(&b).unwrap();
    write(&c).unwrap();
    // Two leaders fence each other: one of them can.
    let lost = fence(&by_a, order(1, Some(run(11)))).unwrap_err();
    assert_eq!(lost, FenceError::Failed("this member was fenced itself".into()));
    fence(&by_b, order(0, Some(run(10)))).expect("what is gone already is fenced");
    // The block of slot 2 cannot be read: whoever runs there.
    fence(&by_b, order(2, None)).unwrap();
    assert!(write(&c).unwrap_err().is_taken_away());
    // A reset does not give a host its rights back; a new run of the member does.
    let (again, _) = hosts.member(0, 20);
    write(&again).unwrap();
    by_b.unregister().unwrap();
    by_a.unregister().expect("who was fenced has nothing to give back");
}

#[test]
fn a_run_that_is_not_meant_stays() {
    let hosts = Hosts::new();
    let ((a, _by_a), (_b, by_b)) = (hosts.member(0, 10), hosts.member(1, 11));
    fence(&by_b, order(0, Some(run(9)))).expect("that run is no registrant, so it is refused");
    write(&a).expect("this one goes on");
}

#[test]
fn what_reservations_cannot_vouch_for_is_left_to_another_fencer() {
    let hosts = Hosts::new();
    let without = hosts.attach(false);
    let error = ReservationFencer::register(without, Slot(3), &run(13)).unwrap_err().to_string();
    assert!(error.contains("has no reservations"), "{error}");

    let (device, fencer) = hosts.member(1, 11);
    // Nobody holds it any more (an operator cleared it), and the target has no key: it may have written until now.
    let reservations = device.reservations().unwrap();
    reservations.clear(fencer.key()).unwrap();
    reservations.register([9; 16], 99).expect_err("a controller speaks for one host");
    assert!(fence(&fencer, order(0, Some(run(10)))).is_err(), "nor are we a registrant");
    let (_device, fencer) = hosts.member(1, 11);
    let reservations = _device.reservations().unwrap();
    fence(&fencer, order(0, Some(run(10)))).expect("registering took the reservation: strangers are refused");
    // Another kind of reservation is somebody else's.
    reservations.clear(fencer.key()).unwrap();
    let stranger = hosts.attach(true);
    let theirs = stranger.reservations().unwrap();
    theirs.register([9; 16], 99).unwrap();
    theirs.acquire(99, vellum_nvme::spec::ReservationType::ExclusiveAccess).unwrap();
    let error = fence(&fencer, order(0, Some(run(10)))).unwrap_err();
    assert!(matches!(&error, FenceError::Failed(why) if why.contains("not by Vellum")), "{error}");
}
