//! The file lock table against a map of bytes, and the stories of waiting, circles and recovery.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use vellum_base::prng::Prng;
use vellum_base::{Ino, Rid};
use vellum_proto::files::{Held, MAX_FILE_LOCKS_PER_CLIENT, MAX_FILE_WAITS_PER_CLIENT, Owner, WaitChange, WaitId};
use vellum_proto::{FileLockOutput, FileLockTable, WaitGraph};
use vellum_wire::FileLockMode::{Exclusive, Shared, Unlocked};
use vellum_wire::FileLockOutcome::{self, Cancelled, Conflict, Deadlock, Done, NotWaiting, Queued, TooMany};
use vellum_wire::{FILE_LOCK_MAX, FileLock, FileLockMode, FileLockSpace};

const INO: Ino = Ino(7);

fn posix(owner: u64, mode: FileLockMode, start: u64, end: u64) -> FileLock {
    FileLock { space: FileLockSpace::Posix, mode, owner, pid: owner as u32, start, end }
}

fn flock(owner: u64, mode: FileLockMode) -> FileLock {
    FileLock { space: FileLockSpace::Flock, mode, owner, pid: 0, start: 0, end: FILE_LOCK_MAX }
}

/// Tables of several reactors and the graph over them, as the engine wires them.
struct Engine {
    tables: BTreeMap<u64, FileLockTable>,
    graph: WaitGraph,
    request: u64,
    answers: BTreeMap<u64, FileLockOutcome>,
    ended: Vec<(WaitId, FileLockOutcome)>,
    found: Option<Option<Held>>,
}

impl Engine {
    fn new(tables: u64) -> Engine {
        Engine {
            tables: (0..tables).map(|n| (n, FileLockTable::new(false))).collect(),
            graph: WaitGraph::default(),
            request: 0,
            answers: BTreeMap::new(),
            ended: Vec::new(),
            found: None,
        }
    }

    fn table(&mut self, ino: Ino) -> &mut FileLockTable {
        let n = ino.0 % self.tables.len() as u64;
        self.tables.get_mut(&n).unwrap()
    }

    fn drain(&mut self, ino: Ino) {
        let mut changes = Vec::new();
        while let Some(output) = self.table(ino).poll_output() {
            match output {
                FileLockOutput::Answer { request, outcome, .. } => {
                    assert!(self.answers.insert(request, outcome).is_none(), "one answer per request");
                }
                FileLockOutput::Ended { rid, ticket, outcome } => self.ended.push((WaitId { rid, ticket }, outcome)),
                FileLockOutput::Found { found, .. } => self.found = Some(found),
                FileLockOutput::Graph(change) => changes.push(change),
            }
        }
        let circles = self.graph.apply(changes);
        for (id, at) in circles {
            self.table(at).deadlocked(at, id);
            self.drain(at);
        }
    }

    fn lock(&mut self, rid: u64, ino: Ino, lock: FileLock, ticket: Option<u64>) -> FileLockOutcome {
        self.request += 1;
        let request = self.request;
        self.table(ino).lock(Rid(rid), request, ino, lock, ticket);
        self.drain(ino);
        self.answers[&request]
    }

    fn cancel(&mut self, rid: u64, ino: Ino, ticket: u64) -> FileLockOutcome {
        self.request += 1;
        let request = self.request;
        self.table(ino).cancel(Rid(rid), request, ino, ticket);
        self.drain(ino);
        self.answers[&request]
    }

    fn reclaim(&mut self, rid: u64) {
        let all: Vec<u64> = self.tables.keys().copied().collect();
        for n in all {
            self.tables.get_mut(&n).unwrap().reclaim(Rid(rid));
            self.drain(Ino(n));
        }
    }

    fn take_ended(&mut self) -> Vec<(u64, u64, FileLockOutcome)> {
        std::mem::take(&mut self.ended).into_iter().map(|(id, outcome)| (id.rid.0, id.ticket, outcome)).collect()
    }
}

