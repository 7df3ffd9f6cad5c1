//! Appending little-endian values to a frame under construction.

pub(crate) fn u8(out: &mut Vec<u8>, value: u8) {
    out.push(value);
}

pub(crate) fn u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// A list's length. What our own side builds is bounded far below 2^32.
pub(crate) fn len(out: &mut Vec<u8>, value: usize) {
    u32(out, u32::try_from(value).expect("our own lists are bounded"));
}

pub(crate) fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    len(out, value.len());
    out.extend_from_slice(value);
}
