//! The engine's side of the locks that one reactor owns.
//!
//! Per lock: who holds it, in which mode, who is asked to weaken it, and who waits, in order of arrival. Only the first
//! waiter is worked for: holders in its way are sent invalidations, and when the last has answered it is granted.
//! A client that wants several locks is granted them one after the other in ascending order, by the reactors that own them,
//! so that two requests never wait for each other: [`check_order`], and [`crate::GrantOrder`] for what it is told.
//!
//! Invariants:
//! - the modes held are compatible; a mode under invalidation counts as the old one until it is answered [L1];
//! - at most one invalidation per (client, lock), and no grant to a client whose answer is outstanding, so that an answer
//!   never weakens a grant that came after its question;
//! - write sequences strictly increase, across terms [L4];
//! - while recovering nothing is granted and nobody invalidated [L7]; requests wait in their order;
//! - every input ends with a look at the locks it touched: a waiter that can be granted never waits [L8];
//! - queues are not scanned; holders are walked once for each waiter that they are in the way of.

pub mod list;
mod moving;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use thiserror::Error;
use vellum_base::{Mutant, Rid, Term, mutant, probe};
use vellum_wire::{LockGrant, LockMode, LockName, LockWant};

pub use self::moving::MovedLocks;
use crate::fact::LockFact;
use crate::time::Time;

/// What the table wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LockOutput {
    Granted {
        rid: Rid,
        request: u64,
        grant: LockGrant,
    },
    /// Ask the client to weaken its grant; [`LockTable::invalidated`] when it has answered.
    Invalidate {
        rid: Rid,
        name: LockName,
        mode: LockMode,
    },
}

#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum LockError {
    #[error("locks must be asked for in ascending order, each once and not as Null")]
    Order,
    #[error("{held} locks are held or asked for; {limit} are allowed")]
    TooMany { held: usize, limit: usize },
    #[error("{name:?} is held by another client: this one was fenced")]
    HeldByAnother { name: LockName },
}

/// Most locks of one client on one reactor, held and waited for.
pub const MAX_LOCKS_PER_CLIENT: usize = 262_144;

#[derive(Clone, Copy, Debug, Default)]
struct Holder {
    mode: LockMode,
    /// The mode that it was asked to go to.
    invalidating: Option<LockMode>,
    since: Time,
}

struct Waiter {
    rid: Rid,
    request: u64,
    mode: LockMode,
    since: Time,
}

#[derive(Default)]
struct Lock {
    /// Ordered, so that a simulated run repeats itself.
    holders: BTreeMap<Rid, Holder>,
    /// Holders in READ and in WRITE, so that nobody counts them.
    readers: usize,
    writers: usize,
    waiters: VecDeque<Waiter>,
    /// The request for which every holder in its way was asked: they are not walked again at each answer.
    asked_for: Option<(Rid, u64)>,
}

impl Lock {
    fn count(&mut self, mode: LockMode) -> Option<&mut usize> {
        match mode {
            LockMode::Null => None,
            LockMode::Read => Some(&mut self.readers),
            LockMode::Write => Some(&mut self.writers),
        }
    }

    fn set_mode(&mut self, rid: Rid, mode: LockMode, now: Time) {
        let holder = self.holders.entry(rid).or_default();
        if holder.mode != mode {
            holder.since = now;
        }
        let before = std::mem::replace(&mut holder.mode, mode);
        if let Some(n) = self.count(before) {
            *n -= 1;
        }
        if let Some(n) = self.count(mode) {
            *n += 1;
        }
    }

    fn remove(&mut self, rid: Rid) {
        if self.holders.contains_key(&rid) {
            self.set_mode(rid, LockMode::Null, Time(0));
            self.holders.remove(&rid);
        }
    }

    /// No holder but `own` is in the way of `wanted`.
    fn is_free_for(&self, own: LockMode, wanted: LockMode) -> bool {
        let writers = self.writers - usize::from(own == LockMode::Write);
        let readers = self.readers - usize::from(own == LockMode::Read);
        writers == 0 && (wanted == LockMode::Read || readers == 0)
    }
}

