//! Which inodes the kernel knows: what must be told when a lock group is given away.
//!
//! Invariant: an inode is here exactly while the kernel holds lookups of it, as counted by answered entries and FORGETs.

use std::cell::RefCell;
use std::collections::BTreeMap;

use vellum_base::Ino;

/// By inode, ordered, so that a group's inodes lie together.
#[derive(Debug, Default)]
pub struct Known {
    inodes: RefCell<BTreeMap<Ino, Held>>,
}

#[derive(Debug, Default)]
struct Held {
    lookups: u64,
    /// Pages that the kernel may have of it are of an earlier time.
    stale_pages: bool,
}

impl Known {
    /// One more entry was answered for `ino`.
    pub fn looked_up(&self, ino: Ino) {
        if ino != Ino::NONE {
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
        let known = Known::default();
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
        let known = Known::default();
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
}
