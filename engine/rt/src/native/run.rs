//! The native reactor's loop, and when it sleeps.
//!
//! A turn: remote wakes, completions, timers, pollers, tasks, one submission for all that they started (with the sleep, when
//! that follows at once). A turn that found nothing spins on for a short while (none at all while spinning has been in vain), and gives the core to whoever
//! wants it; then the reactor sleeps in the kernel until a completion, the doorbell, a watched fd or the next timer. It has
//! no tick of its own.
//!
//! Invariant: after any task has run to some effect, a whole turn (with all pollers) follows before a sleep. Tasks that
//! spun on their descriptors in vain are the one exception, else they would keep the reactor awake for ever.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::awake::Awake;
use super::config::{Config, PollMode};
use super::driver::Driver;
use super::patience::Patience;
use crate::kernel::clock;
use crate::reactor::Reactor;
use crate::time::Instant;

/// A yield of the core that took longer than this says that somebody else wants it: sleep instead of spinning.
const CONTENDED: Duration = Duration::from_micros(5);
/// The same while something is expected: what a worker of the kernel's takes to begin a flush is no reason.
const WANTED: Duration = Duration::from_micros(50);

pub(super) struct Loop {
    reactor: Rc<Reactor>,
    driver: Rc<Driver>,
    poll: PollMode,
    patience: Patience,
    awake: Awake,
}

impl Loop {
    pub fn new(reactor: Rc<Reactor>, driver: Rc<Driver>, config: &Config) -> Loop {
        let (patience, awake) = (Patience::new(config.spin), Awake::new(config.cores_awake));
        Loop { reactor, driver, poll: config.poll, patience, awake }
    }

    /// Turns until `main`, called after the tasks of each turn, has a result. The reactor must be installed.
    pub fn run_until<T>(&self, mut main: impl FnMut() -> Option<T>) -> io::Result<T> {
        let mut last_work = clock();
        let ring = &self.driver.ring;
        loop {
            let now = clock();
            let mut output = None;
            let (progress, now) = self.turn(now, || output = main())?;
            if let Some(output) = output {
                ring.enter()?;
                return Ok(output);
            }
            if progress > 0 || self.reactor.tasks.ready_len() > 0 {
                // Where the next turn is the last before a sleep, unless it finds work, the sleep submits.
                let sleeps_next = !ring.is_held_back() && self.may_sleep(now, now);
                ring.hold_back(sleeps_next);
                if !sleeps_next {
                    ring.enter()?;
                }
                last_work = now;
                self.awake.worked(now);
                continue;
            }
            self.awake.look(now);
            if self.is_time_to_sleep(now, last_work) {
                self.sleep()?;
                let woken = clock();
                self.patience.learn(woken - last_work);
                last_work = woken;
            } else {
                ring.enter()?;
            }
            ring.hold_back(false);
        }
    }

    /// One turn; returns what it got done (a task that spun in vain is nothing), and the present.
    fn turn(&self, now: Instant, main: impl FnOnce()) -> io::Result<(usize, Instant)> {
        let (reactor, ring) = (&self.reactor, &self.driver.ring);
        let wakes = reactor.drain_remote_wakes();
        ring.reap();
        let completions = self.driver.ops.reap();
        let timers = reactor.timers.fire(now);
        let events = reactor.pollers.run();
        let spinners = self.driver.turn_spinners();
        if ring.is_held_back() && reactor.tasks.ready_len() > 0 {
            ring.hold_back(false);
            ring.enter()?; // tasks may take their time
        }
        let (polls, now) = reactor.run_tasks(now);
        main();
        let in_vain = spinners.saturating_sub(self.driver.take_spins_ended());
        let progress = wakes + completions + timers + events + polls.saturating_sub(in_vain);
        let mut stats = reactor.stats.borrow_mut();
        stats.turns += 1;
        stats.idle_turns += u64::from(progress == 0);
        stats.completions += completions as u64;
        stats.poller_events += events as u64;
        Ok((progress, now))
    }

    /// Nothing keeps the reactor from sleeping.
    fn is_free(&self) -> bool {
        self.poll == PollMode::Adaptive && !self.driver.has_spinners() && !self.reactor.pollers.keep_awake()
    }

    /// Whether a reactor without work since `last_work` sleeps.
    fn may_sleep(&self, now: Instant, last_work: Instant) -> bool {
        self.is_free() && self.patience.is_over(now, last_work, self.reactor.awake_until.get())
    }

    /// Called in a turn without work: whether to sleep now, or to spin on.
    fn is_time_to_sleep(&self, now: Instant, last_work: Instant) -> bool {
        if self.may_sleep(now, last_work) {
            return true;
        }
        std::thread::yield_now();
        let wanted = now < self.reactor.awake_until.get();
        self.is_free() && clock() - now >= if wanted { WANTED } else { CONTENDED }
    }

    fn sleep(&self) -> io::Result<()> {
        let reactor = &self.reactor;
        reactor.watches.for_each(|watch| {
            if watch.armed.get().is_none() {
                self.driver.ops.arm_watch(watch);
            }
        });
        reactor.wakes.set_sleeping();
        let late_wakes = reactor.drain_remote_wakes();
        // A poller's device may have finished before its watch was armed, but then the armed poll fires at once.
        if late_wakes == 0 {
            let timer = reactor.timers.next_deadline().map(|deadline| deadline - clock());
            let timeout = timer.into_iter().chain(self.awake.sleep_at_most()).min();
            self.driver.ops.arm_doorbell();
            self.driver.ring.wait(timeout)?;
            reactor.stats.borrow_mut().sleeps += 1;
        }
        reactor.wakes.set_awake();
        Ok(())
    }
}
