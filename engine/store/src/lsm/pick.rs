//! Which segments to merge next, and how much writers have to be slowed down meanwhile.
//!
//! Level 0 holds up to `l0_runs` whole flushes and goes down at once; a level below that is too large gives one segment
//! at a time, the one with the least to rewrite under it. Segments with many tombstones go down whatever the sizes, until
//! the tombstones have met what they delete and vanish at the bottom.

use std::rc::Rc;

use vellum_base::KeyRange;

use super::segment::Segment;
use super::state::{Run, State};
use super::{Job, Shard};

impl Shard {
    /// The most urgent compaction that shares no input with one that is running. Its inputs are its own until the edit is
    /// installed or abandoned, or the job is dropped.
    pub fn pick_compaction(&self) -> Option<Job> {
        let state = self.state();
        let job =
            self.pick_level_0(&state).or_else(|| self.pick_by_size(&state)).or_else(|| self.pick_tombstones(&state));
        job.inspect(Job::claim)
    }

    fn pick_level_0(&self, state: &State) -> Option<Job> {
        let runs = &state.runs;
        let many_tombstones = runs.len() >= self.cfg.l0_runs.div_ceil(2) && self.mostly_tombstones(runs);
        if runs.len() < self.cfg.l0_runs && !many_tombstones {
            return None;
        }
        // One at a time: a second one would have to pass older runs that are still being merged.
        if runs.iter().any(|run| run.segments.iter().any(|s| s.is_busy())) {
            return None;
        }
        if let Some(job) = trivial_from_level_0(state) {
            return Some(job);
        }
        let range = hull(runs.iter().flat_map(|run| &run.segments))?;
        let below = state.levels.first().map_or(&[][..], |level| level.overlapping(&range));
        let mut inputs: Vec<Vec<Rc<Segment>>> = runs.iter().map(|run| run.segments.clone()).collect();
        inputs.push(below.to_vec());
        Job::new(inputs, 1)
    }

    fn mostly_tombstones(&self, runs: &[Rc<Run>]) -> bool {
        let segments = || runs.iter().flat_map(|run| &run.segments);
        let sum = |of: fn(&Segment) -> u64| segments().map(|s| of(s)).sum::<u64>();
        let all = sum(|s| s.meta.entries + s.meta.range_tombstones);
        let dead = sum(|s| s.meta.entries * u64::from(s.meta.tombstone_percent()) / 100 + s.meta.range_tombstones);
        dead * 100 >= all.max(1) * u64::from(self.cfg.tombstone_percent)
    }

    fn pick_by_size(&self, state: &State) -> Option<Job> {
        let score = |index: usize| state.levels[index].bytes() as f64 / self.cfg.level_bytes(index + 1) as f64;
        let mut levels: Vec<usize> = (0..state.levels.len()).filter(|index| score(*index) > 1.0).collect();
        levels.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
        levels.into_iter().find_map(|index| {
            let mut candidates: Vec<_> = state.levels[index].segments.iter().filter(|s| !s.is_busy()).collect();
            candidates.sort_by_cached_key(|segment| rewrite_percent(state, index, segment));
            candidates.into_iter().find_map(|segment| Job::downwards(state, index + 1, segment))
        })
    }

    fn pick_tombstones(&self, state: &State) -> Option<Job> {
        for (index, level) in state.levels.iter().enumerate() {
            for segment in level.segments.iter().filter(|segment| !segment.is_busy()) {
                if segment.meta.tombstone_percent() < self.cfg.tombstone_percent {
                    continue;
                }
                // Where nothing lies below, rewriting helps only when no reader needs the tombstones any more.
                let lowest = state.levels[index + 1..].iter().all(|run| run.segments.is_empty());
                let job = if !lowest {
                    Job::downwards(state, index + 1, segment)
                } else if segment.meta.max_epoch <= self.oldest_reader() {
                    Job::new(vec![vec![segment.clone()]], index + 1)
                } else {
                    None
                };
                if job.is_some() {
                    return job;
                }
            }
        }
        None
    }

