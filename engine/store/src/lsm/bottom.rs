//! Whether anything older may lie below a key: only then does a tombstone have to stay.

use std::rc::Rc;

use vellum_base::{Key, KeyRange};

use super::state::Run;

/// The runs older than the output of a job, at the time it began. What comes under the job later comes from segments that
/// do not overlap its inputs, so the answer stays right.
pub struct Bottom {
    older: Vec<Rc<Run>>,
}

impl Bottom {
    pub fn new(older: Vec<Rc<Run>>) -> Bottom {
        Bottom { older }
    }

    /// True when nothing older lies in `first..=last`.
    pub fn is_below(&self, first: &Key, last: &Key) -> bool {
        let range = KeyRange { first: *first, last: *last };
        self.older.iter().all(|run| run.overlapping(&range).is_empty())
    }
}
