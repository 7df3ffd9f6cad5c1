//! The engine's side of the file locks that one reactor owns.
//!
//! Invariants:
//! - what is held is compatible; only what is held is in anybody's way, as in Linux: a waiter holds nobody up;
//! - every input ends with a look at the waiters of the files it touched: one that can be granted never waits, and of two
//!   that exclude each other the one that came first is granted;
//! - while recovering nothing is granted, refused or given up [L7]: requests wait in their order;
//! - each request is answered once; one that waits has its end told once, or is taken back;
//! - an owner that waits in the fcntl family is in the graph of waiters with all that it waits for.
//!
//! flock(2) is not searched for circles, as in Linux.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use thiserror::Error;
use vellum_base::{Ino, Mutant, Rid, mutant};
use vellum_wire::{FileLock, FileLockMode, FileLockOutcome, FileLockSpace};

use super::{Held, Owner, Ranges, WaitChange, WaitId};

/// Most ranges that one client may hold on one reactor.
pub const MAX_FILE_LOCKS_PER_CLIENT: usize = 16_384;
/// Most requests of one client that may wait on one reactor.
pub const MAX_FILE_WAITS_PER_CLIENT: usize = 4_096;

/// What the table wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileLockOutput {
    /// The answer to a request.
    Answer { rid: Rid, request: u64, outcome: FileLockOutcome },
    /// The answer to a test: the first that is in the way.
    Found { rid: Rid, request: u64, found: Option<Held> },
    /// A waiting request has ended.
    Ended { rid: Rid, ticket: u64, outcome: FileLockOutcome },
    /// For the graph of waiters: to be applied before any other output of the same input leaves the engine.
    Graph(WaitChange),
}

#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum FileLockError {
    #[error("a lock of {ino} is held by another client: this one was fenced")]
    HeldByAnother { ino: Ino },
    #[error("{held} file locks are held; {MAX_FILE_LOCKS_PER_CLIENT} are allowed")]
    TooMany { held: usize },
}

struct Waiter {
    ticket: u64,
    space: FileLockSpace,
    wanted: Held,
    /// What the graph was told.
    blockers: Vec<Owner>,
}

#[derive(Default)]
pub(super) struct File {
    posix: Ranges,
    flock: Ranges,
    waiters: VecDeque<Waiter>,
}

impl File {
    fn ranges(&self, space: FileLockSpace) -> &Ranges {
        match space {
            FileLockSpace::Posix => &self.posix,
            FileLockSpace::Flock => &self.flock,
        }
    }

    fn ranges_mut(&mut self, space: FileLockSpace) -> &mut Ranges {
        match space {
            FileLockSpace::Posix => &mut self.posix,
            FileLockSpace::Flock => &mut self.flock,
        }
    }

    fn is_idle(&self) -> bool {
        self.posix.is_empty() && self.flock.is_empty() && self.waiters.is_empty()
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = (FileLockSpace, Held)> + '_ {
        self.waiters.iter().map(|waiter| (waiter.space, waiter.wanted))
    }

    /// One for each waiter.
    pub(super) fn waiting_rids(&self) -> impl Iterator<Item = Rid> + '_ {
        self.waiters.iter().map(|waiter| waiter.wanted.owner.rid)
    }

    /// Who holds or waits.
    pub(super) fn rids(&self) -> BTreeSet<Rid> {
        let held = self.posix.iter().chain(self.flock.iter()).map(|held| held.owner.rid);
        held.chain(self.waiting_rids()).collect()
    }

    fn count_of(&self, rid: Rid) -> usize {
        self.posix.count_of(rid) + self.flock.count_of(rid)
    }
}

#[derive(Default)]
struct Client {
    held: usize,
    waits: usize,
    /// Ranges held in each file where it holds some or waits.
    files: BTreeMap<Ino, usize>,
}

enum Request {
    Lock { request: u64, ino: Ino, lock: FileLock, ticket: Option<u64> },
    Test { request: u64, ino: Ino, lock: FileLock },
    Cancel { request: u64, ino: Ino, ticket: u64 },
}

#[derive(Default)]
pub struct FileLockTable {
    pub(super) files: BTreeMap<Ino, File>,
    clients: HashMap<Rid, Client>,
    /// Files of clients whose reclaim has begun.
    reclaiming: HashMap<Rid, VecDeque<Ino>>,
    recovering: bool,
    /// What came while recovering. Bounded by the requests that clients may have open.
    early: VecDeque<(Rid, Request)>,
    outputs: VecDeque<FileLockOutput>,
}

