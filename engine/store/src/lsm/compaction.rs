//! Which segments merge, and how far behind that is.
//!
//! Level 0 is merged whole into level 1 when it has enough runs; below, the segment that costs least to move is merged
//! into the next level while its own is over its size; and segments full of tombstones go down (or are rewritten at the
//! bottom) whatever the sizes, so that deletions do vanish. What a split left to two shards is rewritten last.

use std::rc::Rc;

use vellum_base::{KeyRange, Mutant, mutant};

use super::Shard;
use super::plan::Pick;
use super::segment::Segment;
use super::state::{Run, State};

/// Fill of a level (1 is full) from where writers are slowed down, and where they are slowest.
const DEBT_FREE: f32 = 2.0;
const DEBT_FULL: f32 = 8.0;

fn any_busy(segments: &[Rc<Segment>]) -> bool {
    !mutant::active(Mutant::CompactBusyInputs) && segments.iter().any(|segment| segment.is_busy())
}

fn bytes(segments: &[Rc<Segment>]) -> u64 {
    segments.iter().map(|segment| segment.meta.len_bytes).sum()
}

fn bounds<'a>(segments: impl Iterator<Item = &'a Rc<Segment>>) -> Option<KeyRange> {
    segments
        .map(|s| KeyRange { first: s.meta.first, last: s.meta.last })
        .reduce(|a, b| KeyRange { first: a.first.min(b.first), last: a.last.max(b.last) })
}

impl Shard {
    /// The most urgent compaction that shares no input with one that runs.
    pub fn pick_compaction(&self) -> Option<Pick> {
        if self.held.get() {
            return None;
        }
        let state = self.state();
        self.pick_level_zero(&state)
            .or_else(|| self.pick_by_size(&state))
            .or_else(|| self.pick_by_tombstones(&state))
            .or_else(|| self.pick_clipped(&state))
    }

    fn pick_level_zero(&self, state: &State) -> Option<Pick> {
        let enough = state.runs.len() >= self.cfg.l0_runs
            || (state.runs.len() >= self.cfg.l0_runs.div_ceil(2) && self.mostly_tombstones(&state.runs))
            || state.runs.iter().flat_map(|run| &run.segments).any(|segment| self.is_clipped(segment));
        // One job at a time: a second one would have to pass older runs that are still being merged.
        if !enough || state.runs.iter().any(|run| any_busy(&run.segments)) {
            return None;
        }
        if let Some(segment) = falls_through(state) {
            return Some(Pick::new(vec![vec![segment]], 1, true));
        }
        let mut sources: Vec<_> = state.runs.iter().map(|run| run.segments.clone()).collect();
        if mutant::active(Mutant::CompactSomeRuns) {
            sources.truncate(sources.len().div_ceil(2));
        }
        let range = bounds(sources.iter().flatten())?;
        let below = overlapping(state, 1, &range);
        if any_busy(&below) {
            return None;
        }
        sources.push(below);
        Some(Pick::new(sources, 1, false))
    }

    fn mostly_tombstones(&self, runs: &[Rc<Run>]) -> bool {
        let metas = || runs.iter().flat_map(|run| &run.segments).map(|segment| &segment.meta);
        let all: u64 = metas().map(|meta| meta.entries + meta.range_tombstones).sum();
        let dead: u64 = metas().map(|meta| meta.tombstones + meta.range_tombstones).sum();
        dead * 100 >= all.max(1) * u64::from(self.cfg.tombstone_percent)
    }

    fn pick_by_size(&self, state: &State) -> Option<Pick> {
        let (level, _) = state
            .levels
            .iter()
            .enumerate()
            .map(|(at, run)| (at + 1, run.bytes() as f64 / self.cfg.level_bytes(at + 1) as f64))
            .filter(|(_, fill)| *fill > 1.0)
            .max_by(|a, b| a.1.total_cmp(&b.1))?;
        let run = state.levels.get(level - 1)?;
        let (segment, below, _) = run
            .segments
            .iter()
            .filter(|segment| !segment.is_busy())
            .map(|segment| {
                let below = overlapping(state, level + 1, &bounds(std::iter::once(segment)).unwrap_or(KeyRange::ALL));
                let cost = bytes(&below) as f64 / segment.meta.len_bytes.max(1) as f64;
                (segment, below, cost)
            })
            .filter(|(_, below, _)| !any_busy(below))
            .min_by(|a, b| a.2.total_cmp(&b.2))?;
        let trivial = below.is_empty();
        Some(Pick::new(vec![vec![segment.clone()], below], level + 1, trivial))
    }

