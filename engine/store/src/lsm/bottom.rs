//! Whether anything older may lie below a key: only then does a tombstone have to stay.

use std::rc::Rc;

use vellum_base::{Key, KeyRange};

use super::state::Run;

/// Most ranges that are kept; beyond it neighbours are joined, and a few tombstones stay longer.
pub const MAX_OLDER: usize = 4096;

/// Where runs older than the output of a job hold anything, at the time it was planned. What comes under the job later
/// comes from segments that do not overlap its inputs, so the answer stays right.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bottom {
    /// Disjoint, ascending.
    older: Vec<KeyRange>,
}

impl Bottom {
    /// Of `older` runs, as far as they concern a job on the keys `within`.
    pub fn of<'a>(older: impl Iterator<Item = &'a Rc<Run>>, within: &KeyRange) -> Bottom {
        let segments = older.flat_map(|run| run.overlapping(within));
        Bottom::new(segments.map(|s| KeyRange { first: s.meta.first, last: s.meta.last }).collect())
    }

    pub fn new(mut ranges: Vec<KeyRange>) -> Bottom {
        ranges.sort_by_key(|range| range.first);
        let mut older: Vec<KeyRange> = Vec::new();
        for range in ranges {
            match older.last_mut().filter(|last| range.first <= last.last) {
                Some(last) => last.last = last.last.max(range.last),
                None => older.push(range),
            }
        }
        while older.len() > MAX_OLDER {
            older = older
                .chunks(2)
                .map(|pair| KeyRange { first: pair[0].first, last: pair[pair.len() - 1].last })
                .collect();
        }
        Bottom { older }
    }

    pub fn ranges(&self) -> &[KeyRange] {
        &self.older
    }

    /// True when nothing older lies in `first..=last`.
    pub fn is_below(&self, first: &Key, last: &Key) -> bool {
        let at = self.older.partition_point(|range| range.last < *first);
        self.older.get(at).is_none_or(|range| range.first > *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::Ino;

    #[test]
    fn nothing_that_lies_below_is_ever_denied() {
        let key = |n: u64| Key::fs(Ino(n), 1, 0, 0, 0);
        let range = |a, b| KeyRange { first: key(a), last: key(b) };
        let bottom = Bottom::new(vec![range(50, 60), range(10, 20), range(18, 30), range(31, 31)]);
        assert_eq!(bottom.ranges(), [range(10, 30), range(31, 31), range(50, 60)]);
        for (first, last, below) in [(0, 9, true), (0, 10, false), (25, 26, false), (32, 49, true), (40, 70, false)] {
            assert_eq!(bottom.is_below(&key(first), &key(last)), below, "{first}..={last}");
        }
        let many = Bottom::new((0..3 * MAX_OLDER as u64).map(|n| range(n * 4, n * 4 + 1)).collect());
        assert!(many.ranges().len() <= MAX_OLDER);
        assert!((0..3 * MAX_OLDER as u64).all(|n| !many.is_below(&key(n * 4), &key(n * 4))));
        assert!(many.is_below(&key(12 * MAX_OLDER as u64), &Key::MAX));
    }
}
