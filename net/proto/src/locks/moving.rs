//! The locks of some inode groups go to another reactor's table, with who holds them, who was asked and who waits.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;

use vellum_base::{Ino, Rid};
use vellum_wire::LockName;

use super::{Lock, LockTable};

/// What is on its way from one table to another.
#[derive(Default)]
pub struct MovedLocks {
    locks: Vec<(LockName, Lock)>,
    /// No grant there had a greater sequence.
    write_seq: u64,
}

impl MovedLocks {
    pub fn len(&self) -> usize {
        self.locks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }
}

impl Lock {
    /// One place of each holder, and one for each waiting request.
    fn places(&self) -> HashMap<Rid, u32> {
        let mut places = HashMap::new();
        let rids = self.holders.keys().copied().chain(self.waiters.iter().map(|waiter| waiter.rid));
        rids.for_each(|rid| *places.entry(rid).or_default() += 1);
        places
    }
}

impl LockTable {
    /// Nothing of a client is being reclaimed, and nobody is waited for.
    pub fn is_settled(&self) -> bool {
        !self.recovering && self.asked_early.is_empty() && self.reclaiming.is_empty() && self.outputs.is_empty()
    }

    /// Takes the locks of the groups of these inodes out of the table, which is [settled](Self::is_settled). Walks all of it.
    pub fn take(&mut self, inodes: &RangeInclusive<Ino>) -> MovedLocks {
        let goes = |name: &LockName| match name {
            LockName::Rename => false,
            LockName::Group(group) => inodes.contains(&Ino::first_of_group(*group)),
        };
        let names: BTreeSet<LockName> = self.locks.keys().filter(|name| goes(name)).copied().collect();
        let mut moved = MovedLocks { locks: Vec::new(), write_seq: self.write_seq };
        for name in names {
            let Some(mut lock) = self.locks.remove(&name) else { continue };
            self.waiting -= lock.waiters.len();
            // Those of clients that are gone stay behind.
            lock.waiters
                .retain(|waiter| self.clients.get(&waiter.rid).is_some_and(|c| c.pending.contains(&waiter.request)));
            for waiter in &lock.waiters {
                if let Some(client) = self.clients.get_mut(&waiter.rid) {
                    client.pending.remove(&waiter.request);
                }
            }
            for rid in lock.places().into_keys() {
                if let Some(client) = self.clients.get_mut(&rid) {
                    client.places.remove(&name);
                }
                self.forget_client(rid);
            }
            moved.locks.push((name, lock));
        }
        moved
    }

