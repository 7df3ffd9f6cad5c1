//! The locks of some files, and who has them open, go to another reactor's tables.
//!
//! The graph of waiters, which is the engine's, is as it was: it names waits by their clients, not by tables.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use vellum_base::{Ino, Rid};

use super::table::File;
use super::{FileLockTable, OpenTable};

/// What is on its way from one table of file locks to another.
#[derive(Default)]
pub struct MovedFiles(BTreeMap<Ino, File>);

/// What is on its way from one table of open inodes to another.
#[derive(Default)]
pub struct MovedOpens(BTreeMap<Ino, BTreeSet<Rid>>);

/// Takes the part of a map whose keys are in the range.
pub(super) fn take_range<T>(map: &mut BTreeMap<Ino, T>, inodes: &RangeInclusive<Ino>) -> BTreeMap<Ino, T> {
    let mut taken = map.split_off(inodes.start());
    if let Some((above, _)) = taken.range((std::ops::Bound::Excluded(inodes.end()), std::ops::Bound::Unbounded)).next()
    {
        let above = *above;
        map.append(&mut taken.split_off(&above));
    }
    taken
}

impl FileLockTable {
    /// Takes the files out, with their waiters. Nobody is waited for, and nothing of a client is being reclaimed.
    pub fn take(&mut self, inodes: &RangeInclusive<Ino>) -> MovedFiles {
        let files = take_range(&mut self.files, inodes);
        for (ino, file) in &files {
            file.waiting_rids().for_each(|rid| self.count_wait(rid, -1));
            file.rids().into_iter().for_each(|rid| self.recount(rid, *ino));
        }
        MovedFiles(files)
    }

    pub fn put(&mut self, moved: MovedFiles) {
        for (ino, file) in moved.0 {
            let (rids, waits): (_, Vec<Rid>) = (file.rids(), file.waiting_rids().collect());
            self.files.insert(ino, file);
            waits.into_iter().for_each(|rid| self.count_wait(rid, 1));
            for rid in rids {
                self.count_wait(rid, 0);
                self.recount(rid, ino);
            }
        }
    }
}

impl OpenTable {
    pub fn take(&mut self, inodes: &RangeInclusive<Ino>) -> MovedOpens {
        let taken = take_range(&mut self.inodes, inodes);
        for (ino, rids) in &taken {
            for rid in rids {
                if let Some(mine) = self.clients.get_mut(rid) {
                    mine.remove(ino);
                    if mine.is_empty() {
                        self.clients.remove(rid);
                    }
                }
            }
        }
        MovedOpens(taken)
    }

    pub fn put(&mut self, moved: MovedOpens) {
        for (ino, rids) in moved.0 {
            for rid in &rids {
                self.clients.entry(*rid).or_default().insert(ino);
            }
            self.inodes.insert(ino, rids);
        }
    }
}

#[cfg(test)]
mod tests {
    use vellum_base::prng::Prng;
    use vellum_wire::{FileLock, FileLockMode, FileLockSpace};

    use super::super::FileLockOutput;
    use super::*;

    fn moving() -> RangeInclusive<Ino> {
        Ino(10)..=Ino(19)
    }

    fn outputs(tables: &mut [&mut FileLockTable]) -> Vec<FileLockOutput> {
        let mut out = Vec::new();
        tables.iter_mut().for_each(|table| out.extend(std::iter::from_fn(|| table.poll_output())));
        out
    }