// ---- the model: who has which byte how

const BYTES: u64 = 12;

#[derive(Clone, Default)]
struct Bytes(BTreeMap<(u64, Owner), FileLockMode>);

impl Bytes {
    fn is_free(&self, owner: Owner, lock: &FileLock) -> bool {
        lock.mode == Unlocked
            || !self.0.iter().any(|((byte, other), mode)| {
                let excludes = *mode == Exclusive || lock.mode == Exclusive;
                (lock.start..=lock.end).contains(byte) && *other != owner && excludes
            })
    }

    fn set(&mut self, owner: Owner, lock: &FileLock) {
        for byte in lock.start..=lock.end {
            match lock.mode {
                Unlocked => drop(self.0.remove(&(byte, owner))),
                mode => drop(self.0.insert((byte, owner), mode)),
            }
        }
    }

    fn of(held: &[Held]) -> Bytes {
        let mut bytes = Bytes::default();
        for h in held {
            for byte in h.start..=h.end {
                assert!(bytes.0.insert((byte, h.owner), h.mode).is_none(), "an owner's ranges are disjoint");
            }
        }
        bytes
    }
}

struct Modelled {
    engine: Engine,
    bytes: Bytes,
    queue: Vec<(WaitId, Owner, FileLock)>,
}

impl Modelled {
    fn grant_waiters(&mut self) -> Vec<(u64, u64, FileLockOutcome)> {
        let mut granted = Vec::new();
        while let Some(at) = self.queue.iter().position(|(_, owner, lock)| self.bytes.is_free(*owner, lock)) {
            let (id, owner, lock) = self.queue.remove(at);
            self.bytes.set(owner, &lock);
            granted.push((id.rid.0, id.ticket, Done));
        }
        granted
    }

    /// What ended must be what the model grants, in its order, and those who closed a circle: one for each.
    fn settle(&mut self, seed: u64) {
        let expected = self.grant_waiters();
        let (refused, granted): (Vec<_>, Vec<_>) =
            self.engine.take_ended().into_iter().partition(|(_, _, outcome)| *outcome == Deadlock);
        assert_eq!(granted, expected, "seed {seed}");
        for (rid, ticket, _) in refused {
            let id = WaitId { rid: Rid(rid), ticket };
            assert!(in_circle(self, id), "seed {seed}: {id:?} was in no circle");
            self.queue.retain(|(other, ..)| *other != id);
        }
        assert!(self.queue.iter().all(|(id, ..)| !in_circle(self, *id)), "seed {seed}: a circle waits for ever");
    }

    fn check(&self) {
        let table = &self.engine.tables[&0];
        let held = table.held(INO, FileLockSpace::Posix);
        assert_eq!(Bytes::of(&held).0, self.bytes.0);
        for pair in held.iter().flat_map(|a| held.iter().map(move |b| (a, b))) {
            let (a, b) = pair;
            let touch = a.owner == b.owner && a.mode == b.mode && a.end + 1 == b.start;
            assert!(!touch, "neighbours of one mode are one range: {a:?} {b:?}");
        }
        let waiting: Vec<WaitId> = self.queue.iter().map(|(id, _, _)| *id).collect();
        assert_eq!(table.waiting(INO), waiting);
    }
}

