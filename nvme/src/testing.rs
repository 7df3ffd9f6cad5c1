//! For tests and tools: a tiny executor for those that have a queue and no reactor, and a driver whose clock only polls move.
#![allow(unsafe_code)] // poll(2) on the queue's descriptor

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

use crate::Queue;
use crate::driver::Options;

/// Turns without any progress on a queue that cannot be waited for, before the future is declared stuck.
const MAX_IDLE_TURNS: u32 = 1_000_000;
/// Turns without any progress after which each turn sleeps a little: what is waited for is in another thread or process,
/// which may want this core.
const BUSY_TURNS: u32 = 10_000;
/// Longest wait for a descriptor before looking again, in milliseconds.
const WAIT_MS: i32 = 1000;

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// Runs `future` to its end, polling `queue` meanwhile. Panics when the future waits for something else.
pub fn block_on<F: Future>(queue: &Rc<dyn Queue>, future: F) -> F::Output {
    block_on_all(std::slice::from_ref(queue), future)
}

/// The same with several queues.
pub fn block_on_all<F: Future>(queues: &[Rc<dyn Queue>], future: F) -> F::Output {
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(flag.clone());
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    let mut idle_turns = 0;
    loop {
        if flag.0.swap(false, Relaxed)
            && let Poll::Ready(output) = future.as_mut().poll(&mut cx)
        {
            return output;
        }
        let events: usize = queues.iter().map(|queue| queue.process_completions()).sum();
        if flag.0.load(Relaxed) {
            idle_turns = 0;
            continue;
        }
        idle_turns += 1;
        assert!(idle_turns < MAX_IDLE_TURNS, "the future waits for something that no queue completes");
        if events == 0 {
            wait_readable(queues);
        } else if idle_turns > BUSY_TURNS {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }
}

/// Each look at the clock is a tick; a command times out after 20 of them.
pub fn options() -> Options {
    let now = AtomicU64::new(0);
    Options {
        io_timeout_ms: 200,
        admin_timeout_ms: 2_000,
        polls_per_tick: 1,
        clock: Arc::new(move || now.fetch_add(10, Relaxed)),
        ..Options::default()
    }
}

/// True when `fd` became readable within `timeout_ms`.
pub fn poll_fd(fd: std::os::fd::RawFd, timeout_ms: i32) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd on the stack; a closed descriptor is reported in revents, not undefined.
    let ready = unsafe { libc::poll(&mut entry, 1, timeout_ms) };
    ready == 1 && entry.revents & libc::POLLIN != 0
}

fn wait_readable(queues: &[Rc<dyn Queue>]) {
    match queues {
        [queue] => match queue.wake_fd() {
            Some(fd) => drop(poll_fd(fd, WAIT_MS)),
            None => std::thread::yield_now(),
        },
        _ => std::thread::yield_now(),
    }
}
