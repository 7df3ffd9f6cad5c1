//! crc32c (Castagnoli, RFC 3720 appendix B.4), hardware accelerated.

/// Checksum of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    ::crc32c::crc32c(data)
}

/// Checksum of what `crc` covers, followed by `data`.
pub fn crc32c_append(crc: u32, data: &[u8]) -> u32 {
    ::crc32c::crc32c_append(crc, data)
}

/// Checksum of `data` bound to its place: two seeds (say segment id and offset) are hashed in front, so that a block
/// read from a wrong place, or a stale one of another owner, does not verify.
pub fn crc32c_seeded(seed_a: u64, seed_b: u64, data: &[u8]) -> u32 {
    let mut seed = [0u8; 16];
    seed[..8].copy_from_slice(&seed_a.to_le_bytes());
    seed[8..].copy_from_slice(&seed_b.to_le_bytes());
    ::crc32c::crc32c_append(::crc32c::crc32c(&seed), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_vector_holds() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283); // RFC 3720 B.4's polynomial, the usual check value
    }

    #[test]
    fn seeds_bind_a_block_to_its_place() {
        assert_ne!(crc32c_seeded(1, 2, b"x"), crc32c_seeded(2, 1, b"x"));
    }
}