    /// The same random locks, tests, cancellations and reclaims on a table that keeps its files and on two between which some
    /// go to and fro: the same is said, in the same order.
    #[test]
    fn files_that_move_are_as_if_they_had_stayed() {
        for seed in 0..60 {
            let mut prng = Prng::new(seed);
            let (mut still, mut here, mut there) =
                (FileLockTable::new(false), FileLockTable::new(false), FileLockTable::new(false));
            let (mut moved, mut waits) = (false, Vec::new());
            for request in 0..600 {
                let (rid, ino) = (Rid(1 + prng.below(3)), Ino(9 + prng.below(3)));
                let owner = if moved && moving().contains(&ino) { &mut there } else { &mut here };
                let start = prng.below(6);
                let lock = FileLock {
                    space: if prng.one_in(3) { FileLockSpace::Flock } else { FileLockSpace::Posix },
                    mode: [FileLockMode::Unlocked, FileLockMode::Shared, FileLockMode::Exclusive]
                        [prng.below(3) as usize],
                    owner: prng.below(2),
                    pid: 1,
                    start,
                    end: start + prng.below(4),
                };
                match prng.below(10) {
                    0..=5 => {
                        let ticket = (lock.mode != FileLockMode::Unlocked && prng.one_in(2)).then_some(request);
                        waits.extend(ticket.map(|ticket| (rid, ino, ticket)));
                        owner.lock(rid, request, ino, lock, ticket);
                        still.lock(rid, request, ino, lock, ticket);
                    }
                    6 => {
                        owner.test(rid, request, ino, lock);
                        still.test(rid, request, ino, lock);
                    }
                    7 if !waits.is_empty() => {
                        let (rid, ino, ticket) = waits.swap_remove(prng.below(waits.len() as u64) as usize);
                        let owner = if moved && moving().contains(&ino) { &mut there } else { &mut here };
                        owner.cancel(rid, request, ino, ticket);
                        still.cancel(rid, request, ino, ticket);
                    }
                    8 if prng.one_in(30) => {
                        [&mut still, &mut here, &mut there].into_iter().for_each(|table| table.reclaim(rid));
                        waits.retain(|(of, ..)| *of != rid);
                    }
                    9 => {
                        let (from, to) = if moved { (&mut there, &mut here) } else { (&mut here, &mut there) };
                        to.put(from.take(&moving()));
                        moved = !moved;
                    }
                    _ => {}
                }
                let sorted = |mut list: Vec<FileLockOutput>| {
                    list.sort_by_key(|output| format!("{output:?}"));
                    list
                };
                let (found, expected) = (outputs(&mut [&mut here, &mut there]), outputs(&mut [&mut still]));
                assert_eq!(sorted(found), sorted(expected), "seed {seed}, request {request}");
                let stats = |table: &FileLockTable| (table.stats().files, table.stats().held, table.stats().waiting);
                let (a, b) = (stats(&here), stats(&there));
                assert_eq!((a.0 + b.0, a.1 + b.1, a.2 + b.2), stats(&still), "seed {seed}, request {request}");
            }
            for rid in (1..=3).map(Rid) {
                [&mut here, &mut there].into_iter().for_each(|table| table.reclaim(rid));
            }
            let left = [&here, &there].map(|table| (table.stats().files, table.stats().held));
            assert_eq!(left, [(0, 0); 2], "seed {seed}");
        }
    }

    #[test]
    fn open_inodes_go_and_come_back() {
        let (mut here, mut there) = (OpenTable::new(false), OpenTable::new(false));
        here.opened(Rid(1), &[Ino(9), Ino(10), Ino(19), Ino(20)]).unwrap();
        here.opened(Rid(2), &[Ino(10)]).unwrap();
        there.put(here.take(&moving()));
        assert_eq!((here.len(), there.len()), (2, 2));
        assert!(there.is_open_elsewhere(Rid(2), Ino(10)) && !here.is_open_elsewhere(Rid(2), Ino(10)));
        assert!(here.is_open_elsewhere(Rid(2), Ino(20)));
        there.closed(Rid(1), &[Ino(10)]);
        assert!(!there.is_open_elsewhere(Rid(2), Ino(10)), "only its own");
        here.put(there.take(&moving()));
        assert!(there.is_empty() && here.is_open_elsewhere(Rid(1), Ino(10)));
        here.reclaim(Rid(1));
        here.reclaim(Rid(2));
        assert!(here.is_empty());
    }
}