#[derive(Default)]
struct Client {
    /// Requests that wait.
    pending: HashSet<u64>,
    /// Places in locks: one as a holder, one for each waiting request. Ordered, so that a reclaim takes them in pieces, and
    /// in the same order in each simulated run.
    places: BTreeMap<LockName, u32>,
}

pub struct LockTable {
    term: Term,
    locks: HashMap<LockName, Lock>,
    clients: HashMap<Rid, Client>,
    /// Places of clients whose reclaim has begun.
    reclaiming: HashMap<Rid, BTreeMap<LockName, u32>>,
    recovering: bool,
    /// What was asked for while recovering, and was not looked at since.
    asked_early: BTreeSet<LockName>,
    write_seq: u64,
    stride: u64,
    outputs: VecDeque<LockOutput>,
    granted: u64,
    invalidations: u64,
    /// Requests in the queues of all locks.
    waiting: usize,
    /// For "since when": what people see of the table.
    now: Time,
}

/// Sizes and counts for the status page.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LockStats {
    pub locks: usize,
    /// Requests that wait.
    pub waiting: usize,
    pub clients: usize,
    pub granted: u64,
    pub invalidations: u64,
}

/// What a request for several locks must look like.
pub fn check_order(wants: &[LockWant]) -> Result<(), LockError> {
    let ascending = wants.windows(2).all(|pair| pair[0].name < pair[1].name);
    if ascending && wants.iter().all(|want| want.mode != LockMode::Null) { Ok(()) } else { Err(LockError::Order) }
}

/// Grants of one term; more would take a million per second for a week.
const TERM_SHIFT: u32 = 40;

impl LockTable {
    /// The table of the `index`-th of `tables` reactors. While `recovering`, nothing is granted.
    pub fn new(term: Term, index: usize, tables: usize, recovering: bool) -> LockTable {
        probe::tell(|| LockFact::Opened { term, recovering });
        let above = if mutant::active(Mutant::SequenceFromZero) { 0 } else { term.0 << TERM_SHIFT };
        LockTable {
            term,
            locks: HashMap::new(),
            clients: HashMap::new(),
            reclaiming: HashMap::new(),
            recovering,
            asked_early: BTreeSet::new(),
            write_seq: above | index as u64,
            stride: tables as u64,
            outputs: VecDeque::new(),
            granted: 0,
            invalidations: 0,
            waiting: 0,
            now: Time(0),
        }
    }

    /// What happens from here on happens then.
    pub fn at(&mut self, now: Time) {
        self.now = now;
    }

    /// Asks for a lock; [`LockOutput::Granted`] names `request` when it is held.
    pub fn request(&mut self, rid: Rid, request: u64, want: LockWant) -> Result<(), LockError> {
        let client = self.clients.entry(rid).or_default();
        let held = client.places.len() + 1;
        if held > MAX_LOCKS_PER_CLIENT {
            return Err(LockError::TooMany { held, limit: MAX_LOCKS_PER_CLIENT });
        }
        client.pending.insert(request);
        *client.places.entry(want.name).or_default() += 1;
        let waiter = Waiter { rid, request, mode: want.mode, since: self.now };
        self.locks.entry(want.name).or_default().waiters.push_back(waiter);
        self.waiting += 1;
        if self.recovering {
            self.asked_early.insert(want.name);
        }
        self.advance(want.name);
        Ok(())
    }

    /// Serves the waiters of `name` as far as it goes.
    fn advance(&mut self, name: LockName) {
        while let Some(rid) = self.serve_first(name) {
            self.leave(rid, name);
        }
        if self.locks.get(&name).is_some_and(|lock| lock.holders.is_empty() && lock.waiters.is_empty()) {
            self.locks.remove(&name);
        }
    }

    fn waits(&self, waiter: &Waiter) -> bool {
        self.clients.get(&waiter.rid).is_some_and(|client| client.pending.contains(&waiter.request))
    }

