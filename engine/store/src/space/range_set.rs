//! A set of disjoint block ranges that merges neighbours and finds the largest. Pure.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    by_start: BTreeMap<u64, u64>,
    /// (length, start) of the same ranges.
    by_len: BTreeSet<(u64, u64)>,
    blocks: u64,
}

impl RangeSet {
    /// Number of blocks in the set.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.by_start.iter().map(|(s, l)| (*s, *l))
    }

    fn add(&mut self, start: u64, len: u64) {
        self.by_start.insert(start, len);
        self.by_len.insert((len, start));
        self.blocks += len;
    }

    fn del(&mut self, start: u64, len: u64) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
        self.blocks -= len;
    }

    /// The range that holds `block`.
    fn at(&self, block: u64) -> Option<(u64, u64)> {
        self.by_start.range(..=block).next_back().map(|(s, l)| (*s, *l)).filter(|(s, l)| block < s + l)
    }

    pub fn contains(&self, start: u64, len: u64) -> bool {
        len == 0 || self.at(start).is_some_and(|(s, l)| start + len <= s + l)
    }

    pub fn overlaps(&self, start: u64, len: u64) -> bool {
        len > 0 && (self.at(start).is_some() || self.by_start.range(start..start.saturating_add(len)).next().is_some())
    }

    /// Inserts; false, and no change, when a block is there already.
    pub fn insert(&mut self, start: u64, len: u64) -> bool {
        if self.overlaps(start, len) {
            return false;
        }
        if len == 0 {
            return true;
        }
        let (mut s, mut l) = (start, len);
        if let Some((ps, pl)) = self.by_start.range(..start).next_back().map(|(s, l)| (*s, *l))
            && ps + pl == start
        {
            self.del(ps, pl);
            (s, l) = (ps, pl + l);
        }
        if let Some(nl) = self.by_start.get(&(start + len)).copied() {
            self.del(start + len, nl);
            l += nl;
        }
        self.add(s, l);
        true
    }

    /// Removes; false, and no change, when not all of it is there.
    pub fn remove(&mut self, start: u64, len: u64) -> bool {
        if len == 0 {
            return true;
        }
        let Some((s, l)) = self.at(start).filter(|(s, l)| start + len <= s + l) else { return false };
        self.del(s, l);
        if s < start {
            self.add(s, start - s);
        }
        if start + len < s + l {
            self.add(start + len, s + l - start - len);
        }
        true
    }

    /// Removes what is there of `start..start+len` and gives it.
    pub fn take_overlap(&mut self, start: u64, len: u64) -> Vec<(u64, u64)> {
        let end = start.saturating_add(len);
        let mut found = Vec::new();
        while let Some((s, l)) =
            self.at(start).or_else(|| self.by_start.range(start..end).next().map(|(s, l)| (*s, *l)))
        {
            let (from, to) = (s.max(start), (s + l).min(end));
            if from >= to {
                break;
            }
            self.remove(from, to - from);
            found.push((from, to - from));
        }
        found
    }

    /// Takes up to `len` blocks from the front of the largest range.
    pub fn take_largest(&mut self, len: u64) -> Option<(u64, u64)> {
        let (l, s) = *self.by_len.last()?;
        let take = l.min(len);
        self.remove(s, take);
        Some((s, take))
    }

    #[cfg(test)]
    pub fn largest(&self) -> u64 {
        self.by_len.last().map_or(0, |(l, _)| *l)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::prng::Prng;

    #[test]
    fn it_agrees_with_a_plain_bitmap() {
        const N: u64 = 200;
        let (mut set, mut plain) = (RangeSet::default(), vec![false; N as usize]);
        let mut prng = Prng::new(1);
        for _ in 0..20_000 {
            let start = prng.below(N);
            let len = prng.below((N - start).min(20) + 1);
            let cells = start as usize..(start + len) as usize;
            match prng.below(4) {
                0 => {
                    let ok = !plain[cells.clone()].iter().any(|x| *x);
                    assert_eq!(set.insert(start, len), ok);
                    if ok {
                        plain[cells].fill(true);
                    }
                }
                1 => {
                    let ok = plain[cells.clone()].iter().all(|x| *x);
                    assert_eq!(set.contains(start, len), ok);
                    assert_eq!(set.remove(start, len), ok);
                    if ok {
                        plain[cells].fill(false);
                    }
                }
                2 => {
                    let found: u64 = set.take_overlap(start, len).iter().map(|(_, l)| l).sum();
                    assert_eq!(found as usize, plain[cells.clone()].iter().filter(|x| **x).count());
                    plain[cells].fill(false);
                }
                _ => {
                    let largest = plain.split(|x| !x).map(<[bool]>::len).max().unwrap_or(0) as u64;
                    assert_eq!(set.largest(), largest);
                    if let Some((s, l)) = set.take_largest(len.max(1)) {
                        assert!(plain[s as usize..(s + l) as usize].iter().all(|x| *x));
                        plain[s as usize..(s + l) as usize].fill(false);
                    }
                }
            }
            assert_eq!(set.blocks() as usize, plain.iter().filter(|x| **x).count());
            assert_eq!(set.iter().map(|(_, l)| l).sum::<u64>(), set.blocks());
        }
    }
}
