//! What applications hold of files [L1, L11]: two that exclude each other are never both held, over clients, leaders and
//! crashes. A client that was given up may believe in its locks for a moment; it must then learn that it is dead.

use std::collections::BTreeSet;

use vellum_base::{Ino, Rid};
use vellum_vfs::{FileLock, FileLockMode};

struct Held {
    rid: Rid,
    ino: Ino,
    lock: FileLock,
}

impl Held {
    fn excludes(&self, rid: Rid, ino: Ino, lock: &FileLock) -> bool {
        let other = (self.rid, self.lock.owner) != (rid, lock.owner);
        let same_place = self.ino == ino && self.lock.space == lock.space;
        let overlap = self.lock.start <= lock.end && lock.start <= self.lock.end;
        let exclusive = self.lock.mode == FileLockMode::Exclusive || lock.mode == FileLockMode::Exclusive;
        other && same_place && overlap && exclusive
    }
}

#[derive(Default)]
pub struct FileLocks {
    held: Vec<Held>,
    /// Somebody was granted what they held: they must be dead.
    suspects: Vec<(Rid, String)>,
    dead: BTreeSet<Rid>,
    pub granted: u64,
}

impl FileLocks {
    /// An application was told that it has the lock.
    pub fn granted(&mut self, rid: Rid, ino: Ino, lock: FileLock) {
        self.granted += 1;
        for held in self.held.iter().filter(|held| held.excludes(rid, ino, &lock)) {
            let what = format!("it holds {:?} of {ino}, and rid {rid} was granted {lock:?}", held.lock);
            self.suspects.push((held.rid, what));
        }
        self.weakens(rid, ino, lock);
        self.held.push(Held { rid, ino, lock });
    }

    /// It asks for these bytes anew: what it had of them it may not have any more.
    pub fn weakens(&mut self, rid: Rid, ino: Ino, lock: FileLock) {
        let of = |held: &Held| (held.rid, held.ino, held.lock.owner, held.lock.space);
        let (own, others): (Vec<Held>, Vec<Held>) =
            std::mem::take(&mut self.held).into_iter().partition(|held| of(held) == (rid, ino, lock.owner, lock.space));
        self.held = others;
        for Held { lock: old, .. } in own {
            if old.start < lock.start {
                self.held.push(Held { rid, ino, lock: FileLock { end: old.end.min(lock.start - 1), ..old } });
            }
            if old.end > lock.end {
                self.held.push(Held { rid, ino, lock: FileLock { start: old.start.max(lock.end + 1), ..old } });
            }
        }
    }

    /// It is about to give up all that it has there.
    pub fn gives_up(&mut self, rid: Rid, ino: Ino, owner: u64) {
        self.held.retain(|held| (held.rid, held.ino, held.lock.owner) != (rid, ino, owner));
    }

    /// Its process is gone, or it heard that it was given up.
    pub fn died(&mut self, rid: Rid) {
        self.dead.insert(rid);
        self.held.retain(|held| held.rid != rid);
    }

    /// When all work is done: whoever lost a lock is dead.
    pub fn end(&self) -> Option<String> {
        let wrong = self.suspects.iter().find(|(rid, _)| !self.dead.contains(rid));
        wrong.map(|(rid, what)| format!("rid {rid} lives; {what}"))
    }
}