    fn pick_by_tombstones(&self, state: &State) -> Option<Pick> {
        let oldest = self.oldest_reader();
        for (at, run) in state.levels.iter().enumerate() {
            let level = at + 1;
            for segment in &run.segments {
                let meta = &segment.meta;
                let full = meta.tombstone_percent() >= self.cfg.tombstone_percent && meta.max_epoch <= oldest;
                if !full || segment.is_busy() {
                    continue;
                }
                let range = KeyRange { first: meta.first, last: meta.last };
                let next = (level..=state.levels.len()).find(|l| !overlapping(state, l + 1, &range).is_empty());
                match next {
                    // Something older lies below: meet it.
                    Some(l) if l == level => {
                        let below = overlapping(state, level + 1, &range);
                        if !any_busy(&below) {
                            return Some(Pick::new(vec![vec![segment.clone()], below], level + 1, false));
                        }
                    }
                    Some(_) => return Some(Pick::new(vec![vec![segment.clone()], Vec::new()], level + 1, true)),
                    // Nothing below: its tombstones have nothing to hide.
                    None => return Some(Pick::new(vec![vec![segment.clone()]], level, false)),
                }
            }
        }
        None
    }

    /// A segment that a split left to two shards is written anew where it is, with this one's keys alone: its blocks are free
    /// when both have done so.
    fn pick_clipped(&self, state: &State) -> Option<Pick> {
        let segments =
            state.levels.iter().enumerate().flat_map(|(at, run)| run.segments.iter().map(move |s| (at + 1, s)));
        let (level, segment) = segments.into_iter().find(|(_, s)| self.is_clipped(s) && !s.is_busy())?;
        Some(Pick::new(vec![vec![segment.clone()]], level, false))
    }

    /// How much this shard wants to be merged; from 1 on there is something to do by size.
    pub fn urgency(&self) -> f32 {
        let state = self.state();
        let runs = state.runs.len() as f32 / self.cfg.l0_runs as f32;
        let fill = |(at, run): (usize, &Rc<Run>)| run.bytes() as f32 / self.cfg.level_bytes(at + 1) as f32;
        state.levels.iter().enumerate().map(fill).fold(runs, f32::max)
    }

    /// All of it is in one level.
    pub fn is_merged(&self) -> bool {
        let state = self.state();
        state.runs.is_empty() && state.levels.iter().filter(|run| !run.segments.is_empty()).count() <= 1
    }

    /// Everything in one job, down to the lowest level. `None`: a part of it is in another one, or [`Self::is_merged`].
    pub fn pick_everything(&self) -> Option<Pick> {
        let state = self.state();
        let sources: Vec<_> =
            state.sorted_runs().filter(|run| !run.segments.is_empty()).map(|run| run.segments.clone()).collect();
        if self.held.get() || self.is_merged() || sources.iter().any(|segments| any_busy(segments)) {
            return None;
        }
        let lowest = state.levels.iter().rposition(|run| !run.segments.is_empty()).map_or(1, |at| at + 1);
        Some(Pick::new(sources, lowest, false))
    }

    /// How much of what memtables may hold is in use: from 1 on writers wait for a flush.
    pub fn pressure(&self) -> f32 {
        let table = self.memtable_bound.get() as f32;
        ratio(self.memtable_bytes() as f32, table * 1.5, table * self.cfg.memtable_backlog as f32)
    }

    /// How far merging is behind: 0 is not at all, and it grows smoothly to 1 and beyond. Writers are slowed by it, and
    /// never stopped (C4).
    pub fn debt(&self) -> f32 {
        let state = self.segments();
        let runs = ratio(state.runs.len() as f32, self.cfg.l0_runs as f32 * 1.5, self.cfg.l0_far as f32);
        // Many times what the levels should hold means that merging has lagged for long.
        let levels = state
            .levels
            .iter()
            .enumerate()
            .map(|(at, run)| ratio(run.bytes() as f32 / self.cfg.level_bytes(at + 1) as f32, DEBT_FREE, DEBT_FULL));
        levels.fold(runs, f32::max)
    }
}

/// Where `have` stands between `free` (0) and `full` (1).
fn ratio(have: f32, free: f32, full: f32) -> f32 {
    ((have - free) / (full - free).max(1.0)).max(0.0)
}

/// A segment of level 0 that overlaps no older one and nothing in level 1 goes there as it is. (Files that are created in
/// order are written once.) Not one with tombstones: a merge rids us of them.
fn falls_through(state: &State) -> Option<Rc<Segment>> {
    let mut older: Vec<&Rc<Run>> = state.levels.first().into_iter().collect();
    for run in state.runs.iter().rev() {
        for segment in &run.segments {
            let meta = &segment.meta;
            let range = KeyRange { first: meta.first, last: meta.last };
            let free = older.iter().all(|run| run.overlapping(&range).is_empty());
            if free && meta.tombstones == 0 && meta.range_tombstones == 0 {
                return Some(segment.clone());
            }
        }
        older.push(run);
    }
    None
}

/// Segments of a level (1 or more) that overlap `range`.
fn overlapping(state: &State, level: usize, range: &KeyRange) -> Vec<Rc<Segment>> {
    state.levels.get(level - 1).map(|run| run.overlapping(range).to_vec()).unwrap_or_default()
}
