//! The file locks of one reactor as an operator sees them.

use std::collections::BTreeSet;

use vellum_base::Ino;
use vellum_wire::FileLockSpace;

use super::{FileLockTable, Held};

/// Ranges and waiters that are listed of one file; the rest is counted.
const LISTED: usize = 16;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileLockInfo {
    pub ino: Ino,
    pub holding: usize,
    pub holders: Vec<(FileLockSpace, Held)>,
    pub waiting: usize,
    /// In the order of their coming.
    pub waiters: Vec<(FileLockSpace, Held)>,
}

impl FileLockTable {
    /// At most `most` files, those that are waited for first, then by number. Walks the whole table: for people.
    pub fn list(&self, most: usize) -> Vec<FileLockInfo> {
        let mut chosen = BTreeSet::new();
        for (ino, file) in self.files() {
            chosen.insert((file.waiting().next().is_none(), *ino));
            if chosen.len() > most {
                chosen.pop_last();
            }
        }
        chosen.into_iter().filter_map(|(_, ino)| self.info(ino)).collect()
    }

    fn info(&self, ino: Ino) -> Option<FileLockInfo> {
        let held = |space| self.held(ino, space).into_iter().map(move |held| (space, held));
        let holders: Vec<_> = held(FileLockSpace::Posix).chain(held(FileLockSpace::Flock)).collect();
        let waiters: Vec<_> = self.files().get(&ino)?.waiting().collect();
        Some(FileLockInfo {
            ino,
            holding: holders.len(),
            holders: holders.into_iter().take(LISTED).collect(),
            waiting: waiters.len(),
            waiters: waiters.into_iter().take(LISTED).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use vellum_base::Rid;
    use vellum_wire::{FileLock, FileLockMode};

    use super::*;

    #[test]
    fn files_that_are_waited_for_come_first() {
        let mut table = FileLockTable::new(false);
        let lock =
            |space, start| FileLock { space, mode: FileLockMode::Exclusive, owner: 7, pid: 9, start, end: start + 9 };
        for n in 0..5 {
            table.lock(Rid(1), n, Ino(n), lock(FileLockSpace::Posix, 0), None);
            table.lock(Rid(1), 10 + n, Ino(n), lock(FileLockSpace::Flock, 0), None);
        }
        table.lock(Rid(2), 20, Ino(3), lock(FileLockSpace::Posix, 5), Some(1));
        let list = table.list(2);
        assert_eq!(list.iter().map(|file| file.ino).collect::<Vec<_>>(), [Ino(3), Ino(0)]);
        assert_eq!((list[0].holding, list[0].waiting), (2, 1));
        let (space, waiter) = list[0].waiters[0];
        assert_eq!((space, waiter.owner.rid, waiter.start), (FileLockSpace::Posix, Rid(2), 5));
        assert_eq!(list[0].holders[1].0, FileLockSpace::Flock);
    }
}
