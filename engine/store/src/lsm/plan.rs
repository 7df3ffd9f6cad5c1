//! The first and the last step of a compaction: what is reserved for it, and what becomes of its outcome.
//!
//! ```text
//!  pick (inputs busy) -> plan (ids and space set aside) -> execute, somewhere -> verify -> edit -> install | abandon
//!                                     \-> dropped: nothing has changed      \-> withheld: the space waits
//! ```
//! Invariants
//! - C1: while a [`Pick`] or a [`Plan`] lives, or an edit of it is neither installed nor abandoned, its inputs are in no
//!   other one.
//! - C3: a plan that is dropped gives inputs and space back. When its runner may still be writing, the space is
//!   [withheld](Plan::withhold) instead: the inputs are free for the next one, the blocks are nobody's.
//! - Outputs get their space and their ids before the job leaves, so what a runner writes can hit only blocks that no
//!   manifest names and no one else holds.
//! - An outcome is installed only when it fits the job in every respect that can be checked without doing it again:
//!   everything was read, ids, blocks, bounds and order are as planned, and each output's footer stands on the medium and
//!   says what the outcome says. (So a runner without the same device installs nothing.)

use std::cell::RefCell;
use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockRange, Epoch, KeyRange, SegmentId};
use vellum_format::segment::BlockKind;
use vellum_format::{Place, SegmentMeta};

use super::blocks::load_copy;
use super::bottom::Bottom;
use super::execute::{Cancel, execute_in};
use super::job::{CompactionJob, MAX_INPUTS, MAX_OUTPUTS, MAX_SOURCES, Outcome};
use super::output::Shape;
use super::segment::{Segment, space_of};
use super::{Edit, LsmError, Shard, ShardEnv};
use crate::space::RangeSet;

/// Outputs may be longer than their inputs by a 16th (cut ranges, padding), by this much for each segment (index, filter,
/// footer), and by this much in all.
const SLACK_SHARE: u64 = 16;
const SLACK_PER_SEGMENT: u64 = 16 << 10;
const SLACK_BYTES: u64 = 128 << 10;
/// Where that did not do, the next plan of the shard gets twice as much, up to so many times.
const MOST_ROOM: u64 = 64;

/// Inputs that belong to no other compaction while it lives.
pub struct Pick {
    /// Runs of inputs, newest first; the last ones are from the target level.
    pub(super) sources: Vec<Vec<Rc<Segment>>>,
    pub(super) target: usize,
    /// The input only changes its level.
    pub(super) trivial: bool,
}

impl Pick {
    pub(super) fn new(sources: Vec<Vec<Rc<Segment>>>, target: usize, trivial: bool) -> Pick {
        sources.iter().flatten().for_each(|segment| segment.set_busy(true));
        Pick { sources, target, trivial }
    }

    fn inputs(&self) -> impl Iterator<Item = &Rc<Segment>> {
        self.sources.iter().flatten()
    }

    pub fn input_bytes(&self) -> u64 {
        self.inputs().map(|segment| segment.meta.len_bytes).sum()
    }

    pub fn input_ids(&self) -> Vec<SegmentId> {
        self.inputs().map(|segment| segment.meta.id).collect()
    }

    /// The edit of a pick without work: its segment stands in another level. The inputs stay taken until it is installed or
    /// abandoned.
    pub fn into_move(mut self) -> Result<Edit, Pick> {
        if !self.trivial {
            return Err(self);
        }
        let sources = std::mem::take(&mut self.sources); // an empty pick frees nothing
        let metas = || sources.iter().flatten().map(|segment| &segment.meta);
        Ok(Edit {
            added: metas().map(|meta| (self.target, SegmentMeta { run: Epoch::NONE, ..meta.clone() })).collect(),
            removed: metas().map(|meta| meta.id).collect(),
            flushed_through: Epoch::NONE,
        })
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.inputs().for_each(|segment| segment.set_busy(false));
    }
}

/// A job whose inputs, ids and space are reserved.
pub struct Plan {
    pick: Pick,
    job: Rc<CompactionJob>,
    space: Rc<Space>,
    /// The device had less space than the outputs may take.
    is_short: bool,
}

/// Blocks that are given back when nobody holds it any more: who writes there in this process does.
pub struct Space {
    env: Rc<dyn ShardEnv>,
    blocks: RefCell<Vec<BlockRange>>,
}

impl Drop for Space {
    fn drop(&mut self) {
        let blocks = self.blocks.take();
        if !blocks.is_empty() {
            self.env.release_space(blocks);
        }
    }
}

