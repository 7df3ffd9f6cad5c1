//! Segments that several hold: shards that name them since a split, reads that began before a move. Kept by the coordinator; follows from the manifest alone.

use std::collections::BTreeMap;

use vellum_base::SegmentId;

/// How many hold a segment; one where it is not told.
#[derive(Debug, Default)]
pub struct Holders(BTreeMap<SegmentId, usize>);

impl Holders {
    /// `named`: by how many shards.
    pub fn of(named: BTreeMap<SegmentId, usize>) -> Holders {
        Holders(named.into_iter().filter(|(_, shards)| *shards > 1).collect())
    }

    /// Instead of the shard its halves hold it, and whoever still reads in the whole.
    pub fn split(&mut self, segment: SegmentId) {
        *self.0.entry(segment).or_insert(1) += 2;
    }

    /// The shard is another reactor's, and whoever still reads where it was holds it, too.
    pub fn hold(&mut self, segment: SegmentId) {
        *self.0.entry(segment).or_insert(1) += 1;
    }

    /// One of them lets go. True when it was the last: the blocks are nobody's.
    pub fn release(&mut self, segment: SegmentId) -> bool {
        let Some(holders) = self.0.get_mut(&segment) else { return true };
        *holders -= 1;
        if *holders > 0 {
            return false;
        }
        self.0.remove(&segment);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_holder_frees_it() {
        let (one, two) = (SegmentId(1), SegmentId(2));
        let mut holders = Holders::of([(one, 1), (two, 2)].into());
        assert!(holders.release(one), "held once");
        holders.split(two); // a half of a half, and a read that began before
        assert_eq!([(); 4].map(|()| holders.release(two)), [false, false, false, true]);
        assert!(holders.0.is_empty());
    }
}
