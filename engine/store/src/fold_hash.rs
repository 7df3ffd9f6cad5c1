//! Hashes of one multiplication instead of SipHash, for tables that are keyed by numbers.
//!
//! [`FoldState`] is for numbers of our own (blocks, tokens). Those that a client may choose, such as inodes, it could make
//! collide: for them [`SecretFoldState`] mixes with two random numbers, and both halves of the product count, as wyhash does.

use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

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

/// Each has secrets of its own.
#[derive(Clone)]
pub(crate) struct SecretFoldState(u64, u64);

impl Default for SecretFoldState {
    fn default() -> Self {
        let random = RandomState::new(); // the standard library's, from the kernel
        SecretFoldState(random.hash_one(0u8), random.hash_one(1u8) | 1)
    }
}

impl BuildHasher for SecretFoldState {
    type Hasher = SecretFoldHasher;
    fn build_hasher(&self) -> SecretFoldHasher {
        SecretFoldHasher { state: self.0, secret: self.1 }
    }
}

pub(crate) struct SecretFoldHasher {
    state: u64,
    secret: u64,
}

impl Hasher for SecretFoldHasher {
    /// Once more, or one table of three would have regular steps in less than half of its places.
    fn finish(&self) -> u64 {
        folded(self.state, 0x9e37_79b9_7f4a_7c15)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.state = folded(self.state ^ value, self.secret);
    }
}

fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_secret_hash_spreads_what_clients_may_choose_and_no_two_tables_alike() {
        let (one, two) = (SecretFoldState::default(), SecretFoldState::default());
        assert_ne!(one.hash_one(5u64), two.hash_one(5u64));
        // Places taken by 4,096 (or 256) inodes with a regular step; random ones take 63 of 100.
        let tables: Vec<_> = (0..256).map(|_| SecretFoldState::default()).collect();
        for (step, distinct) in [(1u64, 4096), (1 << 10, 4096), (1 << 32, 4096), (1 << 56, 256), (3 << 50, 4096)] {
            // The table takes the lower bits for the place.
            let places = |table: &SecretFoldState| {
                let hashes = (0..1u64 << 12).map(|i| table.hash_one(i.wrapping_mul(step)));
                hashes.map(|hash| hash & 0xfff).collect::<HashSet<u64>>().len()
            };
            let fewest = tables.iter().map(places).min().unwrap();
            assert!(fewest > distinct * 55 / 100, "{step}: {fewest}");
        }
    }
}