/// The space of a job whose runner may still write to it: nobody's until it is [released](Withheld::release). Dropped
/// without that it stays out of use until the filesystem is opened anew.
#[must_use = "the space is lost for this run"]
pub struct Withheld {
    env: Rc<dyn ShardEnv>,
    blocks: Vec<BlockRange>,
}

impl Withheld {
    pub fn blocks(&self) -> u64 {
        self.blocks.iter().map(|range| u64::from(range.len_blocks)).sum()
    }

    /// It is certain that nobody writes there any more.
    pub fn release(self) {
        self.env.release_space(self.blocks);
    }
}

/// An outcome that [`Plan::verify`] found right.
pub struct Verified {
    segments: Vec<SegmentMeta>,
    /// Blocks that they do not use.
    spare: Vec<BlockRange>,
}

impl Plan {
    pub fn job(&self) -> &Rc<CompactionJob> {
        &self.job
    }

    /// Frees the inputs; the space stays out of use.
    pub fn withhold(self) -> Withheld {
        Withheld { env: self.space.env.clone(), blocks: self.space.blocks.take() }
    }

    /// Runs it here.
    pub async fn execute(&self, cancel: &Cancel) -> Result<Outcome, LsmError> {
        match execute_in(&self.space.env.queue(), &self.job, cancel, Some(self.space.clone())).await {
            Err(LsmError::Ids) if self.is_short => Err(LsmError::NoSpace { wanted_bytes: self.job.input_bytes() }),
            done => done,
        }
    }

    /// Checks an outcome against the job and the medium.
    pub async fn verify(&self, outcome: Outcome) -> Result<Verified, LsmError> {
        let spare = self.fits(&outcome)?;
        for meta in &outcome.segments {
            self.footer_stands(meta).await?;
        }
        Ok(Verified { segments: outcome.segments, spare })
    }

    /// The edit that makes an outcome of this plan true. What the outputs do not use is free at once; the inputs stay taken
    /// until the edit is installed or abandoned.
    pub fn into_edit(mut self, verified: Verified) -> Edit {
        self.space.blocks.take(); // the outputs' now
        if !verified.spare.is_empty() {
            self.space.env.release_space(verified.spare);
        }
        let sources = std::mem::take(&mut self.pick.sources); // an empty pick frees nothing
        let target = self.pick.target;
        Edit {
            added: verified.segments.into_iter().map(|meta| (target, meta)).collect(),
            removed: sources.iter().flatten().map(|segment| segment.meta.id).collect(),
            flushed_through: Epoch::NONE,
        }
    }

    /// What can be checked without the device; the blocks that are left over.
    fn fits(&self, outcome: &Outcome) -> Result<Vec<BlockRange>, LsmError> {
        let job = &*self.job;
        let no = |what: String| Err(LsmError::Misfit(what));
        if outcome.read != job.expected() {
            return no(format!("{:?} was read of {:?}", outcome.read, job.expected()));
        }
        let Some(range) = job.range() else { return no("it has no inputs".into()) };
        let mut free = RangeSet::default();
        for run in &job.space {
            free.insert(run.start.0, run.len_blocks.into());
        }
        let epochs = job.epochs();
        let mut next_id = job.first_id.0;
        let mut before: Option<&SegmentMeta> = None;
        let mut entries = 0;
        for meta in &outcome.segments {
            if meta.id.0 < next_id || meta.id.0 >= job.first_id.0.saturating_add(job.ids) {
                return no(format!("segment {} has no id of its job", meta.id));
            }
            next_id = meta.id.0 + 1;
            let bounded = range.first <= meta.first && meta.first <= meta.last && meta.last <= range.last;
            if !bounded || before.is_some_and(|before| before.last >= meta.first) {
                return no(format!("segment {} is out of its bounds or its order", meta.id));
            }
            if meta.run != Epoch::NONE || (meta.min_epoch, meta.max_epoch) != epochs {
                return no(format!("segment {} has the wrong epochs", meta.id));
            }
            let blocks = meta.len_bytes / BLOCK_SIZE as u64;
            let held = |list: &[BlockRange]| list.iter().map(|r| u64::from(r.len_blocks)).sum::<u64>();
            let mirrored = if job.shape.copies == 2 { blocks } else { 0 };
            if blocks == 0 || held(&meta.ranges) != blocks || held(&meta.mirror) != mirrored {
                return no(format!("segment {} has the wrong number of blocks", meta.id));
            }
            for run in space_of(meta) {
                if !free.remove(run.start.0, run.len_blocks.into()) {
                    return no(format!("segment {} has blocks that are not its job's, or twice", meta.id));
                }
            }
            entries += meta.entries;
            before = Some(meta);
        }
        if entries > outcome.read.entries {
            return no(format!("{entries} entries came of {}", outcome.read.entries));
        }
        Ok(free.iter().flat_map(|(start, len)| runs(start, len)).collect())
    }

