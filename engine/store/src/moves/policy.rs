//! Which shard should go where, by what reactors had to do. Pure.
//!
//! Load is counted per shard: what a request for it costs, about. It moves when one reactor had clearly more to do than
//! another for a while, and when that makes the difference clearly less.

use vellum_base::{Bucket, ReactorId};

/// What one shard had to do since the last look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Load {
    pub first_bucket: Bucket,
    pub touches: u64,
}

/// The busiest reactor has more than so many percent of the idlest one's load.
const CLEARLY_PERCENT: u64 = 150;
/// Looks one after the other at which it had.
const WINDOWS: u32 = 3;
/// The difference must become less by one part in so many.
const WORTH: u64 = 5;
/// Touches of the busiest reactor between two looks below which nothing is worth moving: some percent of a core.
const LEAST: u64 = 50_000;

#[derive(Debug, Default)]
pub(super) struct Policy {
    /// The pair that was uneven at so many looks.
    uneven: Option<(ReactorId, ReactorId, u32)>,
}

impl Policy {
    /// One look: the shards of every reactor in order. What should move, and where to.
    pub fn look(&mut self, loads: &[Vec<Load>]) -> Option<(Bucket, ReactorId)> {
        let sum = |shards: &Vec<Load>| shards.iter().map(|load| load.touches).sum::<u64>();
        let sums: Vec<u64> = loads.iter().map(sum).collect();
        let (busiest, most) = sums.iter().enumerate().rev().max_by_key(|(_, sum)| **sum)?;
        let (idlest, least) = sums.iter().enumerate().min_by_key(|(_, sum)| **sum)?;
        let pair = (ReactorId(busiest as u16), ReactorId(idlest as u16));
        if *most < LEAST || most * 100 <= least * CLEARLY_PERCENT {
            self.uneven = None;
            return None;
        }
        let looks = match self.uneven {
            Some((from, to, looks)) if (from, to) == pair => looks + 1,
            _ => 1,
        };
        self.uneven = Some((pair.0, pair.1, looks));
        if looks < WINDOWS {
            return None;
        }
        let before = most - least;
        let after = |load: &Load| before.abs_diff(2 * load.touches);
        let best = loads[busiest].iter().filter(|load| load.touches > 0).min_by_key(|load| after(load))?;
        (after(best) <= before - before / WORTH).then_some((best.first_bucket, pair.1))
    }

    /// Something was moved: what was seen before counts no more.
    pub fn moved(&mut self) {
        self.uneven = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(reactors: &[&[u64]]) -> Vec<Vec<Load>> {
        let mut bucket = 0;
        let mut next = |touches: &u64| {
            bucket += 1;
            Load { first_bucket: Bucket(bucket), touches: touches * 1000 }
        };
        reactors.iter().map(|shards| shards.iter().map(&mut next).collect()).collect()
    }

    /// What the third look of the same kind says.
    fn third(reactors: &[&[u64]]) -> Option<(u8, u16)> {
        let (mut policy, loads) = (Policy::default(), loads(reactors));
        assert_eq!((policy.look(&loads), policy.look(&loads)), (None, None), "not at once");
        policy.look(&loads).map(|(bucket, to)| (bucket.0, to.0))
    }

    #[test]
    fn the_shard_moves_that_makes_it_most_even() {
        assert_eq!(third(&[&[400, 250, 30], &[100, 100]]), Some((2, 1)), "680 and 200: 430 and 450");
        assert_eq!(third(&[&[10, 10], &[300, 290], &[100]]), Some((4, 0)));
    }

    #[test]
    fn one_hot_shard_stays_where_it_is() {
        assert_eq!(third(&[&[1000], &[10, 10]]), None, "it would be as uneven elsewhere");
        assert_eq!(third(&[&[1000, 1], &[10, 10]]), None, "the little one is not worth it");
    }

    #[test]
    fn what_is_about_even_or_idle_stays() {
        assert_eq!(third(&[&[100, 100], &[80, 60]]), None);
        assert_eq!(third(&[&[20, 20], &[1]]), None);
        assert_eq!(third(&[&[], &[]]), None);
    }

    #[test]
    fn a_look_that_differs_begins_anew() {
        let (mut policy, uneven, even) = (Policy::default(), loads(&[&[200, 200], &[10]]), loads(&[&[200], &[190]]));
        assert_eq!([&uneven, &uneven, &even, &uneven, &uneven].map(|l| policy.look(l)), [None; 5]);
        assert!(policy.look(&uneven).is_some());
        policy.moved();
        assert_eq!(policy.look(&uneven), None);
    }
}
