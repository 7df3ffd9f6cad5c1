//! Values that cross the seam between the LSM and the store.

use vellum_base::{Epoch, Key, SegmentId};
/// One resolved change of the shard's items: as the log has it.
pub use vellum_format::Record as ItemWrite;
use vellum_format::{SegmentMeta, Value};

/// A change of a shard's set of segments. To be made durable in the manifest, then given to `Shard::install`; or to
/// `Shard::abandon` when that failed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Edit {
    /// With their levels. A segment that is also in `removed` moves to the level given here.
    pub added: Vec<(usize, SegmentMeta)>,
    pub removed: Vec<SegmentId>,
    /// Everything up to this epoch is in segments now. Never decreases.
    pub flushed_through: Epoch,
}

/// Items of a range, in key order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScanPage {
    pub items: Vec<(Key, Value)>,
    /// Where to continue; `None` when the range is exhausted. A page may be empty and not the last.
    pub next: Option<Key>,
}
