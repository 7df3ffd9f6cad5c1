//! No allocation per operation while a queue stays within its depth, and no system call per operation of the NVMe driver:
//! counted and forbidden, not believed.
#![allow(unsafe_code)] // a global allocator; fork and seccomp

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use vellum_base::DmaBuf;
use vellum_nvme::driver::{NvmeDevice, Options};
use vellum_nvme::emu::{ControllerConfig, EmuTransport, Medium, NamespaceConfig};
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, IoOp, OpenMode, Queue, open};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator; the counter is a const-initialised thread local without a
// destructor, so that it needs no allocation itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DEPTH: usize = 16;

/// `rounds` times `DEPTH` operations of every kind but discard; the buffers go round.
fn churn(queue: &Rc<dyn Queue>, bufs: &mut Vec<DmaBuf>, rounds: usize) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut tickets = [None; DEPTH];
    let data = DmaBuf::zeroed(4096).freeze();
    for _ in 0..rounds {
        for (index, ticket) in tickets.iter_mut().enumerate() {
            let at_bytes = index as u64 * 4096;
            *ticket = Some(queue.submit(match (index % 4, bufs.pop()) {
                (0, _) => IoOp::Write { at_bytes, data: data.clone(), fua: false },
                (1, _) => IoOp::Flush,
                (_, Some(buf)) => IoOp::Read { at_bytes, buf },
                (_, None) => panic!("a buffer for each read"),
            }));
        }
        while tickets.iter().any(Option::is_some) {
            queue.process_completions();
            for ticket in &mut tickets {
                if let Some(running) = *ticket
                    && let Poll::Ready((result, buf)) = queue.poll_done(running, &mut cx)
                {
                    result.expect("the device works");
                    *ticket = None;
                    bufs.push(buf.unwrap_or_else(|| DmaBuf::new(4096)));
                }
            }
        }
    }
}

fn allocations(device: &dyn Device) -> u64 {
    let queue = device.open_queue(DEPTH as u32).expect("a queue");
    let mut bufs: Vec<_> = (0..2 * DEPTH).map(|_| DmaBuf::new(4096)).collect();
    churn(&queue, &mut bufs, 4);
    let before = COUNT.get();
    churn(&queue, &mut bufs, 50);
    COUNT.get() - before
}

#[test]
fn operations_do_not_allocate() {
    // Each call of `churn` makes one shared buffer of its own.
    assert!(allocations(&MemoryDevice::new(1 << 20)) <= 2);
    // The options of the tests tick at every poll: not even that allocates.
    assert!(allocations(&null_device(common::options())) <= 2);
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 20).expect("its size");
    match open(file.path().to_str().expect("a path"), OpenMode::default()) {
        Ok(device) => assert!(allocations(&*device) <= 2),
        Err(err) => eprintln!("SKIPPED: {err}"),
    }
}

/// The driver over a model that stores nothing, with a volatile cache so that flushes are commands.
fn null_device(options: Options) -> NvmeDevice<EmuTransport> {
    let null = NamespaceConfig { size_bytes: 1 << 30, lba_bytes: 4096, medium: Medium::Null };
    let model = common::model(&common::subsystem(vec![null], true), ControllerConfig::default());
    let driver = common::attach(&model, options).expect("comes up");
    NvmeDevice::open(driver, None, false).expect("opens")
}

/// Runs the driver over the model in a child that the kernel kills at any system call but read, write and exit. Its clock is a
/// counter, because that mode of seccomp forbids the time stamp counter too, which the vDSO's clock reads.
#[test]
fn nvme_operations_make_no_system_call() {
    // SAFETY: the child uses what it makes itself, on its only thread, and ends with _exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        let device = null_device(common::options());
        let queue = device.open_queue(DEPTH as u32).expect("a queue");
        let mut bufs: Vec<_> = (0..2 * DEPTH).map(|_| DmaBuf::new(4096)).collect();
        churn(&queue, &mut bufs, 4);
        // SAFETY: takes no pointers; from here on only read, write, exit and sigreturn are left.
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, 1, 0, 0, 0) };
        churn(&queue, &mut bufs, 1000);
        // SAFETY: ends this thread, the only one; libc's _exit would use exit_group, which is forbidden now.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let mut status = 0;
    // SAFETY: our own child and a valid place for its status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "status {status:#x}: 9 is a forbidden system call"
    );
}
