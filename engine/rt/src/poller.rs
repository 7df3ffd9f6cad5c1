//! Pollers: functions that a reactor calls each turn, for what has no place in its ring (device queues, rings in memory).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};

use crate::backend::Backend;
use crate::reactor;
use crate::{kernel, native};

pub(crate) struct Poller {
    pub name: &'static str,
    run: RefCell<Box<dyn FnMut() -> usize>>,
    keep_awake: Cell<bool>,
    removed: Cell<bool>,
    pub events: Cell<u64>,
}

#[derive(Default)]
pub(crate) struct Pollers {
    list: RefCell<Vec<Rc<Poller>>>,
}

impl Pollers {
    /// Calls each poller once; returns the events they handled.
    pub fn run(&self) -> usize {
        let mut events = 0;
        let mut i = 0;
        loop {
            let Some(poller) = self.list.borrow().get(i).cloned() else { return events };
            if poller.removed.get() {
                self.list.borrow_mut().remove(i);
                continue;
            }
            let handled = (poller.run.borrow_mut())();
            poller.events.set(poller.events.get() + handled as u64);
            events += handled;
            i += 1;
        }
    }

    pub fn keep_awake(&self) -> bool {
        self.list.borrow().iter().any(|poller| poller.keep_awake.get() && !poller.removed.get())
    }

    pub fn len(&self) -> usize {
        self.list.borrow().len()
    }

    pub fn clear(&self) {
        let dropped = std::mem::take(&mut *self.list.borrow_mut());
        drop(dropped);
    }
}

/// Keeps a poller registered; dropping it removes the poller, and drops its function.
#[must_use = "dropping the handle removes the poller"]
pub struct PollerHandle {
    poller: Rc<Poller>,
}

impl PollerHandle {
    /// While set, the reactor does not sleep: for a device with IO in flight and no fd that says when it is done.
    pub fn keep_awake(&self, yes: bool) {
        self.poller.keep_awake.set(yes);
    }
}

impl Drop for PollerHandle {
    fn drop(&mut self) {
        self.poller.removed.set(true);
        self.poller.keep_awake.set(false);
        // What it holds is let go now, not at the next turn: the next to come may want it (a controller may have one queue
        // pair only). A poller that removes itself is running, and goes at the next turn.
        let held = self.poller.run.try_borrow_mut().ok().map(|mut run| std::mem::replace(&mut *run, Box::new(|| 0)));
        drop(held);
    }
}

impl fmt::Debug for PollerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PollerHandle({})", self.poller.name)
    }
}

/// Calls `f` each turn of the current reactor; it returns the events it handled (0: nothing to do, the reactor may
/// sleep). Whenever a task has run, every poller runs at least once before the reactor sleeps: a poller may submit what
/// tasks have queued. It must not wait, and must not run the reactor. What should end a sleep needs [`watch_fd`].
pub fn add_poller(name: &'static str, f: impl FnMut() -> usize + 'static) -> PollerHandle {
    let poller = Rc::new(Poller {
        name,
        run: RefCell::new(Box::new(f)),
        keep_awake: Cell::new(false),
        removed: Cell::new(false),
        events: Cell::new(0),
    });
    reactor::with(|reactor| reactor.pollers.list.borrow_mut().push(poller.clone()));
    PollerHandle { poller }
}

/// Registration of a file descriptor that ends the reactor's sleep.
pub(crate) struct Watch {
    pub fd: RawFd,
    /// The native ring's operation that polls it, while there is one.
    pub armed: Cell<Option<native::OpId>>,
    /// The same under glommio.
    #[cfg(feature = "glommio")]
    pub wait: RefCell<Option<crate::glommio::Wait>>,
}

#[derive(Default)]
pub(crate) struct Watches {
    list: RefCell<Vec<Weak<Watch>>>,
}

impl Watches {
    pub fn add(&self, fd: RawFd) -> Rc<Watch> {
        let watch = Rc::new(Watch {
            fd,
            armed: Cell::new(None),
            #[cfg(feature = "glommio")]
            wait: RefCell::new(None),
        });
        self.list.borrow_mut().push(Rc::downgrade(&watch));
        watch
    }

    /// The watches that are alive.
    pub fn for_each(&self, mut f: impl FnMut(&Rc<Watch>)) {
        self.list.borrow_mut().retain(|watch| match watch.upgrade() {
            Some(watch) => {
                f(&watch);
                true
            }
            None => false,
        });
    }
}

/// Keeps a file descriptor watched. Dropping it ends the watch; the descriptor must stay open until then.
#[must_use = "dropping it ends the watch"]
pub struct FdWatch {
    watch: Rc<Watch>,
    native: Option<Rc<native::Driver>>,
}

impl Drop for FdWatch {
    fn drop(&mut self) {
        if let (Some(op), Some(driver)) = (self.watch.armed.get(), &self.native) {
            driver.ops.cancel(op);
        }
    }
}

impl fmt::Debug for FdWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FdWatch({})", self.watch.fd)
    }
}

/// Readability of `fd` wakes the current reactor out of its sleep, whereupon its pollers run. Level-triggered: a poller
/// must consume what made it readable, else the reactor never sleeps. Costs nothing while the reactor is busy (the
/// kernel is asked only before a sleep). In the simulation it does nothing.
pub fn watch_fd(fd: RawFd) -> FdWatch {
    reactor::with(|reactor| {
        let watch = reactor.watches.add(fd);
        let native = match &reactor.backend {
            Backend::Kernel(kernel::Driver::Native(driver)) => Some(driver.clone()),
            _ => None,
        };
        FdWatch { watch, native }
    })
}
