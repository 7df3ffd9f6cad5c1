//! The native executor's part of a reactor: its ring, and how it waits.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::io::Errno;
use vellum_base::prng::Prng;
use vellum_uring::{Kind, Lane, Ring};

use super::config::Config;
use super::ops::Ops;
use crate::kernel::{clock, unpredictable};
use crate::wake::Doorbell;

/// Tasks that may spin on their descriptors at a time; the others wait in the ring at once.
const SPINNERS: usize = 4;
/// How long a task spins on its descriptor before it waits in the ring: what an answer from another core takes.
const SPIN: Duration = Duration::from_micros(20);

pub(crate) struct Driver {
    /// What the reactor sleeps on; queues of devices have lanes of it too.
    pub ring: Rc<Ring>,
    pub ops: Rc<Ops>,
    prng: RefCell<Prng>,
    /// Tasks that try their descriptor again in the next turn.
    spinners: RefCell<Vec<Waker>>,
    /// Spinning tasks that got what they waited for, or gave up, since the last turn: that was work.
    spins_ended: Cell<usize>,
}

impl Driver {
    pub fn new(config: &Config, doorbell: Arc<OwnedFd>) -> io::Result<Driver> {
        let ring = Rc::new(Ring::new(config.ring_entries, Kind::Waited)?);
        let ops = Rc::new(Ops::new(Lane::new(&ring, config.ring_entries as usize)?, doorbell));
        Ok(Driver {
            ring,
            ops,
            prng: RefCell::new(unpredictable()),
            spinners: RefCell::default(),
            spins_ended: Cell::new(0),
        })
    }

    pub fn random_u64(&self) -> u64 {
        self.prng.borrow_mut().next_u64()
    }

    /// Repeats `attempt` for as long as it would block and the reactor has time to spin; `None` when that is over.
    ///
    /// An answer that comes while we spin costs one system call, where the ring takes one to wait and one to receive.
    pub async fn spin<T>(&self, mut attempt: impl FnMut() -> Result<T, Errno>) -> Option<Result<T, Errno>> {
        let mut until = None;
        loop {
            let done = match attempt() {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => None,
                done => Some(done),
            };
            let goes_on = done.is_none() && {
                let now = clock();
                now <= *until.get_or_insert(now + SPIN) && self.next_turn().await
            };
            if !goes_on {
                self.spins_ended.set(self.spins_ended.get() + 1);
                return done;
            }
        }
    }

    /// Waits for the reactor's next turn; false (at once) when too many do.
    async fn next_turn(&self) -> bool {
        let mut waits = false;
        poll_fn(|cx| {
            let mut spinners = self.spinners.borrow_mut();
            if waits || spinners.len() >= SPINNERS {
                return Poll::Ready(waits);
            }
            spinners.push(cx.waker().clone());
            waits = true;
            Poll::Pending
        })
        .await
    }

    /// Lets the spinning tasks try again; returns how many.
    pub fn turn_spinners(&self) -> usize {
        let mut spinners = self.spinners.take();
        let count = spinners.len();
        spinners.drain(..).for_each(Waker::wake);
        let mut kept = self.spinners.borrow_mut();
        if kept.is_empty() {
            *kept = spinners; // its memory, for the next turn
        }
        count
    }

    pub fn take_spins_ended(&self) -> usize {
        self.spins_ended.take()
    }

    pub fn has_spinners(&self) -> bool {
        !self.spinners.borrow().is_empty()
    }

    /// Waits until a read (or an accept) on `file` would not block.
    pub async fn readable(&self, file: &Rc<OwnedFd>) -> io::Result<()> {
        self.poll(file, PollFlags::IN).await
    }

    /// Waits until a write on `file` would not block, or its connection attempt has ended.
    pub async fn writable(&self, file: &Rc<OwnedFd>) -> io::Result<()> {
        self.poll(file, PollFlags::OUT).await
    }

    async fn poll(&self, file: &Rc<OwnedFd>, events: PollFlags) -> io::Result<()> {
        let result = self.ops.poll(file, events.bits() as i16).await.result;
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }
}

/// An eventfd that the ring polls.
pub(super) struct EventfdDoorbell(pub Arc<OwnedFd>);

impl Doorbell for EventfdDoorbell {
    fn ring(&self) {
        // It fails only when the counter would overflow, and then the fd is readable anyway.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

pub(super) fn new_eventfd() -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
}