/// Sizes for the status page.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FileLockStats {
    pub files: usize,
    pub held: usize,
    pub waiting: usize,
}

fn held(rid: Rid, lock: &FileLock) -> Held {
    let owner = Owner { rid, id: lock.owner };
    Held { owner, pid: lock.pid, start: lock.start, end: lock.end, mode: lock.mode }
}

impl FileLockTable {
    /// While `recovering`, requests wait.
    pub fn new(recovering: bool) -> FileLockTable {
        FileLockTable { recovering, ..FileLockTable::default() }
    }

    /// Sets or removes a lock. With a ticket it waits for its turn.
    pub fn lock(&mut self, rid: Rid, request: u64, ino: Ino, lock: FileLock, ticket: Option<u64>) {
        self.handle(rid, Request::Lock { request, ino, lock, ticket });
    }

    pub fn test(&mut self, rid: Rid, request: u64, ino: Ino, lock: FileLock) {
        self.handle(rid, Request::Test { request, ino, lock });
    }

    /// The waiter is not interested any more.
    pub fn cancel(&mut self, rid: Rid, request: u64, ino: Ino, ticket: u64) {
        self.handle(rid, Request::Cancel { request, ino, ticket });
    }

    fn handle(&mut self, rid: Rid, request: Request) {
        if self.recovering {
            return self.early.push_back((rid, request));
        }
        self.carry_out(rid, request);
    }

    fn carry_out(&mut self, rid: Rid, request: Request) {
        match request {
            Request::Lock { request, ino, lock, ticket } => {
                let outcome = self.begin(rid, ino, &lock, ticket);
                self.outputs.push_back(FileLockOutput::Answer { rid, request, outcome });
                self.advance(ino);
            }
            Request::Test { request, ino, lock } => {
                let wanted = held(rid, &lock);
                let found =
                    self.files.get(&ino).and_then(|file| file.ranges(lock.space).conflicts(&wanted).next().copied());
                self.outputs.push_back(FileLockOutput::Found { rid, request, found });
            }
            Request::Cancel { request, ino, ticket } => {
                let found = self.take_waiter(ino, WaitId { rid, ticket });
                let outcome = if found { FileLockOutcome::Cancelled } else { FileLockOutcome::NotWaiting };
                self.outputs.push_back(FileLockOutput::Answer { rid, request, outcome });
                self.forget_if_idle(ino);
            }
        }
    }

    /// What can be said at once.
    fn begin(&mut self, rid: Rid, ino: Ino, lock: &FileLock, ticket: Option<u64>) -> FileLockOutcome {
        let wanted = held(rid, lock);
        let file = self.files.entry(ino).or_default();
        let ranges = file.ranges_mut(lock.space);
        let is_free = ranges.conflicts(&wanted).next().is_none() || mutant::active(Mutant::GrantFileLockInConflict);
        if !is_free && lock.space == FileLockSpace::Flock && ranges.has_owner(wanted.owner) {
            // Two that share a lock and both want it alone would wait for each other for ever: a conversion that cannot
            // be had at once gives up what it has, as in Linux.
            ranges.weaken(wanted.owner, lock.start, lock.end, FileLockMode::Unlocked);
        }
        let growth = ranges.growth(&wanted);
        let client = self.clients.entry(rid).or_default();
        let outcome = if is_free {
            // Giving up is refused only where it would split: a client must always be able to have less.
            if growth > 0 && client.held.saturating_add_signed(growth) > MAX_FILE_LOCKS_PER_CLIENT {
                FileLockOutcome::TooMany
            } else {
                ranges.set(&wanted);
                FileLockOutcome::Done
            }
        } else {
            match ticket {
                None => FileLockOutcome::Conflict,
                Some(_) if client.waits >= MAX_FILE_WAITS_PER_CLIENT => FileLockOutcome::TooMany,
                Some(ticket) => {
                    client.waits += 1;
                    file.waiters.push_back(Waiter { ticket, space: lock.space, wanted, blockers: Vec::new() });
                    FileLockOutcome::Queued
                }
            }
        };
        self.recount(rid, ino);
        outcome
    }

    pub(super) fn count_wait(&mut self, rid: Rid, more: isize) {
        let client = self.clients.entry(rid).or_default();
        client.waits = client.waits.saturating_add_signed(more);
    }

