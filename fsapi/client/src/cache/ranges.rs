//! A set of keys as disjoint inclusive ranges.

use std::collections::BTreeMap;

use vellum_base::{Key, KeyRange};

#[derive(Default)]
pub(crate) struct RangeSet {
    /// First key -> last key; neither overlapping nor touching.
    ranges: BTreeMap<Key, Key>,
}

impl RangeSet {
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The last key of the range that holds `key`.
    pub fn known_through(&self, key: &Key) -> Option<Key> {
        self.ranges.range(..=*key).next_back().map(|(_, last)| *last).filter(|last| key <= last)
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.known_through(key).is_some()
    }

    pub fn insert(&mut self, range: KeyRange) {
        if range.first > range.last {
            return;
        }
        let (mut first, mut last) = (range.first, range.last);
        // The range before may touch or cover ours; those that begin inside or right behind are swallowed.
        if let Some((f, l)) = self.ranges.range(..=first).next_back().map(|(f, l)| (*f, *l))
            && l.successor().is_none_or(|after| after >= first)
        {
            (first, last) = (f, last.max(l));
        }
        let end = last.successor().unwrap_or(Key::MAX);
        let swallowed: Vec<(Key, Key)> = self.ranges.range(first..=end).map(|(f, l)| (*f, *l)).collect();
        for (f, l) in swallowed {
            last = last.max(l);
            self.ranges.remove(&f);
        }
        self.ranges.insert(first, last);
    }

    /// The parts of `range` that are in the set.
    pub fn within(&self, range: KeyRange) -> Vec<KeyRange> {
        if range.first > range.last {
            return Vec::new();
        }
        let before = self.known_through(&range.first).map(|last| (range.first, last));
        let inside = self.ranges.range(range.first..=range.last).map(|(first, last)| (*first, *last));
        let inside = inside.filter(|(first, _)| before.is_none() || *first != range.first);
        before.into_iter().chain(inside).map(|(first, last)| KeyRange { first, last: last.min(range.last) }).collect()
    }

    /// Takes the keys of `range` out.
    pub fn remove(&mut self, range: KeyRange) {
        if range.first > range.last {
            return;
        }
        let before =
            self.ranges.range(..range.first).next_back().map(|(f, l)| (*f, *l)).filter(|(_, l)| *l >= range.first);
        let inside: Vec<(Key, Key)> = self.ranges.range(range.first..=range.last).map(|(f, l)| (*f, *l)).collect();
        for (f, l) in before.into_iter().chain(inside) {
            self.ranges.remove(&f);
            if let Some(end) = range.first.predecessor().filter(|end| f <= *end) {
                self.ranges.insert(f, end);
            }
            if let Some(start) = range.last.successor().filter(|start| *start <= l) {
                self.ranges.insert(start, l);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::prng::Prng;

    fn key(n: u64) -> Key {
        Key([[0; 20].as_slice(), &n.to_be_bytes()].concat().try_into().unwrap())
    }

    #[test]
    fn random_ranges_are_kept_like_a_set_of_keys() {
        let mut prng = Prng::new(5);
        for _ in 0..200 {
            let (mut set, mut model) = (RangeSet::default(), [false; 64]);
            for _ in 0..prng.below(16) {
                let first = prng.below(64);
                let last = (first + prng.below(9)).min(63);
                let (range, known) = (KeyRange { first: key(first), last: key(last) }, prng.below(3) > 0);
                if known {
                    set.insert(range)
                } else {
                    set.remove(range)
                }
                model[first as usize..=last as usize].fill(known);
            }
            for n in 0..64 {
                assert_eq!(set.contains(&key(n)), model[n as usize]);
            }
            let (first, last) = (prng.below(64), prng.below(64));
            let parts = set.within(KeyRange { first: key(first.min(last)), last: key(first.max(last)) });
            for n in 0..64 {
                let expected = model[n as usize] && (first.min(last)..=first.max(last)).contains(&n);
                assert_eq!(parts.iter().filter(|part| part.contains(&key(n))).count(), usize::from(expected));
            }
            let runs = model.windows(2).filter(|w| !w[0] && w[1]).count() + usize::from(model[0]);
            assert_eq!(set.len(), runs, "ranges that touch are one");
        }
        let mut all = RangeSet::default();
        all.insert(KeyRange::ALL);
        all.insert(KeyRange { first: key(1), last: Key::MAX });
        assert_eq!(all.len(), 1);
        all.remove(KeyRange::ALL);
        assert!(all.is_empty());
    }
}
