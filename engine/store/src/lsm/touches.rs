//! What a shard had to do, and in which of its buckets.
//!
//! A touch is one increment in two cache lines. The counters are even parts of the shard's range of buckets: of single
//! buckets where it has at most [`PARTS`].

use std::cell::Cell;

use vellum_base::{Bucket, KeyRange};

const PARTS: usize = 32;

pub(super) struct Touches {
    first: u8,
    last: u8,
    /// Buckets of a part, as a power of two.
    shift: u32,
    /// Wraps where nobody ever looks.
    parts: [Cell<u32>; PARTS],
}

/// What a shard had to do since the last look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    pub first_bucket: Bucket,
    /// In gets, about.
    pub touches: u64,
    /// Where it would be split so that the halves have about equally much to do, and what the upper one would have had.
    /// `None` when nothing can be split off that had something to do.
    pub middle: Option<(Bucket, u64)>,
}

impl Touches {
    pub fn new(range: &KeyRange) -> Touches {
        let (first, last) = (range.first.bucket().0, range.last.bucket().0);
        let shift = (usize::from(last - first) / PARTS + 1).next_power_of_two().trailing_zeros();
        Touches { first, last, shift, parts: std::array::from_fn(|_| Cell::new(0)) }
    }

    #[inline]
    pub fn add(&self, bucket: Bucket, gets: u32) {
        let part = usize::from(bucket.0.saturating_sub(self.first) >> self.shift) % PARTS;
        self.parts[part].set(self.parts[part].get().wrapping_add(gets));
    }

    /// Begins anew.
    pub fn take(&self) -> Load {
        let parts: [u64; PARTS] = std::array::from_fn(|part| u64::from(self.parts[part].take()));
        let touches: u64 = parts.iter().sum();
        let starts = (1..PARTS).map(|part| (part, usize::from(self.first) + (part << self.shift)));
        let mut upper = touches;
        let cuts = starts.take_while(|(_, bucket)| *bucket <= usize::from(self.last)).map(|(part, bucket)| {
            upper -= parts[part - 1];
            (Bucket(bucket as u8), upper)
        });
        let middle = cuts
            .filter(|(_, upper)| (1..touches).contains(upper))
            .min_by_key(|(_, upper)| upper.abs_diff(touches - upper));
        Load { first_bucket: Bucket(self.first), touches, middle }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(first: u8, last: u8, touched: &[(u8, u32)]) -> Load {
        let touches = Touches::new(&KeyRange::of_buckets(Bucket(first), Bucket(last)));
        touched.iter().for_each(|(bucket, gets)| touches.add(Bucket(*bucket), *gets));
        let load = touches.take();
        assert_eq!(touches.take(), Load { touches: 0, middle: None, ..load }, "it begins anew");
        load
    }

    #[test]
    fn the_middle_divides_what_was_to_do() {
        let middle = |touched: &[(u8, u32)]| of(32, 63, touched).middle;
        assert_eq!(middle(&[(32, 10), (33, 10), (40, 5), (41, 25)]), Some((Bucket(41), 25)));
        assert_eq!(middle(&[(62, 7), (63, 7)]), Some((Bucket(63), 7)));
        assert_eq!(middle(&[(40, 100), (63, 1)]), Some((Bucket(41), 1)), "little, but all that there is");
    }

    #[test]
    fn one_bucket_has_no_middle() {
        assert_eq!(of(7, 7, &[(7, 9)]), Load { first_bucket: Bucket(7), touches: 9, middle: None });
        assert_eq!(of(0, 255, &[(9, 9), (9, 9)]).middle, None, "all of it in one bucket");
        assert_eq!(of(0, 255, &[]).middle, None);
    }

    #[test]
    fn every_range_fits() {
        for (first, last) in [(0, 255), (0, 31), (0, 32), (255, 255), (223, 255), (100, 165)] {
            let all: Vec<_> = (first..=last).map(|bucket| (bucket, 3)).collect();
            let load = of(first, last, &all);
            assert_eq!(load.touches, 3 * all.len() as u64);
            let Some((at, upper)) = load.middle else { continue };
            assert!(first < at.0 && at.0 <= last, "{first} to {last}: {at:?}");
            assert_eq!(upper, 3 * (u64::from(last - at.0) + 1), "{first} to {last}: {at:?}");
        }
    }
}
