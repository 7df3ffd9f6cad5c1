//! What the kernel calls our inodes.
//!
//! It keeps all inodes in one table of chains, and its hash of a number (`hash` in Linux's fs/inode.c) leaves out the top bits.
//! Our numbers have the bucket of their group there, and consecutive groups are in different buckets: told as they are, the
//! same places of 256 groups would share a chain, which the kernel walks for each name that it looks up or makes. So the
//! upper half is folded into the lower.

use vellum_base::Ino;

use super::Gateway;

/// Its own inverse, and leaves small numbers alone: 0 (none) and [`Ino::ROOT`].
fn fold(number: u64) -> u64 {
    number ^ (number >> 32)
}

impl Gateway {
    /// The kernel calls the root of every mount 1. (Nothing else is: that inode is outside of any other root.)
    pub(super) fn ino(&self, node: u64) -> Ino {
        if node == Ino::ROOT.0 { self.vfs.root() } else { Ino(fold(node)) }
    }

    pub(super) fn node(&self, ino: Ino) -> u64 {
        if ino == self.vfs.root() { Ino::ROOT.0 } else { fold(ino.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux has it on machines of 64 bits, for a superblock at `sb` and a table of 2^`bits` chains.
    fn kernel_hash(number: u64, sb: u64, bits: u32) -> usize {
        const GOLDEN_RATIO: u64 = 0x61c8_8646_80b5_83eb;
        let hash = number.wrapping_mul(sb) ^ (GOLDEN_RATIO.wrapping_add(number) / 64);
        let hash = hash ^ ((hash ^ GOLDEN_RATIO) >> bits);
        (hash & ((1 << bits) - 1)) as usize
    }

    /// The `n`th inode number that is given out: groups of 1,024 go round 256 buckets.
    fn nth(n: u64) -> u64 {
        let group = n >> Ino::SLOT_BITS;
        (group % 256) << 56 | (group / 256 + 1) << Ino::SLOT_BITS | (n % Ino::SLOTS_PER_GROUP)
    }

    /// Inodes in the chain of the average inode.
    fn chain(bits: u32, count: u64, told: impl Fn(u64) -> u64) -> f64 {
        let mut chains = vec![0u64; 1 << bits];
        for n in 0..count {
            chains[kernel_hash(told(nth(n)), 0xffff_8881_2345_6800, bits)] += 1;
        }
        chains.iter().map(|len| len * len).sum::<u64>() as f64 / count as f64
    }

    #[test]
    fn numbers_come_back_and_the_special_ones_stay() {
        for number in (0..1000).map(nth).chain([0, Ino::ROOT.0, 1 << 32, u64::MAX, 1 << 63]) {
            assert_eq!(fold(fold(number)), number);
        }
        assert_eq!((fold(0), fold(Ino::ROOT.0)), (0, Ino::ROOT.0));
    }

    #[test]
    fn the_kernels_chains_are_as_short_as_those_of_a_random_hash() {
        for bits in [16, 18, 21] {
            let count = 1 << 18;
            let random = 1.0 + count as f64 / f64::from(1u32 << bits);
            let folded = chain(bits, count, fold);
            assert!(folded < 1.5 * random, "2^{bits} chains: {folded:.1}, random {random:.1}");
            assert!(chain(bits, count, |number| number) > 100.0, "what folding is for");
        }
    }
}
