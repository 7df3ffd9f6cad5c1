//! What happened, in the clients' order, and what may therefore be found.
//!
//! Every version of every file is kept in the order of the transactions, which the WRITE locks make one order. A client
//! whose batches may be lost (it died, or was fenced) loses a suffix of them: `certain` and `lost_from` bound that suffix
//! and every observation narrows them; a contradiction is a violation.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use vellum_base::{Ino, Rid};
use vellum_wire::{LockMode, LockName};

use super::Violation;
use crate::work::file::File;

struct Version {
    rid: Rid,
    batch: u64,
    file: Option<File>,
}

struct Writer {
    name: String,
    /// Batches up to here are durable: acknowledged, or seen by another client.
    certain: u64,
    /// Batches from here on were seen to be missing.
    lost_from: u64,
    lost_because: String,
    /// It heard that it was fenced, or its node was killed.
    is_dead: bool,
    /// A conflicting lock was granted while it used its own: it must be dead.
    must_be_dead: Option<String>,
}

#[derive(Default)]
pub struct History {
    files: BTreeMap<Ino, Vec<Version>>,
    writers: BTreeMap<Rid, Writer>,
    using: Vec<(u64, Rid, LockName, LockMode)>,
    next_use: u64,
    next_stamp: u64,
    violations: Vec<Violation>,
    failed: Rc<Cell<bool>>,
    pub txns: u64,
    pub reads: u64,
    pub syncs: u64,
}

/// A durable state: the newest batch of each client that has a record, and all files.
pub struct Survived {
    pub last_batch: BTreeMap<Rid, u64>,
    pub files: BTreeMap<Ino, File>,
    /// Of the last change of each file.
    pub sequences: BTreeMap<Ino, u64>,
    pub segments: u64,
}

impl History {
    /// `failed` is set as soon as anything is violated.
    pub fn new(failed: Rc<Cell<bool>>) -> History {
        History { failed, ..History::default() }
    }

    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    pub fn violate(&mut self, invariant: &'static str, what: String) {
        self.violations.push(Violation { invariant, what });
        self.failed.set(true);
    }

