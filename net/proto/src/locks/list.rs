//! The lock table as an operator sees it.

use std::collections::BTreeSet;

use vellum_base::Rid;
use vellum_wire::{LockMode, LockName};

use super::{Lock, LockTable};
use crate::time::Time;

/// Holders and waiters that are listed of one lock; the rest is counted.
const LISTED: usize = 16;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockList {
    /// Locks that exist, those of them that somebody waits for, and who waits altogether.
    pub locks: usize,
    pub waited_for: usize,
    pub waiting: usize,
    /// Those that are waited for longest first, then by name.
    pub listed: Vec<LockInfo>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockInfo {
    pub name: LockName,
    pub holding: usize,
    pub holders: Vec<LockHolder>,
    pub waiting: usize,
    pub waiters: Vec<LockWaiter>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockHolder {
    pub rid: Rid,
    pub mode: LockMode,
    /// What it was asked to weaken it to.
    pub invalidating: Option<LockMode>,
    /// Since it has this mode.
    pub since: Time,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockWaiter {
    pub rid: Rid,
    pub mode: LockMode,
    pub since: Time,
}

impl LockTable {
    /// At most `most` locks. Walks the whole table: for people, not for the path of a request.
    pub fn list(&self, most: usize) -> LockList {
        let (mut waited_for, mut waiting) = (0, 0);
        let mut chosen = BTreeSet::new();
        for (name, lock) in &self.locks {
            let first = lock.waiters.iter().find(|waiter| self.waits(waiter));
            waited_for += usize::from(first.is_some());
            waiting += lock.waiters.len();
            chosen.insert((first.map_or(Time(u64::MAX), |waiter| waiter.since), *name));
            if chosen.len() > most {
                chosen.pop_last();
            }
        }
        let listed = chosen.into_iter().filter_map(|(_, name)| Some(self.info(name, self.locks.get(&name)?))).collect();
        LockList { locks: self.locks.len(), waited_for, waiting, listed }
    }

    fn info(&self, name: LockName, lock: &Lock) -> LockInfo {
        let holders =
            lock.holders.iter().filter(|(_, holder)| holder.mode != LockMode::Null || holder.invalidating.is_some());
        let waiters = lock.waiters.iter().filter(|waiter| self.waits(waiter));
        LockInfo {
            name,
            holding: holders.clone().count(),
            holders: holders
                .take(LISTED)
                .map(|(rid, h)| LockHolder { rid: *rid, mode: h.mode, invalidating: h.invalidating, since: h.since })
                .collect(),
            waiting: waiters.clone().count(),
            waiters: waiters.take(LISTED).map(|w| LockWaiter { rid: w.rid, mode: w.mode, since: w.since }).collect(),
        }
    }

    /// Clients of this table with the number of locks that they hold or wait for.
    pub fn places(&self) -> impl Iterator<Item = (Rid, usize)> + '_ {
        self.clients.iter().map(|(rid, client)| (*rid, client.places.len()))
    }
}

#[cfg(test)]
mod tests {
    use vellum_base::Term;
    use vellum_wire::LockWant;

    use super::*;

    #[test]
    fn the_longest_waits_come_first_and_the_rest_is_counted() {
        let mut table = LockTable::new(Term(1), 0, 1, false);
        let want = |n| LockWant { name: LockName::Group(n), mode: LockMode::Write };
        for n in 0..10 {
            table.at(Time(100 + n));
            table.request(Rid(1), n + 1, want(n)).unwrap();
        }
        for (at, n) in [(300, 7), (200, 4)] {
            table.at(Time(at));
            table.request(Rid(2), n + 100, want(n)).unwrap();
        }
        let list = table.list(3);
        assert_eq!((list.locks, list.waited_for, list.waiting), (10, 2, 2));
        let names: Vec<_> = list.listed.iter().map(|l| l.name).collect();
        assert_eq!(names, [LockName::Group(4), LockName::Group(7), LockName::Group(0)]);
        let first = &list.listed[0];
        assert_eq!(first.waiters, [LockWaiter { rid: Rid(2), mode: LockMode::Write, since: Time(200) }]);
        let holder = first.holders[0];
        assert_eq!((holder.rid, holder.since, holder.invalidating), (Rid(1), Time(104), Some(LockMode::Null)));
        let mut places: Vec<_> = table.places().collect();
        places.sort_unstable();
        assert_eq!(places, [(Rid(1), 10), (Rid(2), 2)]);
    }
}
