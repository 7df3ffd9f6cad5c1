//! Reactors on threads: started together on cores, one at a time, or on the calling thread.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;

use rustix::thread::{CpuSet, sched_setaffinity};
use vellum_base::ReactorId;

use super::config::{Config, Executor};
use super::driver::{Driver, EventfdDoorbell, new_eventfd};
use super::run::Loop;
use crate::backend::Backend;
use crate::kernel::{self, MainFuture};
use crate::reactor::{self, Reactor};
use crate::wake;

/// Runs `main` on a reactor of the calling thread until it is done; then whatever else runs there is dropped.
fn run<F: Future>(id: ReactorId, config: &Config, main: impl FnOnce() -> F) -> io::Result<F::Output> {
    assert!(!reactor::has_reactor(), "this thread runs a reactor already");
    match config.executor {
        Executor::Native => run_natively(id, config, main),
        #[cfg(feature = "glommio")]
        Executor::Glommio => crate::glommio::run(id, config, main),
    }
}

fn run_natively<F: Future>(id: ReactorId, config: &Config, main: impl FnOnce() -> F) -> io::Result<F::Output> {
    let doorbell = new_eventfd()?;
    let driver = Rc::new(Driver::new(config, doorbell.clone())?);
    let _shared = vellum_uring::install(&driver.ring);
    let wakes = wake::remote(Box::new(EventfdDoorbell(doorbell)));
    let backend = Backend::Kernel(kernel::Driver::Native(driver.clone()));
    let reactor = Reactor::new(id, backend, wakes, config.stall, config.slice);
    let _installed = reactor::install(&reactor);
    let _cleared = ClearOnDrop(&reactor);
    let mut main = MainFuture::new(main());
    Loop::new(reactor.clone(), driver, config).run_until(|| main.poll_if_due(&reactor))
}

/// Tasks are dropped while their reactor is installed, also when one of them panics.
struct ClearOnDrop<'a>(&'a Rc<Reactor>);

impl Drop for ClearOnDrop<'_> {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// Runs `future` on a reactor of the calling thread. Tasks that it spawned and that still run are dropped at the end.
///
/// # Panics
/// When the thread has a reactor already, or the kernel gives no io_uring.
pub fn block_on<F: Future>(future: F) -> F::Output {
    block_on_with(Config::default(), future).unwrap_or_else(|e| panic!("no reactor: {e}"))
}

/// [`block_on`] with a configuration, and an error where the kernel gives no io_uring (or not what glommio needs).
pub fn block_on_with<F: Future>(config: Config, future: F) -> io::Result<F::Output> {
    run(ReactorId(0), &config, || future)
}

/// One reactor thread.
pub struct ReactorThread<T> {
    thread: thread::JoinHandle<io::Result<T>>,
}

impl<T> ReactorThread<T> {
    /// Waits for the thread's main future. Blocks: not for use within a reactor.
    pub fn join(self) -> io::Result<T> {
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

fn pin_to(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no core {core}")));
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("cannot run on core {core}: {e}")))
}

fn spawn_as<F, Fut>(
    name: &str,
    id: ReactorId,
    core: Option<usize>,
    config: Config,
    main: F,
) -> io::Result<ReactorThread<Fut::Output>>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future + 'static,
    Fut::Output: Send + 'static,
{
    let (ready, pinned) = mpsc::channel();
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let pin = core.map_or(Ok(()), pin_to);
        let failed = pin.is_err();
        let _ = ready.send(pin);
        if failed {
            return Err(io::Error::other("the thread could not be pinned"));
        }
        run(id, &config, main)
    })?;
    pinned.recv().map_err(|_| io::Error::other("the reactor thread died at its start"))??;
    Ok(ReactorThread { thread })
}

/// One more reactor thread, pinned to `core` if given.
pub fn spawn_thread<F, Fut>(name: &str, core: Option<usize>, main: F) -> io::Result<ReactorThread<Fut::Output>>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future + 'static,
    Fut::Output: Send + 'static,
{
    spawn_thread_with(name, core, Config::default(), main)
}

/// [`spawn_thread`] with a configuration.
pub fn spawn_thread_with<F, Fut>(
    name: &str,
    core: Option<usize>,
    config: Config,
    main: F,
) -> io::Result<ReactorThread<Fut::Output>>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future + 'static,
    Fut::Output: Send + 'static,
{
    spawn_as(name, ReactorId(0), core, config, main)
}

/// Reactors that were started together.
pub struct Reactors {
    threads: Vec<ReactorThread<()>>,
}

impl Reactors {
    /// Waits until every reactor's main future is done; the first error of any.
    pub fn join(self) -> io::Result<()> {
        let mut result = Ok(());
        for thread in self.threads {
            let ended = thread.join();
            result = result.and(ended);
        }
        result
    }
}

/// Starts one reactor thread per entry of `cores`, pinned where it names a core; `main` runs on each.
pub fn start<F, Fut>(cores: &[Option<usize>], config: Config, main: F) -> io::Result<Reactors>
where
    F: Fn(ReactorId) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let mut threads = Vec::with_capacity(cores.len());
    for (i, &core) in cores.iter().enumerate() {
        let index = u16::try_from(i).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "too many reactors"))?;
        let id = ReactorId(index);
        let main = main.clone();
        threads.push(spawn_as(&format!("reactor-{i}"), id, core, config.clone(), move || main(id))?);
    }
    Ok(Reactors { threads })
}