    pub fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }

    pub fn begin(&mut self, rid: Rid, name: String) {
        let writer = Writer {
            name,
            certain: 0,
            lost_from: u64::MAX,
            lost_because: String::new(),
            is_dead: false,
            must_be_dead: None,
        };
        self.writers.insert(rid, writer);
    }

    pub fn dead(&mut self, rid: Rid) {
        if let Some(writer) = self.writers.get_mut(&rid) {
            writer.is_dead = true;
        }
    }

    /// The node of these clients was killed: all whose name begins so.
    pub fn dead_named(&mut self, start: &str) {
        let named = |w: &&mut Writer| w.name.starts_with(start);
        self.writers.values_mut().filter(named).for_each(|w| w.is_dead = true);
    }

    /// At the moment of the transaction's commit.
    pub fn commit(&mut self, rid: Rid, batch: u64, changes: Vec<(Ino, Option<File>)>) {
        self.txns += 1;
        for (ino, file) in changes {
            self.files.entry(ino).or_default().push(Version { rid, batch, file });
        }
    }

    /// Some client has written this file once.
    pub fn was_written(&self, ino: Ino) -> bool {
        self.files.contains_key(&ino)
    }

    /// Somebody has written just this, at some time; what nobody wrote counts as written when there is nothing.
    pub fn was_ever(&self, ino: Ino, file: &File) -> bool {
        self.files.get(&ino).is_some_and(|versions| versions.iter().any(|version| version.file.as_ref() == Some(file)))
    }

    /// The client was told that this batch is durable, and all before it.
    pub fn durable(&mut self, rid: Rid, batch: u64) {
        self.syncs += 1;
        self.is_certain(rid, batch, "it was acknowledged");
    }

    fn is_certain(&mut self, rid: Rid, batch: u64, because: &str) {
        let Some(writer) = self.writers.get_mut(&rid) else { return };
        writer.certain = writer.certain.max(batch);
        if writer.certain >= writer.lost_from {
            let Writer { name, lost_from, lost_because, .. } = &*writer;
            let what = format!("{name}: batch {batch} is durable ({because}), and {lost_from} is not ({lost_because})");
            self.violate("P1", what);
        }
    }

    fn is_lost(&mut self, rid: Rid, batch: u64, because: impl Fn() -> String) {
        let Some(writer) = self.writers.get_mut(&rid) else { return };
        if batch < writer.lost_from {
            writer.lost_from = batch;
            writer.lost_because = because();
        }
        if batch <= writer.certain {
            let text = format!("{}: batch {batch} is lost ({}), and was certain", writer.name, because());
            self.violate("P1", text);
        }
    }

    /// A client read this under a lock.
    pub fn read(&mut self, by: Rid, ino: Ino, found: Option<&File>) {
        self.reads += 1;
        let name = self.writers.get(&by).map_or_else(String::new, |w| w.name.clone());
        self.find(ino, found, Some(by), &BTreeMap::new(), &format!("{name} read {ino}"));
    }

    /// What was found must be the last version whose batch is not lost.
    fn find(&mut self, ino: Ino, found: Option<&File>, by: Option<Rid>, known: &BTreeMap<Rid, u64>, what: &str) {
        let versions = self.files.remove(&ino).unwrap_or_default();
        let mut over = false;
        for version in versions.iter().rev() {
            if let Some(last) = known.get(&version.rid).filter(|last| version.batch > **last) {
                let _ = last; // did not survive, as its writer's other batches since then
                continue;
            }
            if version.file.as_ref() == found {
                if by.is_some_and(|by| by != version.rid) && found.is_some() {
                    self.is_certain(version.rid, version.batch, what);
                }
                over = true;
                break;
            }
            let writer = self.writers.get(&version.rid);
            let may_be_lost = writer.is_some_and(|w| version.batch > w.certain)
                && Some(version.rid) != by
                && !known.contains_key(&version.rid);
            if !may_be_lost {
                let name = writer.map_or("?", |w| &w.name);
                let (batch, file) = (version.batch, &version.file);
                let text = format!("{what}: found {found:?}, expected batch {batch} of {name}: {file:?}");
                self.violate(if by.is_some() { "P4" } else { "P1" }, text);
                over = true;
                break;
            }
            self.is_lost(version.rid, version.batch, || format!("{what}: found {found:?}"));
        }
        if !over && found.is_some() {
            self.violate("P2", format!("{what}: found {found:?}, which nobody wrote"));
        }
        if !versions.is_empty() {
            self.files.insert(ino, versions);
        }
    }

    /// A state that a crash left.
    pub fn survived(&mut self, state: &Survived, what: &str) {
        let mut found = Vec::new();
        for (rid, last) in &state.last_batch {
            let Some(writer) = self.writers.get(rid) else { continue };
            let Writer { name, certain, lost_from, lost_because, .. } = writer;
            if last < certain {
                let text = format!("{what}: {name}: batch {certain} was durable, and {last} is the last");
                found.push(("P1", text));
            }
            if last >= lost_from {
                let text = format!("{what}: {name}: batch {last} is there, and {lost_from} was lost ({lost_because})");
                found.push(("P1", text));
            }
        }
        found.into_iter().for_each(|(invariant, text)| self.violate(invariant, text));
        let inos: BTreeSet<Ino> = self.files.keys().chain(state.files.keys()).copied().collect();
        for ino in inos {
            self.find(ino, state.files.get(&ino), None, &state.last_batch, &format!("{what}: {ino}"));
        }
    }

    /// Locks are used from now on, until [`Self::unuse`].
    pub fn in_use(&mut self, rid: Rid, locks: impl Iterator<Item = (LockName, LockMode)>) -> u64 {
        self.next_use += 1;
        for (name, mode) in locks {
            for (_, other, held, other_mode) in &self.using {
                let conflict = *held == name && (mode == LockMode::Write || *other_mode == LockMode::Write);
                if conflict
                    && *other != rid
                    && let Some(writer) = self.writers.get_mut(other)
                {
                    writer.must_be_dead = Some(format!("{rid} got {name:?} for {mode:?}"));
                }
            }
            self.using.push((self.next_use, rid, name, mode));
        }
        self.next_use
    }

    pub fn unuse(&mut self, used: u64) {
        self.using.retain(|(id, ..)| *id != used);
    }

    /// When all work is done: whoever lost something must have been told.
    pub fn end(&mut self) {
        let mut found = Vec::new();
        for writer in self.writers.values().filter(|w| !w.is_dead) {
            let Writer { name, lost_from, lost_because, must_be_dead, .. } = writer;
            if *lost_from != u64::MAX {
                found.push(("P1", format!("{name} lives, and its batch {lost_from} was lost: {lost_because}")));
            }
            if let Some(why) = must_be_dead {
                found.push(("L1", format!("{name} lives, and used a lock that was not its own: {why}")));
            }
        }
        found.into_iter().for_each(|(invariant, text)| self.violate(invariant, text));
    }
}
