//! Range tombstones of one memtable, as fragments that do not overlap.

use std::collections::BTreeMap;
use std::ops::Bound;

use vellum_base::{Epoch, Key, KeyRange};

/// When something was written: its epoch, and its order within the memtable.
pub type Stamp = (Epoch, u32);

/// What a fragment counts for in the memtable's size.
pub const FRAGMENT_CHARGE: usize = 160;
const OLDER_CHARGE: usize = 16;

#[derive(Clone, Debug)]
pub struct Fragment {
    pub last: Key,
    pub newest: Stamp,
    /// Newest first; mostly empty.
    pub older: Vec<Stamp>,
}

impl Fragment {
    /// All stamps, newest first.
    pub fn stamps(&self) -> impl Iterator<Item = Stamp> + '_ {
        std::iter::once(self.newest).chain(self.older.iter().copied())
    }

    fn charge(&self) -> usize {
        FRAGMENT_CHARGE + self.older.len() * OLDER_CHARGE
    }

    /// Adds a stamp; drops those that no reader can tell from a newer one.
    fn add(&mut self, stamp: Stamp, oldest_reader: Epoch) {
        let mut stamps: Vec<Stamp> = self.stamps().collect();
        match stamps.iter().position(|s| s.0 <= stamp.0) {
            Some(i) if stamps[i].0 == stamp.0 => stamps[i].1 = stamps[i].1.max(stamp.1),
            Some(i) => stamps.insert(i, stamp),
            None => stamps.push(stamp),
        }
        if let Some(visible) = stamps.iter().position(|s| s.0 <= oldest_reader) {
            stamps.truncate(visible + 1);
        }
        self.newest = stamps.remove(0);
        self.older = stamps;
    }
}

#[derive(Default)]
pub struct RangeTombstones {
    fragments: BTreeMap<Key, Fragment>,
    bytes: usize,
}

impl RangeTombstones {
    pub fn is_empty(&self) -> bool {
        self.fragments.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The fragment that covers `key`.
    pub fn covering(&self, key: &Key) -> Option<(&Key, &Fragment)> {
        if self.fragments.is_empty() {
            return None;
        }
        let (first, fragment) = self.fragments.range(..=*key).next_back()?;
        (fragment.last >= *key).then_some((first, fragment))
    }

    /// The newest deletion of `key` that a reader at `at` sees.
    pub fn newest_at(&self, key: &Key, at: Epoch) -> Option<Stamp> {
        self.covering(key)?.1.stamps().find(|stamp| stamp.0 <= at)
    }

    /// Fragments that end at `key` or later, in key order.
    pub fn from(&self, key: &Key) -> impl Iterator<Item = (Key, &Fragment)> {
        let first = self.covering(key).map_or(*key, |(first, _)| *first);
        self.fragments.range(first..).map(|(first, fragment)| (*first, fragment))
    }

    pub fn insert(&mut self, range: KeyRange, stamp: Stamp, oldest_reader: Epoch) {
        self.split_before(&range.first);
        if let Some(after) = range.last.successor() {
            self.split_before(&after);
        }
        let mut gap_first = Some(range.first);
        let mut gaps = Vec::new();
        let inside = (Bound::Included(range.first), Bound::Included(range.last));
        for (first, fragment) in self.fragments.range_mut(inside) {
            if let (Some(gap), Some(before)) = (gap_first, first.predecessor())
                && gap <= before
            {
                gaps.push((gap, before));
            }
            gap_first = fragment.last.successor();
            self.bytes -= fragment.charge();
            fragment.add(stamp, oldest_reader);
            self.bytes += fragment.charge();
        }
        if let Some(gap) = gap_first
            && gap <= range.last
        {
            gaps.push((gap, range.last));
        }
        for (first, last) in gaps {
            self.bytes += FRAGMENT_CHARGE;
            self.fragments.insert(first, Fragment { last, newest: stamp, older: Vec::new() });
        }
    }

    /// Those of `range`, cut at its ends.
    pub fn part(&self, range: &KeyRange) -> RangeTombstones {
        let mut part = RangeTombstones::default();
        for (first, fragment) in self.from(&range.first).take_while(|(first, _)| *first <= range.last) {
            let fragment = Fragment { last: fragment.last.min(range.last), ..fragment.clone() };
            part.bytes += fragment.charge();
            part.fragments.insert(first.max(range.first), fragment);
        }
        part
    }

    /// Makes sure that no fragment reaches over the boundary before `key`.
    fn split_before(&mut self, key: &Key) {
        let Some(before) = key.predecessor() else { return };
        let Some((first, fragment)) = self.fragments.range_mut(..*key).next_back() else { return };
        debug_assert!(*first < *key);
        if fragment.last >= *key {
            let right = fragment.clone();
            fragment.last = before;
            self.bytes += right.charge();
            self.fragments.insert(*key, right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::Ino;
    use vellum_base::prng::Prng;

    #[test]
    fn overlapping_ranges_say_what_a_list_would() {
        let key = |i: u64| Key::fs(Ino(i), 0, 0, 0, 0);
        for seed in 0..50 {
            let mut random = Prng::new(seed);
            let (mut tombs, mut list) = (RangeTombstones::default(), Vec::new());
            for i in 0..60u32 {
                let (a, b) = (random.below(40), random.below(40));
                let range = KeyRange { first: key(a.min(b)), last: key(a.max(b)) };
                let stamp = (Epoch(1 + u64::from(i) / 4), i);
                tombs.insert(range, stamp, Epoch::NONE);
                list.push((range, stamp));
            }
            for at in [3, 9, 100].map(Epoch) {
                for k in (0..40).map(key) {
                    let expected = list.iter().filter(|(r, s)| r.contains(&k) && s.0 <= at).map(|(_, s)| *s).max();
                    assert_eq!(tombs.newest_at(&k, at), expected, "seed {seed}");
                }
            }
            let mut end = None;
            for (first, fragment) in tombs.from(&Key::MIN) {
                assert!(first <= fragment.last && end.is_none_or(|end| end < first));
                end = Some(fragment.last);
            }
            assert_eq!(tombs.bytes(), tombs.fragments.values().map(Fragment::charge).sum::<usize>());
        }
    }

    #[test]
    fn what_no_reader_can_tell_apart_is_dropped() {
        let mut tombs = RangeTombstones::default();
        for e in 1..=5 {
            tombs.insert(KeyRange::of_inode(Ino(1)), (Epoch(e), e as u32), Epoch(3));
        }
        let (_, fragment) = tombs.covering(&Key::fs(Ino(1), 1, 0, 0, 0)).unwrap();
        assert_eq!(fragment.stamps().map(|s| s.0.0).collect::<Vec<_>>(), [5, 4, 3]);
    }
}
