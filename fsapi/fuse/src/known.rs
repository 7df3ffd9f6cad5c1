//! Which inodes the kernel knows: what must be told when a lock group is given away.
//!
//! Invariant: an inode is here exactly while the kernel holds lookups of it, as counted by answered entries and FORGETs.
//!
//! The kernel keeps what it looked up for as long as it has memory, so whoever goes through 10^7 files would have them all here.
//! Beyond a bound it is therefore asked to forget some: a few for each new one, in the order of their numbers and round again,
//! since which of them it used last it knows alone. One that was forgotten too early costs a LOOKUP.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use vellum_base::Ino;

/// Inodes that the kernel may hold before it is asked to forget some; about 50 bytes each here, and 1 KiB in the kernel.
pub const KERNEL_INODES: usize = 1 << 20;
/// Entries that are answered between two such requests, and inodes that one names.
const ENTRIES_PER_PRUNE: usize = 2048;
const PRUNED_AT_ONCE: usize = 2 * ENTRIES_PER_PRUNE;

/// By inode, ordered, so that a group's inodes lie together.
#[derive(Debug)]
pub struct Known {
    inodes: RefCell<BTreeMap<Ino, Held>>,
    max: usize,
    /// Entries answered since the kernel was last asked to forget.
    entries: Cell<usize>,
    /// Where the next request to forget goes on.
    hand: Cell<Ino>,
}

#[derive(Debug, Default)]
struct Held {
    lookups: u64,
    /// Pages that the kernel may have of it are of an earlier time.
    stale_pages: bool,
}

impl Known {
    /// The kernel is to hold about `max` inodes at most.
    pub fn new(max: usize) -> Known {
        Known { inodes: RefCell::default(), max, entries: Cell::new(0), hand: Cell::new(Ino::NONE) }
    }

    /// What the kernel should be asked to forget now: none, unless it holds too many.
    pub fn take_surplus(&self) -> Vec<Ino> {
        let all = self.inodes.borrow();
        if all.len() <= self.max || self.entries.get() < ENTRIES_PER_PRUNE.min(self.max) {
            return Vec::new();
        }
        self.entries.set(0);
        let from = self.hand.get();
        let round = all.range(from..).chain(all.range(..from)).map(|(ino, _)| *ino);
        let surplus: Vec<Ino> = round.take(PRUNED_AT_ONCE.min(all.len())).collect();
        self.hand.set(surplus.last().map_or(Ino::NONE, |last| Ino(last.0.wrapping_add(1))));
        surplus
    }

    /// One more entry was answered for `ino`.
    pub fn looked_up(&self, ino: Ino) {
        if ino != Ino::NONE {
            self.entries.set(self.entries.get().saturating_add(1));
            self.inodes.borrow_mut().entry(ino).or_default().lookups += 1;
        }
    }

    pub fn forget(&self, ino: Ino, lookups: u64) {
        let mut all = self.inodes.borrow_mut();
        let Some(held) = all.get_mut(&ino) else { return };
        if held.lookups <= lookups {
            all.remove(&ino);
        } else {
            held.lookups -= lookups;
        }
    }

    /// Pages of `ino`, which nobody has open, are not to be used by the next open.
    pub fn pages_are_stale(&self, ino: Ino) {
        if let Some(held) = self.inodes.borrow_mut().get_mut(&ino) {
            held.stale_pages = true;
        }
    }

    /// For an open: whether it may use the kernel's pages. If not, it drops them, and the next may.
    pub fn may_keep_pages(&self, ino: Ino) -> bool {
        self.inodes.borrow_mut().get_mut(&ino).is_some_and(|held| !std::mem::take(&mut held.stale_pages))
    }

    /// The mount's root is always known: the kernel never looks it up.
    pub fn of_group(&self, group: u64, root: Ino) -> Vec<Ino> {
        let range = Ino::first_of_group(group)..=Ino::last_of_group(group);
        let first = range.contains(&root).then_some(root);
        let all = self.inodes.borrow();
        first.into_iter().chain(all.range(range).map(|(ino, _)| *ino).filter(|ino| *ino != root)).collect()
    }

    pub fn len(&self) -> usize {
        self.inodes.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_pages_are_dropped_by_one_open() {
        let known = Known::new(10);
        let ino = Ino(5 << 10 | 3);
        assert!(!known.may_keep_pages(ino), "nothing is known of it");
        known.looked_up(ino);
        assert!(known.may_keep_pages(ino));
        known.pages_are_stale(ino);
        assert!(!known.may_keep_pages(ino));
        assert!(known.may_keep_pages(ino));
    }

    #[test]
    fn an_inode_is_known_until_its_last_lookup_is_forgotten() {
        let known = Known::new(10);
        let (a, b, other) = (Ino(5 << 10 | 3), Ino(5 << 10 | 9), Ino(6 << 10));
        for ino in [a, b, a, other, Ino::NONE] {
            known.looked_up(ino);
        }
        assert_eq!(known.of_group(5, Ino::ROOT), [a, b]);
        known.forget(a, 1);
        assert_eq!(known.of_group(5, Ino::ROOT), [a, b]);
        known.forget(a, 1);
        known.forget(Ino(77), 1);
        assert_eq!((known.of_group(5, Ino::ROOT), known.len()), (vec![b], 2));
        assert_eq!(known.of_group(0, Ino::ROOT), [Ino::ROOT]);
        assert_eq!((known.of_group(0, a), known.of_group(5, a)), (vec![], vec![a, b]), "of a confined client");
    }

    #[test]
    fn the_kernel_is_asked_to_forget_in_turns_when_it_holds_too_many() {
        let known = Known::new(3);
        let look_up = |range: std::ops::RangeInclusive<u64>| range.for_each(|n| known.looked_up(Ino(n)));
        look_up(1..=3);
        assert!(known.take_surplus().is_empty());
        look_up(4..=4);
        assert_eq!(known.take_surplus(), [1, 2, 3, 4].map(Ino));
        assert!(known.take_surplus().is_empty(), "asked already");
        let many = Known::new(10_000);
        (1..=11_000).for_each(|n| many.looked_up(Ino(n)));
        let first = many.take_surplus();
        assert_eq!((first.first(), first.len()), (Some(&Ino(1)), PRUNED_AT_ONCE));
        assert!(many.take_surplus().is_empty(), "a few for each new one");
        (1..=2048).for_each(|n| many.looked_up(Ino(n)));
        assert_eq!(many.take_surplus().first(), Some(&Ino(PRUNED_AT_ONCE as u64 + 1)), "where it stopped");
    }
}