    /// Grants the lock to its first waiter, or sends the invalidations that are in its way. The client that was served.
    fn serve_first(&mut self, name: LockName) -> Option<Rid> {
        if self.recovering && !mutant::active(Mutant::GrantDuringRecovery) {
            return None;
        }
        // Requests of reclaimed clients are skipped here instead of being searched for in the queue.
        while self.locks.get(&name)?.waiters.front().is_some_and(|waiter| !self.waits(waiter)) {
            self.locks.get_mut(&name)?.waiters.pop_front();
            self.waiting -= 1;
        }
        let lock = self.locks.get_mut(&name)?;
        let first = lock.waiters.front()?;
        let (rid, request, mode) = (first.rid, first.request, first.mode);
        let own = lock.holders.get(&rid).copied().unwrap_or_default();
        if own.invalidating.is_some() && !mutant::active(Mutant::GrantOverInvalidation) {
            return None;
        }
        let free = lock.is_free_for(own.mode, mode) || mutant::active(Mutant::GrantWithoutInvalidation);
        if !own.mode.covers(mode) && !free {
            self.invalidate_for(name, rid, request, mode);
            return None;
        }
        lock.waiters.pop_front();
        self.waiting -= 1;
        let granted = own.mode.max(mode);
        let is_new = !lock.holders.contains_key(&rid);
        lock.set_mode(rid, granted, self.now);
        self.write_seq += self.stride;
        self.granted += 1;
        let client = self.clients.get_mut(&rid)?;
        *client.places.entry(name).or_default() += u32::from(is_new);
        let grant = LockGrant { name, mode: granted, write_seq: self.write_seq };
        client.pending.remove(&request);
        probe::tell(|| LockFact::Granted { term: self.term, rid, grant });
        self.outputs.push_back(LockOutput::Granted { rid, request, grant });
        Some(rid)
    }

    /// Asks everybody who is in the way of the first waiter, once.
    fn invalidate_for(&mut self, name: LockName, rid: Rid, request: u64, mode: LockMode) {
        let Some(lock) = self.locks.get_mut(&name) else { return };
        if lock.asked_for == Some((rid, request)) {
            return;
        }
        let allowed = if mode == LockMode::Write { LockMode::Null } else { LockMode::Read };
        let mut all_asked = true;
        for (other, holder) in &mut lock.holders {
            if *other == rid || holder.mode <= allowed {
                continue;
            }
            match holder.invalidating {
                None => {
                    holder.invalidating = Some(allowed);
                    self.invalidations += 1;
                    probe::tell(|| LockFact::Asked { term: self.term, rid: *other, name });
                    self.outputs.push_back(LockOutput::Invalidate { rid: *other, name, mode: allowed });
                }
                // Asked for less, for a waiter that is gone: asked again after its answer.
                Some(to) if to > allowed => all_asked = false,
                Some(_) => {}
            }
        }
        if all_asked {
            lock.asked_for = Some((rid, request));
        }
    }

    /// The client has weakened its own grants.
    pub fn unlock(&mut self, rid: Rid, to: &[LockWant]) {
        for want in to {
            self.weaken(rid, want.name, want.mode, false);
        }
    }

    /// The client has answered the invalidation of `name`: its grant is what the invalidation asked for, or weaker.
    pub fn invalidated(&mut self, rid: Rid, name: LockName) {
        let asked = self.locks.get(&name).and_then(|lock| lock.holders.get(&rid)).and_then(|h| h.invalidating);
        if let Some(mode) = asked {
            self.weaken(rid, name, mode, true);
        }
    }

    fn weaken(&mut self, rid: Rid, name: LockName, mode: LockMode, answered: bool) {
        let Some(lock) = self.locks.get_mut(&name) else { return };
        let Some(holder) = lock.holders.get_mut(&rid) else { return };
        if answered {
            holder.invalidating = None;
        }
        let (mode, open) = (holder.mode.min(mode), holder.invalidating.is_some());
        lock.set_mode(rid, mode, self.now);
        probe::tell(|| LockFact::Weakened { term: self.term, rid, name, mode, answered });
        // An unanswered invalidation is remembered even when nothing is held any more.
        if mode == LockMode::Null && !open {
            lock.holders.remove(&rid);
            self.leave(rid, name);
            self.forget_client(rid);
        }
        if mutant::active(Mutant::LostWakeup) && answered && mode == LockMode::Read {
            return;
        }
        self.advance(name);
    }

    /// One place of the client less in this lock.
    fn leave(&mut self, rid: Rid, name: LockName) {
        if let Some(client) = self.clients.get_mut(&rid)
            && let Some(places) = client.places.get_mut(&name)
        {
            *places -= 1;
            if *places == 0 {
                client.places.remove(&name);
            }
        }
    }

