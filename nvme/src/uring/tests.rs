//! The uring backend on real files and, where this machine allows it, a loop device. A test that cannot run here says so.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

use tempfile::TempDir;
use vellum_base::DmaBuf;

use super::*;
use crate::testing::{block_on, poll_fd};
use crate::{IoOp, open};

const SHARED: OpenMode = OpenMode { read_only: false, exclusive: false, slot: None, observe: false };
const EXCLUSIVE: OpenMode = OpenMode { exclusive: true, ..SHARED };
const READ_ONLY: OpenMode = OpenMode { read_only: true, ..SHARED };
const OBSERVER: OpenMode = OpenMode { read_only: true, observe: true, ..SHARED };

fn member(slot: u8) -> OpenMode {
    OpenMode { slot: Some(slot), ..SHARED }
}

/// A file of `size` bytes on a disk filesystem; `None` (with a message) where direct IO is impossible.
fn disk_file(size: u64) -> Option<(TempDir, String)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    File::create(&path).unwrap().set_len(size).unwrap();
    let path = path.to_str().unwrap().to_owned();
    match UringDevice::open(&path, SHARED) {
        Err(err @ (DeviceError::NoDirectIo { .. } | DeviceError::Ring { .. })) => {
            eprintln!("SKIPPED: {err}");
            None
        }
        _ => Some((dir, path)),
    }
}

fn filled(byte: u8, len: usize) -> DmaBuf {
    let mut buf = DmaBuf::new(len);
    buf.fill(byte);
    buf
}

#[test]
fn a_file_is_written_flushed_discarded_and_read_back() {
    let Some((_dir, path)) = disk_file(16 << 20) else { return };
    let device = open(&format!("file:{path}"), EXCLUSIVE).unwrap();
    assert_eq!(device.geometry().size_bytes, 16 << 20);
    let q = device.open_queue(8).unwrap();
    block_on(&q, q.write(1 << 20, filled(1, 3 << 20).freeze(), false)).unwrap();
    block_on(&q, q.write(8 << 20, filled(2, 8192).freeze(), true)).unwrap();
    block_on(&q, q.flush()).unwrap();
    block_on(&q, q.discard(1 << 20, 1 << 20)).unwrap();
    let back = block_on(&q, q.read(1 << 20, DmaBuf::new(3 << 20))).unwrap();
    assert!(back[..1 << 20].iter().all(|b| *b == 0), "a punched hole of a file reads as zeros");
    assert!(back[1 << 20..].iter().all(|b| *b == 1));
    drop((q, device));
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 16 << 20, "a discard keeps the size");
    assert!(bytes[8 << 20..(8 << 20) + 8192].iter().all(|b| *b == 2));
}

#[test]
fn more_operations_than_the_depth_wait_and_are_done() {
    let Some((_dir, path)) = disk_file(4 << 20) else { return };
    let device = open(&path, EXCLUSIVE).unwrap();
    let q = device.open_queue(3).unwrap();
    let writes: Vec<_> = (0..200u64).map(|i| q.write(i * 4096, filled(i as u8, 4096).freeze(), false)).collect();
    assert_eq!(q.in_flight(), 200);
    for write in writes {
        block_on(&q, write).unwrap();
    }
    assert_eq!(q.in_flight(), 0);
    for i in 0..200u64 {
        assert_eq!(block_on(&q, q.read(i * 4096, DmaBuf::new(4096))).unwrap()[..], [i as u8; 4096]);
    }
}

#[test]
fn the_wake_descriptor_becomes_readable_when_an_operation_is_done() {
    let Some((_dir, path)) = disk_file(4 << 20) else { return };
    let device = open(&path, EXCLUSIVE).unwrap();
    let q = device.open_queue(4).unwrap();
    let fd = q.wake_fd().unwrap();
    for round in 0..50u8 {
        assert!(!poll_fd(fd, 0), "nothing is to be reaped: a reactor may sleep");
        drop(q.write(4096, filled(round, 4096).freeze(), round % 2 == 0));
        let mut done = q.process_completions();
        while done == 0 {
            // No process_completions between: the descriptor alone must say it. (poll(2) looks once more when its time
            // is up, so a lost wake-up shows as delay only.)
            let start = std::time::Instant::now();
            assert!(poll_fd(fd, 10_000) && start.elapsed().as_secs() < 9, "the operation was announced");
            done = q.process_completions();
        }
        assert_eq!((done, q.in_flight()), (1, 0));
    }
}

