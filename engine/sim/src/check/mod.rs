//! The invariants, one file per family, fed with the facts that the code tells ([`vellum_base::probe`]) and asserted at
//! each of them.
//!
//! - [`sessions`] N, [`reach`] N8, [`locks`] L, [`quorum`] and [`members`] Q, [`fencing`] F, [`recovery`] R, [`leaving`] U, [`compaction`] C, [`space`] A;
//! - [`durability`]: the parts of P1 that are facts (what is called durable is); [`history`]: what clients must find (P1,
//!   P2, P4), [`inspect`]: what a device holds after a crash (P1, P2, A3), [`rot`]: the same when the device lies (P3);
//!   [`linear`]: the clients' histories on a small model filesystem; [`file_locks`]: what applications hold.

pub mod compaction;
pub mod durability;
pub mod fencing;
pub mod file_locks;
pub mod history;
pub mod inspect;
pub mod leaving;
pub mod linear;
pub mod locks;
pub mod members;
pub mod quorum;
pub mod reach;
pub mod recovery;
pub mod rot;
pub mod sessions;
pub mod space;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::probe;
use vellum_base::{BlockRange, Rid};
use vellum_nvme::fault::ProcessId;
use vellum_rt::sim::WorldClock;

use self::leaving::NodeSeen;
use self::reach::Disturbed;

use crate::fault::Moment;
use crate::story::Story;

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// As `spec` names it: N1, L7, P1...
    pub invariant: &'static str,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.invariant, self.what)
    }
}

/// Where checkers say what they find.
pub struct Out {
    pub story: Story,
    violations: Vec<Violation>,
    failed: Rc<Cell<bool>>,
}

impl Out {
    pub fn violate(&mut self, invariant: &'static str, what: String) {
        self.story.say(format!("VIOLATION [{invariant}] {what}"));
        self.violations.push(Violation { invariant, what });
        self.failed.set(true);
    }

    pub fn name(&self, rid: Rid) -> String {
        self.story.name(rid)
    }
}

/// All checkers of a run.
pub struct Checks {
    pub out: Out,
    sessions: sessions::Sessions,
    locks: locks::Locks,
    durability: durability::Durability,
    recovery: recovery::Recovery,
    fencing: fencing::Fencing,
    leaving: leaving::Leaving,
    compaction: compaction::Compactions,
    space: space::Space,
    pub quorum: quorum::QuorumChecks,
    pub reach: reach::Reach,
    pub file_locks: file_locks::FileLocks,
    pub moments: Moments,
}

/// Says when a moment has come that a fault waits for.
#[derive(Default)]
pub struct Moments {
    awaited: Option<Moment>,
    came: Rc<Cell<bool>>,
    /// Where the manifest is.
    pub manifest: Vec<BlockRange>,
}

impl Moments {
    pub fn wait_for(&mut self, moment: Option<Moment>) {
        self.awaited = moment;
        self.came.set(false);
    }

    pub fn came(&self) -> Rc<Cell<bool>> {
        self.came.clone()
    }

    fn is_now(&self, moment: Moment, fact: &dyn Any) -> bool {
        use vellum_store::Fact as StoreFact;
        if let Some(fact) = fact.downcast_ref::<StoreFact>() {
            return match moment {
                Moment::Frees => matches!(fact, StoreFact::Freed { .. }),
                Moment::GivesGroup => matches!(fact, StoreFact::GroupGiven { .. }),
                Moment::Compacted => matches!(fact, StoreFact::Compacted { .. }),
                Moment::Durable => matches!(fact, StoreFact::Durable { .. }),
                Moment::Manifest | Moment::Reclaims => false,
            };
        }
        if let Some(fact) = fact.downcast_ref::<vellum_server::Fact>() {
            return moment == Moment::Reclaims && matches!(fact, vellum_server::Fact::Reclaims { .. });
        }
        let Some(vellum_nvme::fault::Fact::Writes { at_bytes, .. }) = fact.downcast_ref() else { return false };
        let is_there =
            |area: &BlockRange| (area.start.bytes()..area.end().map_or(u64::MAX, |end| end.bytes())).contains(at_bytes);
        moment == Moment::Manifest && self.manifest.iter().any(is_there)
    }

    fn see(&mut self, fact: &dyn Any) {
        if let Some(moment) = self.awaited
            && self.is_now(moment, fact)
        {
            self.awaited = None;
            self.came.set(true);
        }
    }
}

