//! What a shard needs from the store around it.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use vellum_base::{BlockRange, Epoch, SegmentId};
use vellum_nvme::Queue;

use super::LsmError;

pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

pub trait ShardEnv {
    fn queue(&self) -> Rc<dyn Queue>;

    /// The first of `count` consecutive ids that are nobody else's. Never the same twice, also over restarts.
    fn next_segment_ids(&self, count: u64) -> SegmentId;

    /// Space for segments, `most_bytes` of it, or less when there is no more, but never less than `least_bytes` (both
    /// multiples of 4 KiB), in at most [`vellum_format::SegmentMeta::MAX_RANGES`] runs. Until an edit that names it is
    /// durable it is lost with a crash.
    fn alloc_segment_space(
        &self,
        least_bytes: u64,
        most_bytes: u64,
    ) -> LocalFuture<'_, Result<Vec<BlockRange>, LsmError>>;

    /// The blocks are no longer used by the shard, and nobody writes to them: the edit that removed their segment was
    /// installed and no read uses it, or no segment came of them. Once for each block; must not call into the shard.
    fn release_space(&self, space: Vec<BlockRange>);

    /// A segment that was this shard's is so no longer. Its blocks are free when no other shard names it: after a split two do.
    fn release_segment(&self, _id: SegmentId, space: Vec<BlockRange>) {
        self.release_space(space);
    }

    /// Readers see this epoch or later ones: the durable epoch or an older pinned one. Never decreases. Versions that
    /// were superseded at or before it may be dropped.
    fn oldest_reader(&self) -> Epoch;

    /// No part of this epoch or an older one will be applied any more.
    fn closed_epoch(&self) -> Epoch {
        self.oldest_reader()
    }
}