    /// Takes them in. What was asked of holders is asked still, and waiters keep their turns.
    pub fn put(&mut self, moved: MovedLocks) {
        if self.write_seq < moved.write_seq {
            // Its own numbers: no two tables give the same one.
            self.write_seq += (moved.write_seq - self.write_seq).div_ceil(self.stride) * self.stride;
        }
        for (name, lock) in moved.locks {
            self.waiting += lock.waiters.len();
            for (rid, n) in lock.places() {
                self.clients.entry(rid).or_default().places.insert(name, n);
            }
            for waiter in &lock.waiters {
                self.clients.entry(waiter.rid).or_default().pending.insert(waiter.request);
            }
            self.locks.insert(name, lock);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vellum_base::Term;
    use vellum_base::prng::Prng;
    use vellum_wire::{LockGrant, LockMode, LockWant};

    use super::super::LockOutput;
    use super::*;

    /// The groups of bucket 9.
    fn moving() -> RangeInclusive<Ino> {
        Ino(9 << 56)..=Ino((10 << 56) - 1)
    }

    fn name(n: u64) -> LockName {
        let bucket = if n.is_multiple_of(2) { 9 } else { 4 };
        LockName::Group(Ino((bucket << 56) | (n << 10)).group())
    }

    /// What came out, without the sequences, which differ between tables.
    fn outputs(table: &mut LockTable, last: &mut BTreeMap<LockName, u64>) -> Vec<LockOutput> {
        let mut out: Vec<LockOutput> = std::iter::from_fn(|| table.poll_output()).collect();
        for output in &mut out {
            if let LockOutput::Granted { grant, .. } = output {
                let before = last.insert(grant.name, grant.write_seq);
                assert!(before.is_none_or(|before| before < grant.write_seq), "L4: sequences of a lock grow");
                *grant = LockGrant { write_seq: 0, ..*grant };
            }
        }
        out
    }

    /// Random requests, answers, unlocks and reclaims on one table, and on two between which half of the locks go to and fro:
    /// everybody is told the same in the same order, and in the end nothing is left in any.
    #[test]
    fn locks_that_move_are_as_if_they_had_stayed() {
        for seed in 0..60 {
            let mut prng = Prng::new(seed);
            let table = |index| LockTable::new(Term(1), index, 3, false);
            let (mut still, mut here, mut there) = (table(0), table(1), table(2));
            let (mut asked, mut request, mut moved) = (Vec::new(), 0, false);
            let (mut last_still, mut last) = (BTreeMap::new(), BTreeMap::new());
            for step in 0..600 {
                let (rid, name) = (Rid(1 + prng.below(4)), name(prng.below(6)));
                let goes = matches!(name, LockName::Group(group) if moving().contains(&Ino::first_of_group(group)));
                let owner = if goes && moved { &mut there } else { &mut here };
                let mut reclaimed = false;
                let modes = [LockMode::Null, LockMode::Read, LockMode::Write];
                match prng.below(10) {
                    0..=3 => {
                        request += 1;
                        let want = LockWant { name, mode: modes[1 + prng.below(2) as usize] };
                        assert_eq!(owner.request(rid, request, want), still.request(rid, request, want));
                    }
                    4 | 5 => {
                        let to = [LockWant { name, mode: modes[prng.below(2) as usize] }];
                        owner.unlock(rid, &to);
                        still.unlock(rid, &to);
                    }
                    6 | 7 if !asked.is_empty() => {
                        let (rid, name) = asked.swap_remove(prng.below(asked.len() as u64) as usize);
                        let goes = matches!(name, LockName::Group(g) if moving().contains(&Ino::first_of_group(g)));
                        if goes && moved { &mut there } else { &mut here }.invalidated(rid, name);
                        still.invalidated(rid, name);
                    }
                    8 if prng.one_in(20) => {
                        reclaimed = true;
                        still.reclaim(rid);
                        here.reclaim(rid);
                        there.reclaim(rid);
                        asked.retain(|(of, _)| *of != rid);
                    }
                    9 => {
                        assert!(here.is_settled() && there.is_settled());
                        let (from, to) = if moved { (&mut there, &mut here) } else { (&mut here, &mut there) };
                        to.put(from.take(&moving()));
                        moved = !moved;
                    }
                    _ => {}
                }
                let expected = outputs(&mut still, &mut last_still);
                let mut found = outputs(&mut here, &mut last);
                found.extend(outputs(&mut there, &mut last));
                let mut said = expected.clone();
                if reclaimed {
                    // It frees locks of both tables; the order of what that brings about is each table's own.
                    [&mut found, &mut said]
                        .into_iter()
                        .for_each(|list| list.sort_by_key(|output| format!("{output:?}")));
                }
                assert_eq!(found, said, "seed {seed}, step {step}");
                asked.extend(expected.iter().filter_map(|output| match output {
                    LockOutput::Invalidate { rid, name, .. } => Some((*rid, *name)),
                    LockOutput::Granted { .. } => None,
                }));
                for rid in (1..=4).map(Rid) {
                    assert_eq!(here.locks_of(rid) + there.locks_of(rid), still.locks_of(rid), "seed {seed}");
                }
            }
            for rid in (1..=4).map(Rid) {
                [&mut still, &mut here, &mut there].into_iter().for_each(|table| table.reclaim(rid));
            }
            assert_eq!((here.stats().locks, there.stats().locks), (0, 0), "seed {seed}");
            assert_eq!((here.stats().clients, there.stats().clients), (0, 0), "seed {seed}");
        }
    }
}
