//! Device space below the chunk: data blocks (`allocator`), segments (`segments`), sets of ranges.

mod allocator;
mod draining;
mod moving;
mod range_set;
mod segments;

pub use allocator::{Allocator, SpaceChange};
pub use moving::SpaceCargo;
pub use range_set::RangeSet;
pub use segments::SegmentSpace;