    /// The footer of each copy is on the medium, carries the checksum, and describes the same segment.
    async fn footer_stands(&self, meta: &SegmentMeta) -> Result<(), LsmError> {
        let mut expected = Vec::new();
        SegmentMeta { ranges: Vec::new(), mirror: Vec::new(), checksum: 0, ..meta.clone() }.encode(&mut expected);
        let at_blocks = (meta.len_bytes / BLOCK_SIZE as u64 - 1) as u32;
        let place = Place { at_blocks, len_blocks: 1 };
        let segment = Segment::borrowed(meta.clone());
        for copy in 0..usize::from(self.job.shape.copies) {
            let queue = self.space.env.queue();
            let footer = load_copy(&queue, &segment, BlockKind::Footer, place, copy).await?;
            if footer.payload() != expected {
                return Err(LsmError::Misfit(format!("the footer of segment {} says something else", meta.id)));
            }
        }
        Ok(())
    }
}

/// A run of blocks in ranges that their length fits.
fn runs(start: u64, len: u64) -> impl Iterator<Item = BlockRange> {
    const MOST: u64 = 1 << 31;
    (0..len.div_ceil(MOST)).map(move |i| BlockRange::new(start + i * MOST, (len - i * MOST).min(MOST) as u32))
}

fn bounds<'a>(segments: impl Iterator<Item = &'a Rc<Segment>>) -> Option<KeyRange> {
    segments
        .map(|s| KeyRange { first: s.meta.first, last: s.meta.last })
        .reduce(|a, b| KeyRange { first: a.first.min(b.first), last: a.last.max(b.last) })
}

impl Shard {
    /// Sets aside what a pick needs: as much space as its outputs can take, or what there is of it.
    pub async fn plan(&self, pick: Pick) -> Result<Plan, LsmError> {
        let inputs = pick.inputs().count();
        if pick.sources.len() > MAX_SOURCES || inputs > MAX_INPUTS {
            return Err(LsmError::Space(format!(
                "{inputs} segments of {} runs are too many for one job",
                pick.sources.len()
            )));
        }
        let shape = Shape::of(&self.cfg);
        // The inputs' length is that of one copy.
        let bytes = pick.input_bytes();
        let segments = bytes / u64::from(shape.segment_bytes).max(1) + 1;
        let one_copy = bytes + bytes / SLACK_SHARE + segments * SLACK_PER_SEGMENT + SLACK_BYTES;
        let one_copy = (one_copy * self.room.get()).next_multiple_of(BLOCK_SIZE as u64);
        let most = one_copy * u64::from(shape.copies);
        let ids = (one_copy / (u64::from(shape.segment_bytes) / 2).max(1) + 2).min(MAX_OUTPUTS);
        let blocks = self.env.alloc_segment_space(BLOCK_SIZE as u64, most).await?;
        let space = Rc::new(Space { env: self.env.clone(), blocks: RefCell::new(blocks) });
        let is_short = space.blocks.borrow().iter().map(|range| range.len_bytes() as u64).sum::<u64>() < most;
        // From here to the end nothing waits: what lies below the inputs, and what readers see, is of one moment.
        let range = bounds(pick.inputs()).unwrap_or(KeyRange::ALL);
        let state = self.state();
        let job = CompactionJob {
            shard: self.id,
            target: pick.target as u8,
            within: self.range,
            sources: pick.sources.iter().map(|run| run.iter().map(|s| s.meta.clone()).collect()).collect(),
            oldest: self.oldest_reader(),
            bottom: Bottom::of(state.levels.iter().skip(pick.target), &range),
            shape,
            first_id: self.env.next_segment_ids(ids),
            ids,
            space: space.blocks.borrow().clone(),
        };
        Ok(Plan { pick, job: Rc::new(job), space, is_short })
    }

    /// Whether the last plan of this shard came to an edit. Of two that do not, the second sets more space aside.
    pub fn note_compaction(&self, ended_well: bool) {
        self.room.set(if ended_well { 1 } else { (self.room.get() * 2).min(MOST_ROOM) });
    }

    /// All steps but the last, here.
    pub async fn compact(&self, pick: Pick) -> Result<Edit, LsmError> {
        let pick = match pick.into_move() {
            Ok(edit) => return Ok(edit),
            Err(pick) => pick,
        };
        let plan = self.plan(pick).await?;
        let outcome = plan.execute(&Cancel::default()).await?;
        let verified = plan.verify(outcome).await?;
        Ok(plan.into_edit(verified))
    }
}