/// Random requests of four owners of two clients; after each, the bytes, the queue and what was told must be the model's.
fn run_model(seed: u64) {
    let mut prng = Prng::new(seed);
    let mut m = Modelled { engine: Engine::new(1), bytes: Bytes::default(), queue: Vec::new() };
    let mut ticket = 0;
    for _ in 0..300 {
        let (rid, id) = (1 + prng.below(2), 1 + prng.below(2));
        let owner = Owner { rid: Rid(rid), id };
        match prng.below(12) {
            0 if !m.queue.is_empty() => {
                let (wait, ..) = m.queue.remove(prng.below(m.queue.len() as u64) as usize);
                assert_eq!(m.engine.cancel(wait.rid.0, INO, wait.ticket), Cancelled);
                assert_eq!(m.engine.cancel(wait.rid.0, INO, wait.ticket), NotWaiting);
                m.settle(seed);
            }
            1 if prng.one_in(4) => {
                m.engine.reclaim(rid);
                m.bytes.0.retain(|(_, owner), _| owner.rid != Rid(rid));
                m.queue.retain(|(id, ..)| id.rid != Rid(rid));
                m.settle(seed);
            }
            _ => {
                let start = prng.below(BYTES);
                let end = start + prng.below(BYTES - start);
                let mode = [Unlocked, Shared, Exclusive][prng.below(3) as usize];
                let lock = posix(id, mode, start, end);
                ticket += 1;
                let waits = prng.one_in(2).then_some(ticket);
                let free = m.bytes.is_free(owner, &lock);
                let got = m.engine.lock(rid, INO, lock, waits);
                match (free, waits) {
                    (true, _) => {
                        assert_eq!(got, Done, "seed {seed}");
                        m.bytes.set(owner, &lock);
                    }
                    (false, None) => assert_eq!(got, Conflict, "seed {seed}"),
                    (false, Some(ticket)) => {
                        assert_eq!(got, Queued, "seed {seed}");
                        m.queue.push((WaitId { rid: Rid(rid), ticket }, owner, lock));
                    }
                }
                m.settle(seed);
            }
        }
        m.check();
    }
}

/// By the model's bytes: following who is in whose way leads back to the owner of this wait.
fn in_circle(m: &Modelled, id: WaitId) -> bool {
    let Some((_, owner, _)) = m.queue.iter().find(|(other, ..)| *other == id) else { return false };
    let blockers = |owner: Owner| -> BTreeSet<Owner> {
        let waits = m.queue.iter().filter(|(_, o, _)| *o == owner);
        waits
            .flat_map(|(_, o, lock)| {
                let hit = m.bytes.0.iter().filter(|((byte, other), mode)| {
                    (lock.start..=lock.end).contains(byte)
                        && other != o
                        && (**mode == Exclusive || lock.mode == Exclusive)
                });
                hit.map(|((_, other), _)| *other).collect::<Vec<_>>()
            })
            .collect()
    };
    let mut seen = BTreeSet::new();
    let mut todo: Vec<Owner> = blockers(*owner).into_iter().collect();
    while let Some(next) = todo.pop() {
        if next == *owner {
            return true;
        }
        if seen.insert(next) {
            todo.extend(blockers(next));
        }
    }
    false
}

#[test]
fn the_table_is_a_map_of_bytes() {
    (0..400).for_each(run_model);
}

proptest! {
    #[test]
    fn the_table_is_a_map_of_bytes_for_any_seed(seed: u64) {
        run_model(seed);
    }
}

/// Every pair of a held and a set range of one owner, over all modes: the bytes are as POSIX says.
#[test]
fn every_way_to_overlap_is_right() {
    const N: u64 = 6;
    for (a, b) in (0..N).flat_map(|a| (a..N).map(move |b| (a, b))) {
        for (c, d) in (0..N).flat_map(|c| (c..N).map(move |d| (c, d))) {
            for (first, then) in [(Shared, Exclusive), (Exclusive, Shared), (Shared, Shared), (Exclusive, Unlocked)] {
                let (mut engine, mut bytes) = (Engine::new(1), Bytes::default());
                let owner = Owner { rid: Rid(1), id: 1 };
                for lock in [posix(1, first, a, b), posix(1, then, c, d)] {
                    assert_eq!(engine.lock(1, INO, lock, None), Done);
                    bytes.set(owner, &lock);
                }
                let held = engine.tables[&0].held(INO, FileLockSpace::Posix);
                assert_eq!(Bytes::of(&held).0, bytes.0, "{a}..={b} {first:?}, then {c}..={d} {then:?}");
            }
        }
    }
}

