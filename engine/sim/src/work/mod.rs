//! What the clients' machines do, and what they share.
//!
//! - [`items`]: transactions on items, told to the [`History`]; [`gateway`]: POSIX on many names, and on files of its own;
//! - [`names`]: POSIX on few names, for [`crate::check::linear`]; [`hostile`]: who breaks the rules;
//! - [`file_locks`]: locks of files;
//! - [`agent`]: walks the index of changes; [`mount`]: a client with a VFS; [`file`]: what `items` writes.

pub mod agent;
pub mod file;
pub mod file_locks;
pub mod gateway;
pub mod hostile;
pub mod items;
pub mod mount;
pub mod names;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use vellum_base::{Ino, Rid};
use vellum_client::Address;
use vellum_proto::Timers;
use vellum_rt::random_u64;

use crate::check::Checks;
use crate::check::history::History;
use crate::check::linear::Ops;
use crate::plan::Plan;

/// Pause before a client that is gone is replaced.
pub(crate) const REPLACE: Duration = Duration::from_millis(50);

/// What all clients of one run share.
pub struct Shared {
    pub checks: Rc<RefCell<Checks>>,
    pub history: RefCell<History>,
    pub ops: RefCell<Ops>,
    pub files: RefCell<Vec<Ino>>,
    /// Who lives on each client's machine.
    pub lives: RefCell<BTreeMap<usize, Rid>>,
    next_life: Cell<u64>,
    /// The device has failed: errors are no surprise.
    pub device_failed: Cell<bool>,
    /// Some reads lie, from some time on.
    pub device_lies: Cell<bool>,
    /// Reads of files that were answered with an error since.
    pub errors: Cell<u64>,
    /// How often it did: who lived then may hear of it later.
    pub device_failures: Cell<u64>,
    /// When the first of them was, in nanoseconds of the story.
    pub first_failure: Cell<u64>,
    /// No new work.
    pub stop: Cell<bool>,
    /// Machines whose work has ended.
    finished: RefCell<BTreeSet<usize>>,
    pub timers: Timers,
    /// Rounds that end with a pause: one in so many.
    pub pause_one_in: u64,
    /// Most files that clients of items have at a time.
    pub max_files: usize,
    address: Address,
}

impl Shared {
    /// Groups in several buckets, with a few files each; far above those that the engine gives out.
    pub fn new(checks: Rc<RefCell<Checks>>, address: Address, timers: Timers, plan: &Plan) -> Rc<Shared> {
        let mut files = Vec::new();
        for group in 0..plan.groups {
            let first = ((group * 255 / plan.groups.max(2)) << 56) | (1 << 30);
            files.extend((1..=4).map(|n| Ino(first | n)));
        }
        let failed = checks.borrow().failed();
        Rc::new(Shared {
            checks,
            history: RefCell::new(History::new(failed)),
            ops: RefCell::default(),
            files: RefCell::new(files),
            lives: RefCell::default(),
            next_life: Cell::new(0),
            device_failed: Cell::new(false),
            device_lies: Cell::new(false),
            errors: Cell::new(0),
            device_failures: Cell::new(0),
            first_failure: Cell::new(u64::MAX),
            stop: Cell::new(false),
            finished: RefCell::default(),
            timers,
            pause_one_in: plan.pause_one_in,
            max_files: plan.max_files,
            address,
        })
    }

    /// Where the engine is.
    pub fn address(&self) -> Address {
        self.address.clone()
    }

    /// A new client on the machine: its rid, and what it is called.
    pub fn begin_life(&self, machine: usize) -> (Rid, String) {
        let life = self.next_life.get() + 1;
        self.next_life.set(life);
        let rid = Rid(random_u64());
        let name = format!("client {machine} (life {life})");
        self.lives.borrow_mut().insert(machine, rid);
        self.checks.borrow_mut().reach.lives(rid, machine);
        let story = &mut self.checks.borrow_mut().out.story;
        story.call(rid, name.clone());
        story.say(format!("{name} begins, as rid {rid}"));
        (rid, name)
    }

    /// The device fails, or lies: from now on errors are no surprise, and what was not durable may go.
    pub fn device_fails(&self) {
        let now = self.checks.borrow().out.story.now();
        if self.device_failures.get() == 0 {
            self.first_failure.set(now);
        }
        self.device_failures.set(self.device_failures.get() + 1);
    }

    /// Whether errors of a life that began after so many failures are no surprise.
    pub fn excuses(&self, failures: u64) -> bool {
        self.device_failed.get() || self.device_lies.get() || self.device_failures.get() != failures
    }

    /// The machine's work has ended.
    pub fn finish(&self, machine: usize) {
        self.finished.borrow_mut().insert(machine);
    }

    /// Of `machines`, those that still work.
    pub fn unfinished(&self, machines: usize) -> Vec<usize> {
        (0..machines).filter(|machine| !self.finished.borrow().contains(machine)).collect()
    }

    /// The machine's process was killed.
    pub fn end_life(&self, machine: usize) {
        if let Some(rid) = self.lives.borrow_mut().remove(&machine) {
            self.history.borrow_mut().dead(rid);
            self.ops.borrow_mut().died(rid);
            self.checks.borrow_mut().client_died(rid);
        }
    }
}