    /// What a client has in a file has changed.
    pub(super) fn recount(&mut self, rid: Rid, ino: Ino) {
        let Some(client) = self.clients.get_mut(&rid) else { return };
        let file = self.files.get(&ino);
        let held = file.map_or(0, |file| file.count_of(rid));
        let waits = file.is_some_and(|file| file.waiters.iter().any(|w| w.wanted.owner.rid == rid));
        let before = if held > 0 || waits { client.files.insert(ino, held) } else { client.files.remove(&ino) };
        client.held = client.held + held - before.unwrap_or(0);
        if client.files.is_empty() {
            self.clients.remove(&rid);
        }
    }

    /// Grants whoever can be granted, in the order of arrival, and tells the graph what the others wait for.
    fn advance(&mut self, ino: Ino) {
        while let Some(waiter) = self.next_grantable(ino) {
            let Waiter { ticket, space, wanted, .. } = waiter;
            let rid = wanted.owner.rid;
            let id = WaitId { rid, ticket };
            self.ended(space, id);
            let full = self.clients.get(&rid).is_some_and(|c| c.held >= MAX_FILE_LOCKS_PER_CLIENT);
            let outcome = if full { FileLockOutcome::TooMany } else { FileLockOutcome::Done };
            if let Some(file) = self.files.get_mut(&ino).filter(|_| !full) {
                file.ranges_mut(space).set(&wanted);
            }
            self.recount(rid, ino);
            self.outputs.push_back(FileLockOutput::Ended { rid, ticket, outcome });
        }
        self.tell_graph(ino);
        self.forget_if_idle(ino);
    }

    fn next_grantable(&mut self, ino: Ino) -> Option<Waiter> {
        let file = self.files.get_mut(&ino)?;
        let (posix, flock) = (&file.posix, &file.flock);
        let at = file.waiters.iter().position(|waiter| {
            let ranges = if waiter.space == FileLockSpace::Posix { posix } else { flock };
            ranges.conflicts(&waiter.wanted).next().is_none()
        })?;
        file.waiters.remove(at)
    }

    /// A waiter has left the queue.
    fn ended(&mut self, space: FileLockSpace, id: WaitId) {
        if let Some(client) = self.clients.get_mut(&id.rid) {
            client.waits -= 1;
        }
        if space == FileLockSpace::Posix {
            self.outputs.push_back(FileLockOutput::Graph(WaitChange::Ended { id }));
        }
    }

