//! C: no segment is the input of two compactions [C1], of one shard that is: a split leaves some to two. That the result is the newest of each key [C2] is the history's to
//! find.

use std::collections::BTreeMap;

use vellum_base::{SegmentId, ShardId, Term};
use vellum_store::Fact as StoreFact;

use super::Out;

#[derive(Default)]
pub struct Compactions {
    busy: BTreeMap<(ShardId, SegmentId), Term>,
}

impl Compactions {
    pub fn store(&mut self, fact: &StoreFact, out: &mut Out) {
        match fact {
            StoreFact::Opened { .. } => self.busy.clear(), // those of the run before are dead
            StoreFact::Compacts { term, shard, inputs } => {
                for input in inputs {
                    if let Some(other) = self.busy.insert((*shard, *input), *term) {
                        let what =
                            format!("segment {input} of shard {shard} is in two compactions (terms {other}, {term})");
                        out.violate("C1", what);
                    }
                }
            }
            StoreFact::Compacted { term, shard, inputs } => {
                for input in inputs.iter().map(|input| (*shard, *input)) {
                    if self.busy.get(&input) == Some(term) {
                        self.busy.remove(&input);
                    }
                }
            }
            _ => {}
        }
    }
}