#[test]
fn another_ring_can_sleep_on_the_wake_descriptor() {
    let Some((_dir, path)) = disk_file(4 << 20) else { return };
    let device = open(&path, EXCLUSIVE).unwrap();
    let q = device.open_queue(4).unwrap();
    let mut reactor = io_uring::IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(4)
        .or_else(|_| io_uring::IoUring::new(4))
        .unwrap();
    for round in 0..20u8 {
        let watch =
            io_uring::opcode::PollAdd::new(io_uring::types::Fd(q.wake_fd().unwrap()), libc::POLLIN as u32).build();
        drop(q.write(0, filled(round, 4096).freeze(), true));
        if q.process_completions() > 0 {
            continue;
        }
        push(&mut reactor, &watch);
        let timeout = io_uring::types::Timespec::new().sec(10);
        let args = io_uring::types::SubmitArgs::new().timespec(&timeout);
        reactor.submitter().submit_with_args(1, &args).unwrap();
        let woken = reactor.completion().next().unwrap();
        assert!(woken.result() & i32::from(libc::POLLIN) != 0);
        let mut turns = 0;
        while q.in_flight() > 0 {
            turns += q.process_completions();
        }
        assert!(turns > 0);
    }
}

/// What a reactor does for the queues on its ring.
fn turn(ring: &vellum_uring::Ring, queue: &Rc<dyn Queue>) {
    ring.reap();
    if queue.process_completions() == 0 {
        ring.wait(Some(std::time::Duration::from_secs(10))).unwrap();
    }
}

