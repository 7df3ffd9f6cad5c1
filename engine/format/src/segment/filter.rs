//! A blocked Bloom filter (Putze, Sanders, Singler 2007) in pages of 4 KiB.
//!
//! A hash picks the page, then a line of 64 bytes in it, then [`PROBES`] bits of the line: a question costs one cached
//! page and one cache line. What is hashed is the key's first [`PREFIX_LEN`] bytes (bucket, zone, first, type, second),
//! so that a scan within such a prefix (all entries with one name hash, all parts of an xattr) can ask too; nearly all
//! keys differ in their prefix. The first [`OWNER_LEN`] bytes (bucket, zone, first) are hashed as well, once for all items
//! of an inode: a scan of what one inode has need not look into every run.

use vellum_base::{BLOCK_SIZE, Key};

pub const PREFIX_LEN: usize = 19;
pub const OWNER_LEN: usize = 10;
pub const LINE_BYTES: usize = 64;
/// The page's first line belongs to the block header.
pub const LINES_PER_PAGE: u64 = (BLOCK_SIZE / LINE_BYTES - 1) as u64;
const LINE_BITS: u64 = LINE_BYTES as u64 * 8;
pub const PROBES: u32 = 6;
/// About 1.3 % false positives.
pub const BITS_PER_KEY: u64 = 10;
/// Bytes of the payload of a filter page: the header's line and the lines of bits.
pub const PAGE_PAYLOAD: usize = BLOCK_SIZE - super::block::HEADER_LEN;
const FIRST_LINE_IN_PAYLOAD: usize = LINE_BYTES - super::block::HEADER_LEN;

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

fn word(bytes: &[u8]) -> u64 {
    let mut w = [0u8; 8];
    w[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(w)
}

/// Part of the durable format: never to be changed. Multiply-fold mixing after wyhash; the constants are digits of pi.
pub fn prefix_hash(key: &Key) -> u64 {
    let (a, b, c) = (word(&key.0[..8]), word(&key.0[8..16]), word(&key.0[16..PREFIX_LEN]));
    let ab = fold(a ^ 0x243f_6a88_85a3_08d3, b ^ 0x1319_8a2e_0370_7344);
    fold(ab ^ 0xa409_3822_299f_31d0, c ^ 0x082e_fa98_ec4e_6c89 ^ a.rotate_left(29))
}

/// Part of the durable format, as [`prefix_hash`].
pub fn owner_hash(key: &Key) -> u64 {
    let (a, b) = (word(&key.0[..8]), word(&key.0[8..OWNER_LEN]));
    fold(a ^ 0x4528_21e6_38d0_1377, b ^ 0xbe54_66cf_34e9_0c6c ^ a.rotate_left(29))
}

/// What to ask the filter before a scan of `first..=last`: `None` when the range is not within one prefix.
pub fn range_hash(first: &Key, last: &Key) -> Option<u64> {
    match first.0.iter().zip(&last.0).take_while(|(a, b)| a == b).count() {
        PREFIX_LEN.. => Some(prefix_hash(first)),
        OWNER_LEN.. => Some(owner_hash(first)),
        _ => None,
    }
}

/// Pages for this many distinct prefixes.
pub fn pages_for(prefixes: u64) -> u32 {
    (prefixes * BITS_PER_KEY).div_ceil(LINES_PER_PAGE * LINE_BITS).max(1) as u32
}

/// The page that a hash belongs to.
pub fn page_of(hash: u64, pages: u32) -> u32 {
    (((hash >> 32) * u64::from(pages)) >> 32) as u32
}

fn line_and_bits(hash: u64) -> (usize, impl Iterator<Item = (usize, u8)>) {
    let mixed = fold(hash, 0x9e37_79b9_7f4a_7c15);
    let line = (((mixed >> 40) * LINES_PER_PAGE) >> 24) as usize;
    let (mut probe, step) = (mixed as u32, (hash as u32) | 1);
    let bits = (0..PROBES).map(move |_| {
        let bit = (probe >> 23) as usize; // 9 bits: 0..512
        probe = probe.wrapping_add(step).rotate_left(7);
        (bit / 8, 1u8 << (bit % 8))
    });
    (FIRST_LINE_IN_PAYLOAD + line * LINE_BYTES, bits)
}

/// Adds a hash to its page's payload ([`PAGE_PAYLOAD`] bytes).
pub fn insert(payload: &mut [u8], hash: u64) {
    let (line, bits) = line_and_bits(hash);
    for (byte, mask) in bits {
        payload[line + byte] |= mask;
    }
}

/// False only when no key with this prefix hash was inserted.
pub fn may_contain(payload: &[u8], hash: u64) -> bool {
    let (line, mut bits) = line_and_bits(hash);
    let Some(line) = payload.get(line..line + LINE_BYTES) else { return true };
    bits.all(|(byte, mask)| line[byte] & mask != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::Ino;

    #[test]
    fn what_was_inserted_is_found_and_little_else() {
        const KEYS: u64 = 40_000;
        let pages = pages_for(KEYS);
        let mut filter = vec![vec![0u8; PAGE_PAYLOAD]; pages as usize];
        let hash = |i: u64| prefix_hash(&Key::fs(Ino(i << 10), 1, i % 7, 99, 3));
        for i in 0..KEYS {
            insert(&mut filter[page_of(hash(i), pages) as usize], hash(i));
        }
        let ask = |i| may_contain(&filter[page_of(hash(i), pages) as usize], hash(i));
        assert!((0..KEYS).all(ask));
        let wrong = (KEYS..KEYS * 3).filter(|i| ask(*i)).count() as f64 / (KEYS * 2) as f64;
        assert!(wrong < 0.02, "{wrong}");
    }

    #[test]
    fn the_hash_ignores_what_is_after_the_prefix_and_never_changes() {
        let key = Key::fs(Ino(5), 3, 0x1234, 8, 1);
        assert_eq!(prefix_hash(&key), prefix_hash(&Key::fs(Ino(5), 3, 0x1234, 9, 0)));
        assert_ne!(prefix_hash(&key), prefix_hash(&Key::fs(Ino(5), 3, 0x1235, 8, 1)));
        assert_eq!((prefix_hash(&key), owner_hash(&key)), (0x9829_5939_d8e5_5b32, 0xb5b6_937b_db45_74b5));
    }
}