/// Three owners on three files of three reactors: each holds one and asks for the next. The last to ask is told.
#[test]
fn a_circle_over_clients_and_reactors_is_found_by_its_last_edge() {
    let mut e = Engine::new(3);
    for n in 1..=3 {
        assert_eq!(e.lock(n, Ino(n), posix(10, Exclusive, 0, 9), None), Done);
    }
    assert_eq!(e.lock(1, Ino(2), posix(10, Exclusive, 5, 5), Some(1)), Queued);
    assert_eq!(e.lock(2, Ino(3), posix(10, Shared, 0, 0), Some(1)), Queued);
    assert!(e.take_ended().is_empty());
    assert_eq!(e.lock(3, Ino(1), posix(10, Shared, 9, 9), Some(1)), Queued);
    assert_eq!(e.take_ended(), [(3, 1, Deadlock)]);
    // Who was refused gives up; the others come to their turn, and nobody is taken for waiting any more.
    assert_eq!(e.lock(3, Ino(3), posix(10, Unlocked, 0, FILE_LOCK_MAX), None), Done);
    assert_eq!(e.take_ended(), [(2, 1, Done)]);
    assert_eq!(e.lock(2, Ino(2), posix(10, Unlocked, 0, FILE_LOCK_MAX), None), Done);
    assert_eq!(e.take_ended(), [(1, 1, Done)]);
    assert!(e.graph.is_empty());
}

/// A waits for B; C then takes what A waits for as well, and asks for what A holds: the new edge closes the circle
/// although A's request was there before.
#[test]
fn a_circle_that_a_later_holder_closes_is_found() {
    let mut e = Engine::new(1);
    assert_eq!(e.lock(1, Ino(1), posix(1, Exclusive, 0, 9), None), Done); // A
    assert_eq!(e.lock(1, Ino(2), posix(2, Shared, 0, 9), None), Done); // B
    assert_eq!(e.lock(1, Ino(2), posix(1, Exclusive, 0, 9), Some(1)), Queued);
    assert_eq!(e.lock(1, Ino(1), posix(3, Exclusive, 0, 9), Some(2)), Queued); // C waits for A
    assert!(e.take_ended().is_empty());
    assert_eq!(e.lock(1, Ino(2), posix(3, Shared, 0, 9), None), Done); // and is in A's way
    assert_eq!(e.take_ended(), [(1, 1, Deadlock)]);
}

/// Two processes that share a file lock both want it alone. In fcntl's family one of them is told of the circle; in
/// flock's the conversion gives the shared lock up first, so the other gets it.
#[test]
fn two_upgrades_of_one_lock() {
    let mut e = Engine::new(1);
    for owner in [1, 2] {
        assert_eq!(e.lock(1, INO, posix(owner, Shared, 0, 9), None), Done);
        assert_eq!(e.lock(1, INO, flock(owner, Shared), None), Done);
    }
    assert_eq!(e.lock(1, INO, posix(1, Exclusive, 0, 9), Some(1)), Queued);
    assert_eq!(e.lock(1, INO, posix(2, Exclusive, 0, 9), Some(2)), Queued);
    assert_eq!(e.take_ended(), [(1, 2, Deadlock)]);
    assert_eq!(e.lock(1, INO, flock(1, Exclusive), Some(3)), Queued);
    assert_eq!(e.lock(1, INO, flock(2, Exclusive), Some(4)), Done);
    assert_eq!(e.lock(1, INO, flock(2, Shared), None), Done, "having less is never refused");
    assert_eq!(e.take_ended(), []);
    assert_eq!(e.lock(2, INO, flock(9, Shared), None), Done);
    // A conversion that does not wait loses what it had.
    assert_eq!(e.lock(2, INO, flock(9, Exclusive), None), Conflict);
    assert_eq!(e.lock(1, INO, flock(2, Unlocked), None), Done);
    assert_eq!(e.take_ended(), [(1, 3, Done)]);
}

