//! Which segments merge, and how far behind that is.
//!
//! Level 0 is merged whole into level 1 when it has enough runs; below, the segment that costs least to move is merged
//! into the next level while its own is over its size; and segments full of tombstones go down (or are rewritten at the
//! bottom) whatever the sizes, so that deletions do vanish.

use std::cell::Cell;
use std::rc::Rc;

use vellum_base::{Epoch, KeyRange};

use super::bottom::Bottom;
use super::merge::Merge;
use super::output::Output;
use super::segment::Segment;
use super::state::State;
use super::{Edit, LsmError, Shard};

/// A compaction that was picked: its inputs belong to no other job while it lives.
pub struct Job {
    /// Runs of inputs, newest first; the last ones are from the target level.
    sources: Vec<Vec<Rc<Segment>>>,
    target: usize,
    /// The input only changes its level.
    trivial: bool,
    /// The edit was handed out: the inputs stay taken until it is installed or abandoned.
    handed_over: Cell<bool>,
}

impl Job {
    fn new(sources: Vec<Vec<Rc<Segment>>>, target: usize, trivial: bool) -> Job {
        sources.iter().flatten().for_each(|segment| segment.set_busy(true));
        Job { sources, target, trivial, handed_over: Cell::new(false) }
    }

    fn inputs(&self) -> impl Iterator<Item = &Rc<Segment>> {
        self.sources.iter().flatten()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.handed_over.get() {
            self.inputs().for_each(|segment| segment.set_busy(false));
        }
    }
}

fn any_busy(segments: &[Rc<Segment>]) -> bool {
    segments.iter().any(|segment| segment.is_busy())
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
    pub fn pick_compaction(&self) -> Option<Job> {
        let state = self.state();
        self.pick_level_zero(&state).or_else(|| self.pick_by_size(&state)).or_else(|| self.pick_by_tombstones(&state))
    }

    fn pick_level_zero(&self, state: &State) -> Option<Job> {
        if state.runs.len() < self.cfg.l0_runs || state.runs.iter().any(|run| any_busy(&run.segments)) {
            return None;
        }
        let mut sources: Vec<_> = state.runs.iter().map(|run| run.segments.clone()).collect();
        let range = bounds(sources.iter().flatten())?;
        let below = overlapping(state, 1, &range);
        if any_busy(&below) {
            return None;
        }
        sources.push(below);
        Some(Job::new(sources, 1, false))
    }

    fn pick_by_size(&self, state: &State) -> Option<Job> {
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
        Some(Job::new(vec![vec![segment.clone()], below], level + 1, trivial))
    }

    fn pick_by_tombstones(&self, state: &State) -> Option<Job> {
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
                            return Some(Job::new(vec![vec![segment.clone()], below], level + 1, false));
                        }
                    }
                    Some(_) => return Some(Job::new(vec![vec![segment.clone()], Vec::new()], level + 1, true)),
                    // Nothing below: its tombstones have nothing to hide.
                    None => return Some(Job::new(vec![vec![segment.clone()]], level, false)),
                }
            }
        }
        None
    }

    /// Merges. The new segments are on the medium; nothing is changed for readers before the edit is installed.
    pub async fn run_compaction(&self, job: Job) -> Result<Edit, LsmError> {
        let removed = job.inputs().map(|segment| segment.meta.id).collect();
        let added = if job.trivial {
            job.inputs().map(|segment| segment.meta.clone()).collect()
        } else {
            let min = job.inputs().map(|segment| segment.meta.min_epoch).min().unwrap_or_default();
            let max = job.inputs().map(|segment| segment.meta.max_epoch).max().unwrap_or_default();
            let older = self.state().levels.iter().skip(job.target).cloned().collect();
            let output = Output::new(&self.env, &self.cfg, Epoch::NONE, (min, max));
            Merge::new(self, job.sources.clone(), Bottom::new(older), output).run().await?
        };
        job.handed_over.set(true);
        let added = added.into_iter().map(|meta| (job.target, meta)).collect();
        Ok(Edit { added, removed, flushed_through: Epoch::NONE })
    }

    /// How far flushing and merging are behind: 0 is not at all, from 1 on writers must wait. It grows smoothly, so that
    /// writers are slowed down long before they are stopped.
    pub fn pressure(&self) -> f32 {
        let state = self.state();
        let ratio = |have: f32, free: f32, stop: f32| ((have - free) / (stop - free).max(1.0)).max(0.0);
        let table = self.cfg.memtable_bytes as f32;
        let memory = ratio(self.memtable_bytes() as f32, table * 1.5, table * self.cfg.memtable_backlog as f32);
        let runs = ratio(state.runs.len() as f32, self.cfg.l0_runs as f32 * 1.5, self.cfg.l0_stop as f32);
        memory.max(runs)
    }
}

/// Segments of a level (1 or more) that overlap `range`.
fn overlapping(state: &State, level: usize, range: &KeyRange) -> Vec<Rc<Segment>> {
    state.levels.get(level - 1).map(|run| run.overlapping(range).to_vec()).unwrap_or_default()
}
