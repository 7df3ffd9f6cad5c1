//! The reactor's loop as one task of glommio's, and when it parks.
//!
//! A turn: remote wakes, timers, pollers, tasks. After a turn that found nothing the task returns, and glommio submits
//! what tasks have begun to wait for, spins for a while, and sleeps until one of these wakes the task: its IO, a watched
//! descriptor, the next timer, the bell. While turns find work the task returns now and then all the same, having pulled the
//! bell itself: glommio looks at its rings only when no task of its is ready.
//!
//! The reactor is the thread's current one only within the task. A wake by glommio's IO thus comes as one from elsewhere
//! does: through the remote queue, with the doorbell when the task has parked. They count as remote wakes, too.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::glommio::net::TcpStream;
use ::glommio::timer::Timer;
use futures_io::AsyncRead;
use vellum_base::ReactorId;

use super::bell::{Bell, Ringer};
use super::driver::Driver;
use super::executor;
use super::wait::{self, Wait};
use crate::backend::Backend;
use crate::kernel::{self, MainFuture, clock};
use crate::native::{Config, PollMode};
use crate::poller::Watch;
use crate::reactor::{self, Reactor};
use crate::time::Instant;
use crate::wake;

/// How long turns that find work may keep glommio from its rings.
const BUSY: Duration = Duration::from_micros(200);

/// Runs `main` on a reactor of the calling thread until it is done; then whatever else runs there is dropped.
pub(crate) fn run<F: Future>(id: ReactorId, config: &Config, main: impl FnOnce() -> F) -> io::Result<F::Output> {
    let executor = executor::build(config)?;
    let (bell, heard) = Bell::new()?;
    let driver = Rc::new(Driver::new());
    let wakes = wake::remote(Box::new(Ringer(bell.clone())));
    let backend = Backend::Kernel(kernel::Driver::Glommio(driver.clone()));
    let reactor = Reactor::new(id, backend, wakes, config.stall, config.slice);
    let mut start = Some((main, heard));
    let (wakes_us, sleeps) = (Waker::from(bell.clone()), config.poll == PollMode::Adaptive);
    let mut turns = Turns { reactor, driver, bell, wakes_us, running: None, timer: None, sleeps };
    executor.run(poll_fn(move |cx| {
        let _installed = reactor::install(&turns.reactor);
        if let Some((main, heard)) = start.take() {
            turns.start(cx.waker(), heard, main);
        }
        turns.run()
    }))
}

struct Turns<F> {
    reactor: Rc<Reactor>,
    driver: Rc<Driver>,
    bell: Arc<Bell>,
    /// The bell, as what operations wake.
    wakes_us: Waker,
    running: Option<Running<F>>,
    /// Ends the park at the reactor's next deadline.
    timer: Option<Timer>,
    /// Else glommio spins for as long as the task has parked.
    sleeps: bool,
}

/// What there is once the executor runs.
struct Running<F> {
    /// Where pulls of the bell arrive.
    heard: TcpStream,
    main: MainFuture<F>,
}

impl<F: Future> Turns<F> {
    fn start(&mut self, task: &Waker, heard: OwnedFd, main: impl FnOnce() -> F) {
        self.bell.hang(Some(task.clone()));
        self.running = Some(Running { heard: wait::stream(heard), main: MainFuture::new(main()) });
    }

    fn run(&mut self) -> Poll<io::Result<F::Output>> {
        self.reactor.wakes.set_awake();
        self.timer = None;
        let began = clock();
        let mut now = began;
        loop {
            let (progress, output) = self.turn(now);
            if let Some(output) = output {
                return Poll::Ready(Ok(output));
            }
            let idle = progress == 0 && self.reactor.tasks.ready_len() == 0 && !self.reactor.pollers.keep_awake();
            match if idle { self.park() } else { Ok(false) } {
                Ok(true) => return Poll::Pending,
                Ok(false) => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
            now = clock();
            if now - began >= BUSY {
                while self.bell_rang() {}
                self.bell.pull();
                return Poll::Pending;
            }
        }
    }

    /// One turn; returns what it got done.
    fn turn(&mut self, now: Instant) -> (usize, Option<F::Output>) {
        let reactor = &self.reactor;
        let wakes = reactor.drain_remote_wakes();
        let timers = reactor.timers.fire(now);
        let events = reactor.pollers.run();
        let (polls, _) = reactor.run_tasks(now);
        let output = self.running.as_mut().and_then(|running| running.main.poll_if_due(reactor));
        let progress = wakes + timers + events + polls;
        let mut stats = reactor.stats.borrow_mut();
        stats.turns += 1;
        stats.idle_turns += u64::from(progress == 0);
        stats.completions += self.driver.take_completions();
        stats.poller_events += events as u64;
        (progress, output)
    }

    /// Whether the bell was pulled since it was last asked; if not, it will wake.
    fn bell_rang(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        let cx = &mut Context::from_waker(&self.wakes_us);
        Pin::new(&mut running.heard).poll_read(cx, &mut [0; 64]).is_ready()
    }

    /// Prepares what ends a park; false when one of them is due already.
    fn park(&mut self) -> io::Result<bool> {
        let rang = self.bell_rang();
        let cx = &mut Context::from_waker(&self.wakes_us);
        let mut due = Ok(rang);
        self.reactor.watches.for_each(|watch| match (&due, is_readable(watch, cx)) {
            (Err(_), _) | (_, Ok(false)) => {}
            (_, readable) => due = readable,
        });
        if due? {
            return Ok(false);
        }
        if let Some(deadline) = self.reactor.timers.next_deadline() {
            let timer = self.timer.insert(Timer::new(deadline - clock()));
            if Pin::new(timer).poll(cx).is_ready() {
                return Ok(false);
            }
        }
        let wakes = &self.reactor.wakes;
        wakes.set_sleeping();
        if self.reactor.drain_remote_wakes() > 0 {
            wakes.set_awake();
            return Ok(false);
        }
        self.reactor.stats.borrow_mut().sleeps += u64::from(self.sleeps);
        Ok(true)
    }
}

/// Whether the watched descriptor was found readable since it was last asked; if not, it will wake.
fn is_readable(watch: &Watch, cx: &mut Context<'_>) -> io::Result<bool> {
    let mut armed = watch.wait.borrow_mut();
    let mut wait = match armed.take() {
        Some(wait) => wait,
        None => Wait::readable(watch.fd)?,
    };
    let readable = wait.poll(cx).is_ready();
    if !readable {
        *armed = Some(wait);
    }
    Ok(readable)
}

/// Also when a task has panicked: everything is dropped within the executor, with the reactor installed.
impl<F> Drop for Turns<F> {
    fn drop(&mut self) {
        let _installed = reactor::install(&self.reactor);
        self.running = None;
        self.reactor.clear();
        self.timer = None;
        self.bell.hang(None);
    }
}
