//! What is remembered of items that were evicted from a large group: not their values, but for most others that they do not exist.
//!
//! A directory of more names than the cache holds would else have to ask the engine for each name that is made. A Bloom filter
//! (Bloom, CACM 13(7), 1970), blocked (Putze, Sanders, Singler, JEA 14, 2009) and grown in layers, has the stems of what was
//! evicted: all of a key but its last two parts, so that one look answers for all entries of a name's hash.
//!
//! Invariant: in `ranges`, whatever exists is in the group's items or has its stem in `filter`.

use std::hash::{DefaultHasher, Hasher};

use vellum_base::{Key, KeyRange};

use super::RangeSet;

/// 64 bytes, a cache line: all that a look at a layer reads.
const BLOCK_WORDS: usize = 8;
const BLOCK_BITS: u32 = 512;
/// Bits of a stem, each chosen by so many bits of its hash.
const BITS_PER_STEM: u32 = 6;
const CHOICE_BITS: u32 = BLOCK_BITS.trailing_zeros();
/// What a block has room for: 12 bits for a stem, which takes an absent one for a present one in 0.6 % of cases.
const STEMS_PER_BLOCK: usize = 42;
/// The first layer, in blocks; the next are four times as large, up to a bound.
const FIRST_BLOCKS: usize = 64;
const MAX_BLOCKS: usize = 1 << 16;

struct Layer {
    blocks: Vec<[u64; BLOCK_WORDS]>,
    /// Stems that still fit.
    room: usize,
}

#[derive(Default)]
struct Filter {
    /// The last has room; the others are full.
    layers: Vec<Layer>,
}

#[derive(Default)]
pub(crate) struct Evicted {
    ranges: RangeSet,
    filter: Filter,
}

/// All of a key but its third and fourth part.
fn stem(key: &Key) -> &[u8] {
    &key.0[..Key::LEN - 9]
}

fn hash(key: &Key) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(stem(key));
    hasher.finish()
}

/// The bits of a stem, as words and masks.
fn bits(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    (0..BITS_PER_STEM).map(move |i| {
        let bit = (hash >> (i * CHOICE_BITS)) as u32 % BLOCK_BITS;
        ((bit / 64) as usize, 1 << (bit % 64))
    })
}

/// Independent of the low bits, which choose within the block.
fn block_of(hash: u64, blocks: usize) -> usize {
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((mixed * blocks as u64) >> 32) as usize
}

impl Filter {
    fn insert(&mut self, hash: u64) {
        if self.layers.last().is_none_or(|layer| layer.room == 0) {
            let blocks = self.layers.last().map_or(FIRST_BLOCKS, |last| (last.blocks.len() * 4).min(MAX_BLOCKS));
            self.layers.push(Layer { blocks: vec![[0; BLOCK_WORDS]; blocks], room: blocks * STEMS_PER_BLOCK });
        }
        let Some(layer) = self.layers.last_mut() else { return };
        layer.room -= 1;
        let at = block_of(hash, layer.blocks.len());
        let block = &mut layer.blocks[at];
        bits(hash).for_each(|(word, bit)| block[word] |= bit);
    }

    fn may_contain(&self, hash: u64) -> bool {
        self.layers.iter().any(|layer| {
            let block = &layer.blocks[block_of(hash, layer.blocks.len())];
            bits(hash).all(|(word, bit)| block[word] & bit != 0)
        })
    }

    fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| size_of_val(&layer.blocks[..])).sum()
    }
}

impl Evicted {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    pub fn filter_bytes(&self) -> usize {
        self.filter.bytes()
    }

    /// An item that exists leaves the cache.
    pub fn insert(&mut self, key: &Key) {
        self.filter.insert(hash(key));
    }

    /// Everything that exists in the range is in the items or was inserted.
    pub fn cover(&mut self, range: KeyRange) {
        self.ranges.insert(range);
    }

    /// True: no evicted item has a key in this range. Only a range of one stem can be answered for.
    pub fn has_none_in(&self, range: &KeyRange) -> bool {
        !self.is_empty()
            && stem(&range.first) == stem(&range.last)
            && self.ranges.known_through(&range.first).is_some_and(|through| through >= range.last)
            && !self.filter.may_contain(hash(&range.first))
    }

    pub fn has_not(&self, key: &Key) -> bool {
        self.has_none_in(&KeyRange { first: *key, last: *key })
    }
}

#[cfg(test)]
mod tests {
    use vellum_base::Ino;

    use super::*;

    fn name(hash: u64, position: u64) -> Key {
        Key::fs(Ino(5), 1, hash, position, 0)
    }

    #[test]
    fn what_was_inserted_is_never_denied_and_little_else_is_believed() {
        let mut evicted = Evicted::default();
        evicted.cover(KeyRange::of_inode(Ino(5)));
        let many = 200_000;
        (0..many).for_each(|n| evicted.insert(&name(n, 7)));
        assert!((0..many).all(|n| !evicted.has_not(&name(n, 7)) && !evicted.has_not(&name(n, 8))), "all of one stem");
        let asked = (many..2 * many).filter(|n| !evicted.has_not(&name(*n, 7))).count() as u64;
        assert!(asked < many / 25, "{asked} of {many} would be asked for in vain");
        assert!(evicted.filter_bytes() < 6 * many as usize, "{} bytes", evicted.filter_bytes());
    }

    #[test]
    fn only_what_is_covered_and_of_one_stem_is_answered() {
        let mut evicted = Evicted::default();
        assert!(!evicted.has_not(&name(1, 0)));
        evicted.cover(KeyRange { first: name(10, 0), last: name(20, u64::MAX) });
        evicted.insert(&name(12, 3));
        let all_of = |hash| KeyRange { first: name(hash, 0), last: name(hash, u64::MAX) };
        assert!(evicted.has_none_in(&all_of(11)) && !evicted.has_none_in(&all_of(12)));
        assert!(!evicted.has_none_in(&all_of(9)) && !evicted.has_none_in(&all_of(21)), "not covered");
        assert!(!evicted.has_none_in(&KeyRange { first: name(13, 0), last: name(14, 0) }), "two stems");
    }
}
