//! Which shard should go where, by what reactors had to do. Pure.
//!
//! Load is counted per shard: what a request for it costs, about. It moves when one reactor had clearly more to do than
//! another for a while, and when that makes the difference clearly less. Where no shard's move does, because one has most
//! of its reactor's load, that one is split where its load divides, if the move of a half will do; the next look moves it.

use vellum_base::{Bucket, ReactorId};

use crate::lsm::Load;

/// What would make reactors more even.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// The shard that has the bucket goes to the reactor.
    Move(Bucket, ReactorId),
    /// The bucket becomes the first of a shard.
    Split(Bucket),
}

/// A reactor that has so many shards splits none by load: halves are never joined.
pub(super) const MAX_SHARDS: usize = 32;

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
    /// One look: the shards of every reactor in order.
    pub fn look(&mut self, loads: &[Vec<Load>]) -> Option<Step> {
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
        let after = |touches: u64| before.abs_diff(2 * touches);
        let is_worth = |touches: u64| after(touches) <= before - before / WORTH;
        let shards = &loads[busiest];
        let best = shards.iter().filter(|load| load.touches > 0).min_by_key(|load| after(load.touches))?;
        if is_worth(best.touches) {
            return Some(Step::Move(best.first_bucket, pair.1));
        }
        let hottest = shards.iter().max_by_key(|load| load.touches)?;
        let (at, upper) = hottest.middle?;
        let helps = is_worth(upper) || is_worth(hottest.touches - upper);
        (shards.len() < MAX_SHARDS && 2 * hottest.touches > *most && helps).then_some(Step::Split(at))
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
            Load { first_bucket: Bucket(bucket), touches: touches * 1000, middle: None }
        };
        reactors.iter().map(|shards| shards.iter().map(&mut next).collect()).collect()
    }

    /// What the third look of the same kind says.
    fn third(reactors: &[&[u64]]) -> Option<(u8, u16)> {
        match third_of(&loads(reactors)) {
            Some(Step::Move(bucket, to)) => Some((bucket.0, to.0)),
            None => None,
            Some(Step::Split(at)) => panic!("nothing can be split, and {at:?} is"),
        }
    }

    fn third_of(loads: &[Vec<Load>]) -> Option<Step> {
        let mut policy = Policy::default();
        assert_eq!((policy.look(loads), policy.look(loads)), (None, None), "not at once");
        policy.look(loads)
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

    /// The first shard of the first reactor with a middle that leaves so much above it.
    fn divided(reactors: &[&[u64]], upper: u64) -> Vec<Vec<Load>> {
        let mut loads = loads(reactors);
        loads[0][0].middle = Some((Bucket(77), upper * 1000));
        loads
    }

    #[test]
    fn one_hot_shard_is_split_where_its_load_divides_and_a_half_moves_at_the_next_look() {
        let mut policy = Policy::default();
        let hot = divided(&[&[1000, 20], &[10, 10]], 450);
        assert_eq!(
            [policy.look(&hot), policy.look(&hot), policy.look(&hot)],
            [None, None, Some(Step::Split(Bucket(77)))]
        );
        let halves = loads(&[&[550, 450, 20], &[10, 10]]);
        assert_eq!(policy.look(&halves), Some(Step::Move(Bucket(1), ReactorId(1))), "470 and 570, or the other way");
    }

    #[test]
    fn a_split_that_would_not_help_is_none() {
        let split = Some(Step::Split(Bucket(77)));
        assert_eq!(third_of(&divided(&[&[1000], &[10]], 990)), None, "nearly all in one place");
        assert_eq!(third_of(&divided(&[&[1000], &[10]], 850)), split, "what is below it is worth it");
        assert_eq!(third_of(&divided(&[&[1000], &[10]], 150)), split);
        assert_eq!(third_of(&divided(&[&[1000], &[900]], 500)), None, "about even");
        // A move is better, while one does.
        assert_eq!(third_of(&divided(&[&[600, 400], &[10]], 300)), Some(Step::Move(Bucket(2), ReactorId(1))));
        let mut many = divided(&[&[1000], &[10]], 500);
        let cold = Load { first_bucket: Bucket(200), touches: 0, middle: None };
        many[0].resize(MAX_SHARDS - 1, cold);
        assert_eq!(third_of(&many), split);
        many[0].push(cold);
        assert_eq!(third_of(&many), None, "too many shards");
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
