//! A compaction as plain data: all that whoever has the device needs to do it, and what comes back.
//!
//! Nothing in a job refers to memory of the one who planned it; the same bytes are run by the leader's own reactors and by
//! other processes ([`super::job_codec`]).

use vellum_base::{BlockRange, Epoch, KeyRange, SegmentId, ShardId};
use vellum_format::SegmentMeta;

use super::bottom::Bottom;
use super::merge::Tally;
use super::output::Shape;

/// Most runs, and most segments, that one job merges; larger ones are planned smaller.
pub const MAX_SOURCES: usize = 64;
pub const MAX_INPUTS: usize = 8192;
/// Most segments that one job may write.
pub const MAX_OUTPUTS: u64 = 16_384;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CompactionJob {
    pub shard: ShardId,
    /// The level that the outputs go to.
    pub target: u8,
    /// The shard's keys. What its inputs hold of others is read, counted, and not written.
    pub within: KeyRange,
    /// Runs of inputs, newest first; within a run segments ascend and do not overlap.
    pub sources: Vec<Vec<SegmentMeta>>,
    /// What is superseded at or before this epoch is visible to nobody.
    pub oldest: Epoch,
    /// Where anything older than the inputs lies: there, tombstones stay.
    pub bottom: Bottom,
    pub shape: Shape,
    /// Ids that the outputs take, in order.
    pub first_id: SegmentId,
    pub ids: u64,
    /// Blocks that the outputs take, in order, all copies together.
    pub space: Vec<BlockRange>,
}

/// What a finished job has to show. It is believed only after `Shard::verify`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// On the medium, in key order.
    pub segments: Vec<SegmentMeta>,
    pub read: Tally,
}

impl CompactionJob {
    pub fn inputs(&self) -> impl Iterator<Item = &SegmentMeta> {
        self.sources.iter().flatten()
    }

    pub fn input_bytes(&self) -> u64 {
        self.inputs().map(|meta| meta.len_bytes).sum()
    }

    /// Bounds of all input keys of the shard: no output passes them.
    pub fn range(&self) -> Option<KeyRange> {
        self.inputs()
            .map(|meta| KeyRange { first: meta.first, last: meta.last })
            .reduce(|a, b| KeyRange { first: a.first.min(b.first), last: a.last.max(b.last) })
            .map(|all| KeyRange { first: all.first.max(self.within.first), last: all.last.min(self.within.last) })
    }

    /// Bounds of the epochs of all inputs.
    pub fn epochs(&self) -> (Epoch, Epoch) {
        let min = self.inputs().map(|meta| meta.min_epoch).min().unwrap_or_default();
        let max = self.inputs().map(|meta| meta.max_epoch).max().unwrap_or_default();
        (min, max)
    }

    /// What its runner must have read when it has read everything.
    pub fn expected(&self) -> Tally {
        Tally {
            entries: self.inputs().map(|meta| meta.entries).sum(),
            range_tombstones: self.inputs().map(|meta| meta.range_tombstones).sum(),
        }
    }
}
