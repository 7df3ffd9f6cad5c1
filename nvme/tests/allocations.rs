//! No allocation per operation while a queue stays within its depth: counted, not believed.
#![allow(unsafe_code)] // a global allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use vellum_base::DmaBuf;
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
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 20).expect("its size");
    match open(file.path().to_str().expect("a path"), OpenMode::default()) {
        Ok(device) => assert!(allocations(&*device) <= 2),
        Err(err) => eprintln!("SKIPPED: {err}"),
    }
}