/// A client that was reclaimed leaves nothing: its locks go to those who wait, its waits and edges vanish.
#[test]
fn a_reclaimed_client_leaves_nothing_behind() {
    let mut e = Engine::new(2);
    assert_eq!(e.lock(1, Ino(1), posix(1, Exclusive, 0, 9), None), Done);
    assert_eq!(e.lock(1, Ino(2), flock(1, Exclusive), None), Done);
    assert_eq!(e.lock(2, Ino(2), posix(1, Exclusive, 0, 9), None), Done);
    assert_eq!(e.lock(1, Ino(2), posix(1, Shared, 0, 9), Some(1)), Queued);
    assert_eq!(e.lock(2, Ino(1), posix(5, Shared, 3, 3), Some(2)), Queued);
    assert_eq!(e.lock(2, Ino(2), flock(5, Shared), Some(3)), Queued);
    e.reclaim(1);
    let mut ended = e.take_ended();
    ended.sort_unstable_by_key(|e| e.1);
    assert_eq!(ended, [(2, 2, Done), (2, 3, Done)]);
    assert!(e.graph.is_empty());
    e.reclaim(2);
    assert!(e.tables.values().all(|t| t.stats() == Default::default()));
}

/// [L7] A new leader answers no request about file locks before everybody has said what they hold: a lock that its holder
/// has not named yet looks free.
#[test]
fn l7_nothing_is_granted_or_refused_before_recovery_is_complete() {
    let mut t = FileLockTable::new(true);
    t.lock(Rid(1), 1, INO, posix(1, Exclusive, 0, 9), None);
    t.lock(Rid(1), 2, INO, posix(1, Exclusive, 20, 29), Some(7));
    t.test(Rid(1), 3, INO, posix(1, Exclusive, 0, 9));
    assert_eq!(t.poll_output(), None);
    t.reassert(Rid(2), INO, &posix(1, Shared, 5, 25)).unwrap();
    t.reassert(Rid(3), INO, &posix(1, Shared, 9, 9)).unwrap();
    assert!(t.reassert(Rid(4), INO, &posix(1, Exclusive, 9, 9)).is_err(), "it was fenced");
    t.recovered();
    let mut answers = Vec::new();
    while let Some(output) = t.poll_output() {
        match output {
            FileLockOutput::Answer { request, outcome, .. } => answers.push((request, outcome)),
            FileLockOutput::Found { found, .. } => assert_eq!(found.unwrap().owner.rid, Rid(2)),
            FileLockOutput::Graph(WaitChange::Waits { blockers, .. }) => assert_eq!(blockers.len(), 1),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answers, [(1, Conflict), (2, Queued)]);
}

#[test]
fn a_client_cannot_take_locks_without_bound() {
    let mut e = Engine::new(1);
    for n in 0..MAX_FILE_LOCKS_PER_CLIENT as u64 {
        // Many files, so that each stays short.
        assert_eq!(e.lock(1, Ino(n / 16), posix(1, Shared, 2 * (n % 16), 2 * (n % 16)), None), Done);
    }
    assert_eq!(e.lock(1, Ino(1 << 20), posix(1, Shared, 0, 0), None), TooMany);
    assert_eq!(e.lock(2, Ino(1 << 20), posix(1, Shared, 0, 0), None), Done, "that is nobody else's trouble");
    assert_eq!(e.lock(1, Ino(0), posix(1, Unlocked, 0, 0), None), Done);
    assert_eq!(e.lock(1, Ino(1 << 20), posix(1, Shared, 0, 0), None), Done);
    assert_eq!(e.lock(3, INO, flock(1, Exclusive), None), Done);
    for n in 0..MAX_FILE_WAITS_PER_CLIENT as u64 {
        assert_eq!(e.lock(4, INO, flock(100 + n, Exclusive), Some(n)), Queued);
    }
    assert_eq!(e.lock(4, INO, flock(1, Exclusive), Some(u64::MAX)), TooMany);
}