    fn forget_client(&mut self, rid: Rid) {
        if self.clients.get(&rid).is_some_and(|client| client.pending.is_empty() && client.places.is_empty()) {
            self.clients.remove(&rid);
        }
    }

    /// The client is gone for good: nothing of it is held, waited for or asked.
    pub fn reclaim(&mut self, rid: Rid) {
        while !self.reclaim_some(rid, usize::MAX) {}
    }

    /// A part of [`Self::reclaim`], of at most so many locks. True when nothing of the client is left. Its requests are
    /// void from the first part on.
    pub fn reclaim_some(&mut self, rid: Rid, most: usize) -> bool {
        if let Some(client) = self.clients.remove(&rid) {
            // More may have come from another table since the first part.
            self.reclaiming.entry(rid).or_default().extend(client.places);
        }
        for _ in 0..most {
            let Some(places) = self.reclaiming.get_mut(&rid) else { return true };
            let Some((name, _)) = places.pop_first() else { break };
            if let Some(lock) = self.locks.get_mut(&name) {
                lock.remove(rid);
            }
            let (term, mode) = (self.term, LockMode::Null);
            probe::tell(|| LockFact::Weakened { term, rid, name, mode, answered: true });
            self.advance(name);
        }
        if self.reclaiming.get(&rid).is_some_and(BTreeMap::is_empty) {
            self.reclaiming.remove(&rid);
        }
        !self.reclaiming.contains_key(&rid)
    }

    /// Lock recovery: the client held `grant` under the leader before.
    pub fn reassert(&mut self, rid: Rid, grant: LockGrant) -> Result<(), LockError> {
        if grant.mode == LockMode::Null {
            return Ok(());
        }
        let held = self.locks_of(rid) + 1;
        if held > MAX_LOCKS_PER_CLIENT {
            return Err(LockError::TooMany { held, limit: MAX_LOCKS_PER_CLIENT });
        }
        let lock = self.locks.entry(grant.name).or_default();
        let own = lock.holders.get(&rid).map_or(LockMode::Null, |holder| holder.mode);
        if !lock.is_free_for(own, grant.mode) {
            return Err(LockError::HeldByAnother { name: grant.name });
        }
        let is_new = !lock.holders.contains_key(&rid);
        lock.set_mode(rid, own.max(grant.mode), self.now);
        let mode = own.max(grant.mode);
        probe::tell(|| LockFact::Reasserted { term: self.term, rid, name: grant.name, mode });
        *self.clients.entry(rid).or_default().places.entry(grant.name).or_default() += u32::from(is_new);
        Ok(())
    }

    /// Every client of the term before has come back or was reclaimed: grants flow.
    pub fn recovered(&mut self) {
        while !self.recovered_some(usize::MAX) {}
    }

    /// The same, but of what was asked for meanwhile only so many locks are looked at; true when none is left. What is asked
    /// for from now on is served at once.
    pub fn recovered_some(&mut self, most: usize) -> bool {
        self.recovering = false;
        for _ in 0..most {
            let Some(name) = self.asked_early.pop_first() else { break };
            self.advance(name);
        }
        self.asked_early.is_empty()
    }

    /// The mode that the engine believes `rid` to hold; one under invalidation counts as the old one.
    pub fn mode(&self, rid: Rid, name: LockName) -> LockMode {
        self.locks.get(&name).and_then(|lock| lock.holders.get(&rid)).map_or(LockMode::Null, |holder| holder.mode)
    }

    pub fn poll_output(&mut self) -> Option<LockOutput> {
        self.outputs.pop_front()
    }

    pub fn is_recovering(&self) -> bool {
        self.recovering
    }

    pub fn stats(&self) -> LockStats {
        LockStats {
            locks: self.locks.len(),
            waiting: self.waiting,
            clients: self.clients.len(),
            granted: self.granted,
            invalidations: self.invalidations,
        }
    }

    /// Locks that `rid` holds or waits for.
    pub fn locks_of(&self, rid: Rid) -> usize {
        self.clients.get(&rid).map_or(0, |client| client.places.len())
    }
}