#[test]
fn queues_on_a_reactors_ring_are_submitted_and_woken_by_its_sleep() {
    let Some((_dir, path)) = disk_file(8 << 20) else { return };
    let Ok(ring) = vellum_uring::Ring::new(4, vellum_uring::Kind::Waited).map(Rc::new) else { return };
    let device = open(&path, EXCLUSIVE).unwrap();
    let installed = vellum_uring::install(&ring);
    let (a, b) = (device.open_queue(8).unwrap(), device.open_queue(2).unwrap());
    drop(installed);
    assert_eq!((a.wake_fd(), b.wake_fd()), (None, None), "there is no other ring to watch");
    // More than the ring has entries for, and than the queue may have at the kernel.
    for i in 0..40u64 {
        drop(a.write(i << 12, filled(i as u8, 4096).freeze(), false));
    }
    while a.in_flight() > 0 {
        turn(&ring, &a);
    }
    // What one queue left at the kernel does not disturb the other, and its end waits for it.
    drop(a.read(0, DmaBuf::new(1 << 20)));
    let mut read = Box::pin(b.read(39 << 12, DmaBuf::new(4096)));
    drop(a);
    let back = loop {
        match std::future::Future::poll(read.as_mut(), &mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(done) => break done.unwrap(),
            std::task::Poll::Pending => turn(&ring, &b),
        }
    };
    assert_eq!(back[..], [39; 4096]);
    drop((read, b, device));
    let start = std::time::Instant::now();
    while open(&path, EXCLUSIVE).is_err() {
        assert!(start.elapsed().as_secs() < 10, "the ring keeps a file of queues that are gone");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[allow(unsafe_code)]
fn push(ring: &mut io_uring::IoUring, entry: &io_uring::squeue::Entry) {
    // SAFETY: a poll entry points to no memory.
    unsafe { ring.submission().push(entry).unwrap() }
}

#[test]
fn who_uses_the_device_keeps_others_out() {
    let Some((_dir, path)) = disk_file(1 << 20) else { return };
    let in_use = |mode| matches!(open(&path, mode), Err(DeviceError::InUse { .. }));
    let first = open(&path, EXCLUSIVE).unwrap();
    assert!(in_use(EXCLUSIVE) && in_use(SHARED) && in_use(READ_ONLY));
    assert!(open(&path, SHARED).err().unwrap().to_string().contains("in use"));
    let q = first.open_queue(1).unwrap();
    drop(first);
    assert!(in_use(EXCLUSIVE), "a queue keeps the device open");
    drop(q);
    let shared = [open(&path, SHARED).unwrap(), open(&path, SHARED).unwrap(), open(&path, OBSERVER).unwrap()];
    assert!(in_use(EXCLUSIVE) && in_use(READ_ONLY));
    drop(shared);
    let readers = [open(&path, READ_ONLY).unwrap(), open(&path, READ_ONLY).unwrap()];
    assert!(in_use(EXCLUSIVE) && in_use(member(1)));
    drop(readers);
    open(&path, EXCLUSIVE).unwrap();
}

#[test]
fn members_share_a_device_and_no_slot() {
    let Some((_dir, path)) = disk_file(1 << 20) else { return };
    let refused = |mode| open(&path, mode).err().map(|err| err.to_string()).unwrap_or_default();
    let one = open(&path, member(1)).unwrap();
    let two = open(&path, member(2)).unwrap();
    assert!(refused(member(1)).contains("the slot has a running member"), "{}", refused(member(1)));
    assert!(refused(EXCLUSIVE).contains("in use") && refused(READ_ONLY).contains("being served"));
    let seen = open(&path, OBSERVER).unwrap();
    assert!(seen.open_queue(1).is_ok_and(|q| block_on(&q, q.flush()) == Err(DeviceError::ReadOnly)));
    // What the fencer waits for: every description through which the slot's member does IO.
    assert_eq!((two.slot_has_io(1), two.slot_has_io(3)), (Ok(Some(true)), Ok(Some(false))));
    let q = one.open_queue(1).unwrap();
    drop(one);
    assert_eq!(two.slot_has_io(1), Ok(Some(true)), "a queue has it too");
    drop(q);
    // The kernel takes a ring apart after its owner has gone.
    let start = std::time::Instant::now();
    while two.slot_has_io(1) == Ok(Some(true)) {
        assert!(start.elapsed().as_secs() < 30, "the ring's descriptor is never closed");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let again = open(&path, member(1)).unwrap();
    drop((again, two, seen));
    open(&path, EXCLUSIVE).unwrap();
}

#[test]
fn a_read_only_device_refuses_changes() {
    let Some((_dir, path)) = disk_file(1 << 20) else { return };
    let device = open(&path, READ_ONLY).unwrap();
    let q = device.open_queue(1).unwrap();
    block_on(&q, q.read(0, DmaBuf::new(4096))).unwrap();
    let refused = Err(DeviceError::ReadOnly);
    assert_eq!(block_on(&q, q.write(0, filled(1, 4096).freeze(), false)), refused);
    assert_eq!(block_on(&q, q.flush()), refused);
    assert_eq!(block_on(&q, q.discard(0, 4096)), refused);
}

#[test]
fn what_is_no_device_is_refused_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &str| open(path, SHARED).err().unwrap().to_string();
    assert!(message(dir.path().to_str().unwrap()).contains("not a device"));
    assert!(message("/dev/null").contains("not a device"));
    let empty = dir.path().join("empty");
    File::create(&empty).unwrap();
    assert!(message(empty.to_str().unwrap()).contains("smaller than one block"));
}

#[test]
fn tmpfs_is_served_through_the_page_cache_and_says_so() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED: no /dev/shm");
        return;
    };
    let path = dir.path().join("device");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let device = open(path.to_str().unwrap(), EXCLUSIVE).unwrap();
    if !device.geometry().name.contains("buffered") {
        eprintln!("SKIPPED: /dev/shm is no tmpfs here");
        return;
    }
    let q = device.open_queue(2).unwrap();
    block_on(&q, q.write(4096, filled(9, 4096).freeze(), true)).unwrap();
    block_on(&q, q.flush()).unwrap();
    assert_eq!(block_on(&q, q.read(4096, DmaBuf::new(4096))).unwrap()[..], [9; 4096]);
}

#[test]
fn a_shrunken_file_is_an_error_and_no_endless_loop() {
    let Some((_dir, path)) = disk_file(1 << 20) else { return };
    let device = open(&path, EXCLUSIVE).unwrap();
    let q = device.open_queue(1).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    let err = block_on(&q, q.read(4096, DmaBuf::new(16384))).unwrap_err();
    assert!(matches!(err, DeviceError::Short { done_bytes: 4096, len_bytes: 16384, .. }), "{err}");
}

