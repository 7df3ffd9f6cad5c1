//! The reactor: what every world has (tasks, timers, pollers, counters) beside a backend for what they do not share
//! (clock, entropy, sockets), and the thread's current one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vellum_base::ReactorId;

use crate::Class;
use crate::backend::Backend;
use crate::poller::{Pollers, Watches};
use crate::stats::{Stall, Stats};
use crate::task::{TaskId, Tasks};
use crate::time::{Instant, WallTime, nanos};
use crate::timer::Timers;
use crate::wake::{Remote, RemoteWakes};

/// Task polls between two looks at the IO.
const POLLS_PER_TURN: usize = 128;
/// Task time between two looks at the IO.
const TURN: Duration = Duration::from_micros(200);
/// The same while something is expected (see [`stay_awake`]): who waits for it waits for the turn to end as well.
const EXPECTING_TURN: Duration = Duration::from_micros(30);

pub(crate) struct Reactor {
    pub id: ReactorId,
    pub tasks: Tasks,
    pub timers: Rc<Timers>,
    pub pollers: Pollers,
    pub watches: Watches,
    pub wakes: RemoteWakes,
    pub stats: RefCell<Stats>,
    pub backend: Backend,
    stall: Duration,
    slice: Duration,
    /// When the running poll began.
    poll_began: Cell<Instant>,
    /// See [`stay_awake`].
    pub awake_until: Cell<Instant>,
    /// What is expected was asked for in this turn, and the kernel does not know yet.
    asked: Cell<bool>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Reactor>>> = const { RefCell::new(None) };
}

/// Restores the thread's previous reactor when dropped.
pub(crate) struct Installed {
    previous: Option<Rc<Reactor>>,
}

impl Drop for Installed {
    fn drop(&mut self) {
        let previous = self.previous.take();
        let ours = CURRENT.with(|current| std::mem::replace(&mut *current.borrow_mut(), previous));
        drop(ours); // outside the borrow
    }
}

pub(crate) fn install(reactor: &Rc<Reactor>) -> Installed {
    Installed { previous: CURRENT.with(|current| current.borrow_mut().replace(reactor.clone())) }
}

/// Runs `f` on the current reactor. `f` must not run foreign code (wakers, destructors) that could change it.
pub(crate) fn with<R>(f: impl FnOnce(&Rc<Reactor>) -> R) -> R {
    CURRENT.with(|current| {
        let current = current.borrow();
        f(current.as_ref().expect("called outside a reactor: use rt::native::block_on, or a task of a world"))
    })
}

pub(crate) fn current() -> Option<Rc<Reactor>> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// Queues the task if `remote` is the current reactor's.
pub(crate) fn make_ready_if_current(remote: &Arc<Remote>, class: Class, task: TaskId) -> bool {
    CURRENT
        .try_with(|current| match &*current.borrow() {
            Some(reactor) if Arc::ptr_eq(reactor.wakes.remote(), remote) => {
                reactor.tasks.make_ready(class, task);
                true
            }
            _ => false,
        })
        .unwrap_or(false)
}

impl Reactor {
    pub fn new(id: ReactorId, backend: Backend, wakes: RemoteWakes, stall: Duration, slice: Duration) -> Rc<Reactor> {
        Rc::new(Reactor {
            id,
            tasks: Tasks::default(),
            timers: Rc::default(),
            pollers: Pollers::default(),
            watches: Watches::default(),
            wakes,
            stats: RefCell::default(),
            backend,
            stall,
            slice,
            poll_began: Cell::new(Instant(0)),
            awake_until: Cell::new(Instant(0)),
            asked: Cell::new(false),
        })
    }

    pub fn drain_remote_wakes(&self) -> usize {
        let count = self.wakes.drain(|class, task| self.tasks.make_ready(class, task));
        if count > 0 {
            self.stats.borrow_mut().remote_wakes += count as u64;
        }
        count
    }

    /// Runs the ready tasks of one turn; `began` is the present. Returns the count and the new present.
    pub fn run_tasks(&self, mut began: Instant) -> (usize, Instant) {
        let until = began + if began < self.awake_until.get() { EXPECTING_TURN } else { TURN };
        let mut count = 0;
        self.asked.set(false);
        while count < POLLS_PER_TURN && began < until && !self.asked.get() {
            let Some((class, task)) = self.tasks.pop() else { break };
            self.poll_began.set(began);
            let Some(polled) = self.tasks.poll(task) else { continue };
            let ended = self.backend.now();
            self.account(polled.name, class, began, ended);
            began = ended;
            count += 1;
        }
        (count, began)
    }

    /// Polls one task that was taken off the ready queue; `None` when the wake was stale.
    pub fn run_one(&self, class: Class, task: TaskId) -> Option<&'static str> {
        let began = self.backend.now();
        self.poll_began.set(began);
        let polled = self.tasks.poll(task)?;
        self.account(polled.name, class, began, self.backend.now());
        Some(polled.name)
    }

    /// Runs `f` as if it were a poll of a task.
    pub fn run_as(&self, name: &'static str, class: Class, f: impl FnOnce()) {
        let began = self.backend.now();
        self.poll_began.set(began);
        f();
        self.account(name, class, began, self.backend.now());
    }

    fn account(&self, name: &'static str, class: Class, began: Instant, ended: Instant) {
        let took = ended - began;
        self.tasks.charge(class, nanos(took));
        let mut stats = self.stats.borrow_mut();
        let of_class = &mut stats.classes[class as usize];
        of_class.polls += 1;
        of_class.time += took;
        if took >= self.stall {
            stats.add_stall(Stall { task: name, class: Some(class), at: ended, took });
        }
    }

    pub fn slice_used_up(&self) -> bool {
        self.backend.slice_used_up(self.poll_began.get(), self.slice)
    }

    /// Drops tasks, pollers and timers. The reactor must be installed.
    pub fn clear(&self) {
        self.tasks.clear();
        self.pollers.clear();
        self.tasks.clear(); // what the pollers' destructors spawned
        self.timers.clear();
    }
}

/// True on a thread (or in a simulated task) that has a reactor.
pub fn has_reactor() -> bool {
    CURRENT.with(|current| current.borrow().is_some())
}

/// The current reactor's clock.
pub fn now() -> Instant {
    with(|reactor| reactor.backend.now())
}

pub fn wall_clock() -> WallTime {
    with(|reactor| reactor.backend.wall_clock())
}

/// Unpredictable natively (not for secrets), a function of the seed in the simulation.
pub fn random_u64() -> u64 {
    with(|reactor| reactor.backend.random_u64())
}

/// The current reactor expects something within this time that somebody waits for (that a flush is done): until then it spins,
/// unless somebody else wants its core, where otherwise it would sleep and be woken. Its turns are short meanwhile, and the
/// present one ends with the running poll, so that the kernel learns at once what was asked for. Only a native reactor spins.
pub fn stay_awake(within: Duration) {
    with(|reactor| {
        let until = reactor.backend.now() + within;
        reactor.awake_until.set(reactor.awake_until.get().max(until));
        reactor.asked.set(true);
    });
}

/// The current reactor's index within its node.
pub fn reactor_id() -> ReactorId {
    with(|reactor| reactor.id)
}
