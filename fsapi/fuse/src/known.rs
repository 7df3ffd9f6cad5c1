//! Which inodes the kernel knows: what must be told when a lock group is given away.
//!
//! Invariant: an inode is here exactly while the kernel holds lookups of it, as counted by answered entries and FORGETs.

use std::cell::RefCell;
use std::collections::BTreeMap;

use vellum_base::Ino;

/// Lookups by inode, ordered, so that a group's inodes lie together.
#[derive(Debug, Default)]
pub struct Known {
    lookups: RefCell<BTreeMap<Ino, u64>>,
}

impl Known {
    /// One more entry was answered for `ino`.
    pub fn looked_up(&self, ino: Ino) {
        if ino != Ino::NONE {
            *self.lookups.borrow_mut().entry(ino).or_default() += 1;
        }
    }

    pub fn forget(&self, ino: Ino, lookups: u64) {
        let mut all = self.lookups.borrow_mut();
        let Some(count) = all.get_mut(&ino) else { return };
        if *count <= lookups {
            all.remove(&ino);
        } else {
            *count -= lookups;
        }
    }

    /// The root is always known: the kernel never looks it up.
    pub fn of_group(&self, group: u64) -> Vec<Ino> {
        let range = Ino::first_of_group(group)..=Ino::last_of_group(group);
        let root = range.contains(&Ino::ROOT).then_some(Ino::ROOT);
        let all = self.lookups.borrow();
        root.into_iter().chain(all.range(range).map(|(ino, _)| *ino).filter(|ino| *ino != Ino::ROOT)).collect()
    }

    pub fn len(&self) -> usize {
        self.lookups.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_known_until_its_last_lookup_is_forgotten() {
        let known = Known::default();
        let (a, b, other) = (Ino(5 << 10 | 3), Ino(5 << 10 | 9), Ino(6 << 10));
        for ino in [a, b, a, other, Ino::NONE] {
            known.looked_up(ino);
        }
        assert_eq!(known.of_group(5), [a, b]);
        known.forget(a, 1);
        assert_eq!(known.of_group(5), [a, b]);
        known.forget(a, 1);
        known.forget(Ino(77), 1);
        assert_eq!((known.of_group(5), known.len()), (vec![b], 2));
        assert_eq!(known.of_group(0), [Ino::ROOT]);
    }
}