#[test]
fn after_a_failed_flush_every_queue_fails() {
    let Some((_dir, path)) = disk_file(1 << 20) else { return };
    let device = UringDevice::open(&path, EXCLUSIVE).unwrap();
    let (a, b) = (device.open_queue(2).unwrap(), device.open_queue(2).unwrap());
    let waiting = b.start(IoOp::Write { at_bytes: 0, data: filled(1, 4096).freeze(), fua: false });
    device.shared.health.fail("flush: the test says so".to_owned());
    assert!(block_on(&a, a.read(0, DmaBuf::new(4096))).unwrap_err().is_failed());
    assert!(block_on(&b, waiting).0.unwrap_err().is_failed(), "what was waiting is not acknowledged");
    assert!(device.open_queue(1).is_ok_and(|q| block_on(&q, q.flush()).unwrap_err().is_failed()));
}

#[test]
fn a_queue_dropped_with_operations_in_flight_waits_for_the_kernel() {
    let Some((_dir, path)) = disk_file(8 << 20) else { return };
    let device = open(&path, EXCLUSIVE).unwrap();
    for _ in 0..20 {
        let q = device.open_queue(8).unwrap();
        for i in 0..8 {
            drop(q.read(i << 20, DmaBuf::new(1 << 20)));
        }
        q.process_completions();
    }
}

#[test]
fn polled_completions_are_probed_for_and_not_insisted_on() {
    let Some((_dir, path)) = disk_file(1 << 20) else { return };
    let device = UringDevice::open(&path, SHARED).unwrap();
    let works = transfer::can_poll(device.shared.file.file.as_raw_fd());
    eprintln!("polled reads of {path}: {works}; used: {}", device.shared.polled);
    // Forced: what the polled ring refuses goes through the plain one.
    let mut shared = Arc::into_inner(device.shared).unwrap();
    shared.polled = true;
    let device = UringDevice { shared: Arc::new(shared) };
    let q = device.open_queue(2).unwrap();
    block_on(&q, q.write(0, filled(5, 4096).freeze(), false)).unwrap();
    block_on(&q, q.write(4096, filled(6, 4096).freeze(), true)).unwrap();
    block_on(&q, q.flush()).unwrap();
    assert_eq!(block_on(&q, q.read(0, DmaBuf::new(8192))).unwrap()[4095..4097], [5, 6]);
}

/// A loop device on a file, detached when dropped.
struct Loop {
    path: PathBuf,
    _backing: TempDir,
}

impl Loop {
    fn attach() -> Option<Loop> {
        let (dir, path) = disk_file(32 << 20)?;
        let made = Command::new("losetup").args(["--find", "--show", "--direct-io=on", &path]).output().ok()?;
        if !made.status.success() {
            eprintln!("SKIPPED: no loop device: {}", String::from_utf8_lossy(&made.stderr));
            return None;
        }
        Some(Loop { path: PathBuf::from(String::from_utf8_lossy(&made.stdout).trim()), _backing: dir })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}

#[test]
fn a_block_device_is_written_flushed_discarded_and_claimed() {
    let Some(disk) = Loop::attach() else { return };
    let path = disk.path.to_str().unwrap();
    let device = open(path, EXCLUSIVE).unwrap();
    assert_eq!(device.geometry().size_bytes, 32 << 20);
    assert!(matches!(open(path, EXCLUSIVE), Err(DeviceError::InUse { .. })));
    assert!(matches!(open(path, SHARED), Err(DeviceError::InUse { .. })));
    let q = device.open_queue(4).unwrap();
    block_on(&q, q.write(4096, filled(3, 2 << 20).freeze(), true)).unwrap();
    block_on(&q, q.flush()).unwrap();
    block_on(&q, q.discard(4096, 1 << 20)).unwrap();
    let back = block_on(&q, q.read(4096, DmaBuf::new(2 << 20))).unwrap();
    assert!(back[1 << 20..].iter().all(|b| *b == 3));
    eprintln!("after a discard: {:?}", back[0]);
    drop((q, device));
    open(path, SHARED).unwrap();
}
