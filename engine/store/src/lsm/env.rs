//! What a shard needs from the store around it.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use vellum_base::{BlockRange, Epoch, SegmentId};
use vellum_format::SegmentMeta;
use vellum_nvme::Queue;

use super::LsmError;

pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

pub trait ShardEnv {
    fn queue(&self) -> Rc<dyn Queue>;

    /// Never the same twice, also over restarts.
    fn next_segment_id(&self) -> SegmentId;

    /// Space for one copy of a segment, at least `len_bytes` (a multiple of 4 KiB), in at most
    /// [`SegmentMeta::MAX_RANGES`] runs. Until an edit that names the segment is durable it is lost with a crash.
    fn alloc_segment_space(&self, len_bytes: u64) -> LocalFuture<'_, Result<Vec<BlockRange>, LsmError>>;

    /// The space of `ranges` and `mirror` is no longer used by the shard: the edit that removed the segment was installed
    /// and no read uses it, or it was never installed. Called once for each segment; must not call into the shard.
    fn release_segment_space(&self, segment: SegmentMeta);

    /// Readers see this epoch or later ones: the durable epoch or an older pinned one. Never decreases. Versions that
    /// were superseded at or before it may be dropped.
    fn oldest_reader(&self) -> Epoch;

    /// No part of this epoch or an older one will be applied any more.
    fn closed_epoch(&self) -> Epoch {
        self.oldest_reader()
    }
}
