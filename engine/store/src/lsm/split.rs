//! A shard becomes two.
//!
//! The memtable is frozen at the last closed epoch; what is frozen, both halves share, and each reads and flushes of it only
//! keys of its own range. Of the writes of open epochs, which are few, each half takes those of its own buckets. It also
//! takes the segments that reach into them. A segment that crosses the boundary is **clipped**: both halves name it, each reads of it only keys of its own range (no other is ever
//! asked for), and a compaction writes only those. Who keeps the manifest counts the holders of such a segment and frees its
//! blocks with the last. The whole stays as it was for the reads that began in it; it holds its segments until they end.

use std::cell::RefCell;
use std::rc::Rc;

use vellum_base::{Bucket, Epoch, KeyRange, ShardId};

use super::segment::Segment;
use super::state::{Run, State};
use super::{LsmConfig, Shard, ShardEnv};

/// How much is in a shard's segments; clipped ones count whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub segments: usize,
    pub bytes: u64,
    pub clipped: usize,
}

impl Shard {
    /// While `held`, no compaction of it begins.
    pub fn hold_compactions(&self, held: bool) {
        self.held.set(held);
    }

    /// Nothing of it is being written: no flush, no compaction.
    pub fn is_idle(&self) -> bool {
        let state = self.state();
        let busy = state.sorted_runs().flat_map(|run| &run.segments).any(|segment| segment.is_busy());
        !busy && !self.flushing.get()
    }

    /// The segment holds keys of other shards, too.
    pub(super) fn is_clipped(&self, segment: &Segment) -> bool {
        !self.range.contains(&segment.meta.first) || !self.range.contains(&segment.meta.last)
    }

    pub fn extent(&self) -> Extent {
        let state = self.state();
        let mut extent = Extent::default();
        for segment in state.sorted_runs().flat_map(|run| &run.segments) {
            extent.segments += 1;
            extent.bytes += segment.meta.len_bytes;
            extent.clipped += usize::from(self.is_clipped(segment));
        }
        extent
    }

    /// The bucket that would be the first of the upper half, so that the halves' segments are about equal in length. `None`
    /// when it has one bucket, or nothing.
    pub fn middle(&self) -> Option<Bucket> {
        let (first, last) = (self.range.first.bucket().0, self.range.last.bucket().0);
        let mut weights = [0f64; 256];
        for segment in self.state().sorted_runs().flat_map(|run| &run.segments) {
            let from = segment.meta.first.bucket().0.max(first);
            let to = segment.meta.last.bucket().0.min(last);
            let share = segment.meta.len_bytes as f64 / f64::from(u16::from(to.max(from) - from) + 1);
            weights[usize::from(from)..=usize::from(to.max(from))].iter_mut().for_each(|weight| *weight += share);
        }
        let all: f64 = weights.iter().sum();
        let mut below = 0.0;
        let distances = (first..last).map(|bucket| {
            below += weights[usize::from(bucket)];
            ((below - all / 2.0).abs(), bucket + 1)
        });
        let nearest = distances.min_by(|a, b| a.0.total_cmp(&b.0))?;
        (all > 0.0).then_some(Bucket(nearest.1))
    }

    /// The shard's halves, the upper one from bucket `at` on, with `cfg`. It is [idle](Self::is_idle), the manifest says
    /// the same durably, and every segment that crosses the boundary counts two holders more there: it is given back by each
    /// half, and by the reads that began before. Nothing of `closed_through` or before comes any more. Takes time in
    /// proportion to the writes of later epochs.
    pub fn split(&self, at: Bucket, new: ShardId, cfg: &LsmConfig, closed_through: Epoch) -> [Rc<Shard>; 2] {
        assert!(self.is_idle(), "shard {} is split while it is written", self.id);
        self.freeze(closed_through);
        let state = self.state();
        let (first, last) = (self.range.first.bucket(), self.range.last.bucket());
        let lower = KeyRange::of_buckets(first, Bucket(at.0 - 1));
        let halves = [(self.id, lower), (new, KeyRange::of_buckets(at, last))];
        let crosses = |segment: &Segment| segment.meta.first <= lower.last && segment.meta.last > lower.last;
        let part = |range: &KeyRange| state.part(range, crosses, &self.env);
        let halves = halves.map(|(id, range)| self.half(id, range, part(&range), cfg.clone()));
        let segments = state.sorted_runs().flat_map(|run| &run.segments);
        segments.filter(|segment| crosses(segment)).for_each(|segment| segment.make_obsolete());
        halves
    }
}

impl State {
    /// What of it concerns `range`. What `crosses` its bounds is held anew.
    fn part(&self, range: &KeyRange, crosses: impl Fn(&Segment) -> bool, env: &Rc<dyn ShardEnv>) -> State {
        let active = Rc::new(RefCell::new(self.active.borrow().part(range)));
        let part = |run: &Rc<Run>| {
            let mine = |segment: &Rc<Segment>| match crosses(segment) {
                true => Segment::new(segment.meta.clone(), env.clone()),
                false => segment.clone(),
            };
            Rc::new(Run { id: run.id, segments: run.overlapping(range).iter().map(mine).collect() })
        };
        let runs = self.runs.iter().map(part).filter(|run| !run.segments.is_empty()).collect();
        State { active, frozen: self.frozen.clone(), runs, levels: self.levels.iter().map(part).collect() }
    }
}
