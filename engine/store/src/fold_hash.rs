//! A hash for tables that are keyed by numbers of our own (blocks, tokens): one multiplication instead of SipHash. Not for
//! numbers that a client may choose, such as inodes: it could make them collide.

use std::hash::{BuildHasherDefault, Hasher};

#[derive(Default)]
pub(crate) struct FoldHasher(u64);

impl Hasher for FoldHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(26) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

pub(crate) type FoldState = BuildHasherDefault<FoldHasher>;