impl Checks {
    pub fn new(clock: WorldClock) -> Rc<RefCell<Checks>> {
        let out = Out { story: Story::new(clock), violations: Vec::new(), failed: Rc::default() };
        Rc::new(RefCell::new(Checks {
            out,
            sessions: Default::default(),
            locks: Default::default(),
            durability: Default::default(),
            recovery: Default::default(),
            fencing: Default::default(),
            leaving: Default::default(),
            compaction: Default::default(),
            space: Default::default(),
            quorum: Default::default(),
            reach: Default::default(),
            file_locks: Default::default(),
            moments: Default::default(),
        }))
    }

    /// Set as soon as anything is violated.
    pub fn failed(&self) -> Rc<Cell<bool>> {
        self.out.failed.clone()
    }

    pub fn violations(&self) -> &[Violation] {
        &self.out.violations
    }

    /// The process of this client is gone: what it believed counts no more.
    pub fn client_died(&mut self, rid: Rid) {
        self.locks.void(rid);
        self.fencing.died(rid);
        self.reach.died(rid);
        self.file_locks.died(rid);
    }

    /// A fault of this number keeps somebody from being heard.
    pub fn disturbed(&mut self, fault: usize, whom: Disturbed) {
        self.reach.begins(fault, whom);
    }

    pub fn undisturbed(&mut self, fault: usize) {
        self.reach.ends(fault, self.out.story.now());
    }

    /// A client hears that it was given up.
    pub fn told_fenced(&mut self, rid: Rid) {
        self.reach.told(rid, &mut self.out);
    }

    /// All faults are over.
    pub fn all_undisturbed(&mut self) {
        self.reach.all_end(self.out.story.now());
    }

    pub fn falls_asleep(&mut self, node: usize) {
        self.quorum.members.falls_asleep(node, self.out.story.now());
    }

    pub fn wakes(&mut self, node: usize) {
        self.quorum.members.wakes(node, self.out.story.now());
    }

    /// An operator tells a member to stop, while these clients live.
    pub fn told_to_stop(&mut self, process: ProcessId, now: Duration, lives: impl Iterator<Item = Rid>) {
        let mounted = lives.filter(|rid| self.sessions.is_known(*rid)).collect();
        self.leaving.told(process, now, !self.quorum.takes_part(process), mounted);
    }

    /// The members at a moment of the run, and the clients that live.
    pub fn look_at_members(&mut self, nodes: &[NodeSeen], now: Duration, lives: &BTreeSet<Rid>) {
        let is_mounted = |rid| lives.contains(&rid) && self.sessions.is_known(rid);
        self.leaving.look(nodes, now, is_mounted, &mut self.out);
    }

    fn see(&mut self, fact: &dyn Any) {
        self.moments.see(fact);
        let out = &mut self.out;
        if let Some(fact) = fact.downcast_ref::<vellum_proto::fact::SessionFact>() {
            self.sessions.session(fact, out);
        } else if let Some(fact) = fact.downcast_ref::<vellum_proto::fact::QuorumFact>() {
            self.quorum.members.member(fact, out);
        } else if let Some(fact) = fact.downcast_ref::<vellum_proto::fact::LockFact>() {
            self.locks.table(fact, &self.quorum, out);
        } else if let Some(fact) = fact.downcast_ref::<vellum_client::Fact>() {
            self.locks.client(fact, out);
            self.fencing.client(fact, out);
            self.durability.client(fact, out);
        } else if let Some(fact) = fact.downcast_ref::<vellum_server::Fact>() {
            let term = match fact {
                vellum_server::Fact::Greeted { term, .. } => Some(*term),
                _ => None,
            };
            let unaware = term.is_some_and(|term| self.quorum.is_unaware(term, out.story.now()));
            self.sessions.server(fact, &self.durability, unaware, out);
            self.locks.server(fact, unaware);
            self.recovery.server(fact, out);
            self.fencing.server(fact, unaware, out);
            self.reach.server(fact, out);
            self.leaving.server(fact, out);
            self.quorum.server(fact, out);
        } else if let Some(fact) = fact.downcast_ref::<vellum_store::Fact>() {
            self.durability.store(fact, out);
            self.sessions.store(fact, out);
            self.locks.store(fact, out);
            self.fencing.store(fact);
            self.recovery.store(fact, out);
            self.compaction.store(fact, out);
            self.space.store(fact, &self.durability, out);
        } else if let Some(fact) = fact.downcast_ref::<vellum_nvme::fault::Fact>() {
            self.quorum.device(fact, out);
        }
    }
}

/// Listens to every fact of this thread until the answer is dropped.
pub fn listen(checks: &Rc<RefCell<Checks>>) -> probe::Listening {
    let checks = checks.clone();
    probe::listen(move |fact| checks.borrow_mut().see(fact))
}