    /// 0: none; 1 and more: writers must wait. It grows smoothly from the point where compaction begins to lag.
    pub fn pressure(&self) -> f32 {
        let state = self.state();
        let tables = self.memtable_bytes() as f32 / self.cfg.memtable_bytes as f32;
        let ramp = |value: f32, from: f32, to: f32| ((value - from) / (to - from)).max(0.0);
        let memory = ramp(tables, 1.0, self.cfg.memtable_backlog as f32);
        let runs = ramp(state.runs.len() as f32, self.cfg.l0_runs as f32, self.cfg.l0_stop as f32);
        // Debt of the levels, as a multiple of what they should hold. It is met long before it is dangerous.
        let debt = state.levels.iter().enumerate().rev().skip(1).map(|(index, level)| {
            let share = level.bytes() as f32 / self.cfg.level_bytes(index + 1) as f32;
            ramp(share, 2.0, 8.0)
        });
        debt.fold(memory.max(runs), f32::max)
    }
}

fn hull<'a>(segments: impl Iterator<Item = &'a Rc<Segment>>) -> Option<KeyRange> {
    let range = |s: &Rc<Segment>| KeyRange { first: s.meta.first, last: s.meta.last };
    segments.map(range).reduce(|a, b| KeyRange { first: a.first.min(b.first), last: a.last.max(b.last) })
}

fn bounds(segment: &Segment) -> KeyRange {
    KeyRange { first: segment.meta.first, last: segment.meta.last }
}

/// Bytes to be rewritten below a segment for each byte of it, in percent.
fn rewrite_percent(state: &State, index: usize, segment: &Segment) -> u64 {
    let below = state.levels.get(index + 1).map_or(&[][..], |level| level.overlapping(&bounds(segment)));
    below.iter().map(|s| s.meta.len_bytes).sum::<u64>() * 100 / segment.meta.len_bytes.max(1)
}

/// A segment of level 0 that overlaps no older one and nothing in level 1 moves there as it is.
fn trivial_from_level_0(state: &State) -> Option<Job> {
    let mut older: Vec<&Rc<Run>> = state.levels.first().into_iter().collect();
    for run in state.runs.iter().rev() {
        for segment in &run.segments {
            let free = older.iter().all(|run| run.overlapping(&bounds(segment)).is_empty());
            if free && segment.meta.tombstones == 0 && segment.meta.range_tombstones == 0 {
                return Job::new(vec![vec![segment.clone()]], 1);
            }
        }
        older.push(run);
    }
    None
}

impl Job {
    /// `segment` of level `level` (1 or more) with what it overlaps in the level below it.
    fn downwards(state: &State, level: usize, segment: &Rc<Segment>) -> Option<Job> {
        let below = state.levels.get(level).map_or(&[][..], |run| run.overlapping(&bounds(segment)));
        Job::new(vec![vec![segment.clone()], below.to_vec()], level + 1)
    }

    /// `None` when an input belongs to another job.
    fn new(mut inputs: Vec<Vec<Rc<Segment>>>, level: usize) -> Option<Job> {
        inputs.retain(|run| !run.is_empty());
        let busy = inputs.iter().flatten().any(|segment| segment.is_busy());
        (!busy && !inputs.is_empty()).then_some(Job { inputs, level, claimed: false.into() })
    }

    fn claim(&self) {
        self.claimed.set(true);
        self.segments().for_each(|segment| segment.set_busy(true));
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = &Rc<Segment>> {
        self.inputs.iter().flatten()
    }

    /// True when the only input moves to its new level without being written.
    pub fn is_move(&self) -> bool {
        let mut segments = self.segments();
        matches!((segments.next(), segments.next()), (Some(only), None)
            if only.meta.tombstones == 0 && only.meta.range_tombstones == 0)
    }

    /// Device space that the job needs at most before its inputs are released (one copy).
    pub fn space_bytes(&self) -> u64 {
        if self.is_move() { 0 } else { self.segments().map(|s| s.meta.len_bytes).sum() }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.claimed.get() {
            self.segments().for_each(|segment| segment.set_busy(false));
        }
    }
}
