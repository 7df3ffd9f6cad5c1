//! An open segment.

use std::cell::Cell;
use std::rc::Rc;

use vellum_base::BlockRange;
use vellum_format::SegmentMeta;

use super::ShardEnv;

/// A segment that readers may hold. When it is obsolete and the last holder lets go, its space is released.
pub struct Segment {
    pub meta: SegmentMeta,
    /// None: it belongs to somebody else, who alone may release or repair it.
    owner: Option<Rc<dyn ShardEnv>>,
    obsolete: Cell<bool>,
    /// Input of a job that is running.
    busy: Cell<bool>,
}

impl Segment {
    pub fn new(meta: SegmentMeta, owner: Rc<dyn ShardEnv>) -> Rc<Segment> {
        Rc::new(Segment { meta, owner: Some(owner), obsolete: Cell::new(false), busy: Cell::new(false) })
    }

    /// For reading only, as the input of a job. Not even a bad copy is repaired: who runs the job may do so long after the
    /// segment is gone and its blocks are others'.
    pub fn borrowed(meta: SegmentMeta) -> Rc<Segment> {
        Rc::new(Segment { meta, owner: None, obsolete: Cell::new(false), busy: Cell::new(false) })
    }

    pub fn may_be_repaired(&self) -> bool {
        self.owner.is_some()
    }

    pub fn make_obsolete(&self) {
        self.obsolete.set(true);
    }

    pub fn is_busy(&self) -> bool {
        self.busy.get()
    }

    pub fn set_busy(&self, busy: bool) {
        self.busy.set(busy);
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take().filter(|_| self.obsolete.get()) {
            owner.release_segment(self.meta.id, space_of(&self.meta));
        }
    }
}

/// The blocks of all copies.
pub fn space_of(meta: &SegmentMeta) -> Vec<BlockRange> {
    meta.ranges.iter().chain(&meta.mirror).copied().collect()
}
