//! An open segment.

use std::cell::Cell;
use std::rc::Rc;

use vellum_format::SegmentMeta;

use super::ShardEnv;

/// A segment that readers may hold. When it is obsolete and the last holder lets go, its space is released.
pub struct Segment {
    pub meta: SegmentMeta,
    env: Rc<dyn ShardEnv>,
    obsolete: Cell<bool>,
    /// Input of a job that is running.
    busy: Cell<bool>,
}

impl Segment {
    pub fn new(meta: SegmentMeta, env: Rc<dyn ShardEnv>) -> Rc<Segment> {
        Rc::new(Segment { meta, env, obsolete: Cell::new(false), busy: Cell::new(false) })
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
        if self.obsolete.get() {
            self.env.release_segment_space(std::mem::take(&mut self.meta));
        }
    }
}
