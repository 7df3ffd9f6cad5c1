//! The native reactor's loop, and when it sleeps.
//!
//! A turn: remote wakes, completions, timers, pollers, tasks, one submission for all that they started. A turn that
//! found nothing spins on for a short while (none at all while spinning has been in vain), and gives the core to whoever
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
        loop {
            let now = clock();
            let mut output = None;
            let (progress, now) = self.turn(now, || output = main());
            self.driver.ring.flush()?;
            if let Some(output) = output {
                return Ok(output);
            }
            if progress > 0 || self.reactor.tasks.ready_len() > 0 {
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
            }
        }
    }

    /// One turn; returns what it got done (a task that spun in vain is nothing), and the present.
    fn turn(&self, now: Instant, main: impl FnOnce()) -> (usize, Instant) {
        let reactor = &self.reactor;
        let wakes = reactor.drain_remote_wakes();
        let completions = self.driver.ring.reap();
        let timers = reactor.timers.fire(now);
        let events = reactor.pollers.run();
        let spinners = self.driver.turn_spinners();
        let (polls, now) = reactor.run_tasks(now);
        main();
        let in_vain = spinners.saturating_sub(self.driver.take_spins_ended());
        let progress = wakes + completions + timers + events + polls.saturating_sub(in_vain);
        let mut stats = reactor.stats.borrow_mut();
        stats.turns += 1;
        stats.idle_turns += u64::from(progress == 0);
        stats.completions += completions as u64;
        stats.poller_events += events as u64;
        (progress, now)
    }

    /// Called in a turn without work: whether to sleep now, or to spin on.
    fn is_time_to_sleep(&self, now: Instant, last_work: Instant) -> bool {
        let held = self.driver.has_spinners() || self.reactor.pollers.keep_awake();
        let may_sleep = self.poll == PollMode::Adaptive && !held;
        let expects = self.reactor.awake_until.get();
        if may_sleep && self.patience.is_over(now, last_work, expects) {
            return true;
        }
        std::thread::yield_now();
        may_sleep && clock() - now >= if now < expects { WANTED } else { CONTENDED }
    }

    fn sleep(&self) -> io::Result<()> {
        let reactor = &self.reactor;
        reactor.watches.for_each(|watch| {
            if watch.armed.get().is_none() {
                self.driver.ring.arm_watch(watch);
            }
        });
        reactor.wakes.set_sleeping();
        let late_wakes = reactor.drain_remote_wakes();
        // A poller's device may have finished before its watch was armed, but then the armed poll fires at once.
        if late_wakes == 0 {
            let timer = reactor.timers.next_deadline().map(|deadline| deadline - clock());
            let timeout = timer.into_iter().chain(self.awake.sleep_at_most()).min();
            self.driver.ring.sleep(timeout)?;
            reactor.stats.borrow_mut().sleeps += 1;
        }
        reactor.wakes.set_awake();
        Ok(())
    }
}