    fn tell_graph(&mut self, ino: Ino) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        for waiter in file.waiters.iter_mut().filter(|waiter| waiter.space == FileLockSpace::Posix) {
            let owners: BTreeSet<Owner> = file.posix.conflicts(&waiter.wanted).map(|held| held.owner).collect();
            let blockers: Vec<Owner> = owners.into_iter().collect();
            if blockers != waiter.blockers {
                waiter.blockers.clone_from(&blockers);
                let owner = waiter.wanted.owner;
                let id = WaitId { rid: owner.rid, ticket: waiter.ticket };
                self.outputs.push_back(FileLockOutput::Graph(WaitChange::Waits { id, ino, owner, blockers }));
            }
        }
    }

    fn take_waiter(&mut self, ino: Ino, id: WaitId) -> bool {
        let Some(file) = self.files.get_mut(&ino) else { return false };
        let at = file.waiters.iter().position(|w| w.ticket == id.ticket && w.wanted.owner.rid == id.rid);
        let Some(waiter) = at.and_then(|at| file.waiters.remove(at)) else { return false };
        self.ended(waiter.space, id);
        self.recount(id.rid, ino);
        true
    }

    /// The graph has found that this wait closes a circle.
    pub fn deadlocked(&mut self, ino: Ino, id: WaitId) {
        if self.take_waiter(ino, id) {
            let outcome = FileLockOutcome::Deadlock;
            self.outputs.push_back(FileLockOutput::Ended { rid: id.rid, ticket: id.ticket, outcome });
            self.forget_if_idle(ino);
        }
    }

    fn forget_if_idle(&mut self, ino: Ino) {
        if self.files.get(&ino).is_some_and(File::is_idle) {
            self.files.remove(&ino);
        }
    }

    /// The client is gone for good: nothing of it is held or waits, and nothing is answered.
    pub fn reclaim(&mut self, rid: Rid) {
        while !self.reclaim_some(rid, usize::MAX) {}
    }

    /// A part of [`Self::reclaim`], of at most so many files. True when nothing of the client is left.
    pub fn reclaim_some(&mut self, rid: Rid, most: usize) -> bool {
        if let Some(client) = self.clients.remove(&rid) {
            self.early.retain(|(other, _)| *other != rid);
            // More may have come from another table since the first part.
            self.reclaiming.entry(rid).or_default().extend(client.files.into_keys());
        } else if !self.reclaiming.contains_key(&rid) {
            self.early.retain(|(other, _)| *other != rid);
            return true;
        }
        for _ in 0..most {
            let Some(ino) = self.reclaiming.get_mut(&rid).and_then(VecDeque::pop_front) else { break };
            self.reclaim_file(rid, ino);
        }
        if self.reclaiming.get(&rid).is_some_and(VecDeque::is_empty) {
            self.reclaiming.remove(&rid);
        }
        !self.reclaiming.contains_key(&rid)
    }

    fn reclaim_file(&mut self, rid: Rid, ino: Ino) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        file.posix.remove_client(rid);
        file.flock.remove_client(rid);
        let mut gone = Vec::new();
        file.waiters.retain(|w| {
            let stays = w.wanted.owner.rid != rid;
            if !stays && w.space == FileLockSpace::Posix {
                gone.push(WaitId { rid, ticket: w.ticket });
            }
            stays
        });
        self.outputs.extend(gone.into_iter().map(|id| FileLockOutput::Graph(WaitChange::Ended { id })));
        self.advance(ino);
    }

    /// Lock recovery: the client held this under the leader before.
    pub fn reassert(&mut self, rid: Rid, ino: Ino, lock: &FileLock) -> Result<(), FileLockError> {
        let wanted = held(rid, lock);
        if lock.mode == FileLockMode::Unlocked {
            return Ok(());
        }
        let file = self.files.entry(ino).or_default();
        let is_free = file.ranges(lock.space).conflicts(&wanted).next().is_none();
        let client = self.clients.entry(rid).or_default();
        let refused = if !is_free {
            Some(FileLockError::HeldByAnother { ino })
        } else if client.held >= MAX_FILE_LOCKS_PER_CLIENT {
            Some(FileLockError::TooMany { held: client.held + 1 })
        } else {
            file.ranges_mut(lock.space).set(&wanted);
            None
        };
        self.recount(rid, ino);
        self.forget_if_idle(ino);
        refused.map_or(Ok(()), Err)
    }

    /// Every client of the term before has come back or was reclaimed.
    pub fn recovered(&mut self) {
        while !self.recovered_some(usize::MAX) {}
    }

    /// The same, but of the requests that came meanwhile only so many are handled; true when none is left. Until then others
    /// queue up behind them.
    pub fn recovered_some(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some((rid, request)) = self.early.pop_front() else { break };
            self.carry_out(rid, request);
        }
        self.recovering &= !self.early.is_empty();
        self.early.is_empty()
    }

    pub fn poll_output(&mut self) -> Option<FileLockOutput> {
        self.outputs.pop_front()
    }

    /// What is held in a file.
    pub fn held(&self, ino: Ino, space: FileLockSpace) -> Vec<Held> {
        self.files.get(&ino).map(|file| file.ranges(space).iter().copied().collect()).unwrap_or_default()
    }

    /// Tickets that wait for a file, in their order.
    pub fn waiting(&self, ino: Ino) -> Vec<WaitId> {
        let waiters = self.files.get(&ino).map(|file| &file.waiters);
        waiters.into_iter().flatten().map(|w| WaitId { rid: w.wanted.owner.rid, ticket: w.ticket }).collect()
    }

    pub fn is_recovering(&self) -> bool {
        self.recovering
    }

    /// Nobody is waited for, and nothing of a client is being reclaimed.
    pub fn is_settled(&self) -> bool {
        !self.recovering && self.early.is_empty() && self.reclaiming.is_empty() && self.outputs.is_empty()
    }

    pub(super) fn files(&self) -> &BTreeMap<Ino, File> {
        &self.files
    }

    pub fn stats(&self) -> FileLockStats {
        FileLockStats {
            files: self.files.len(),
            held: self.clients.values().map(|client| client.held).sum(),
            waiting: self.clients.values().map(|client| client.waits).sum(),
        }
    }
}
