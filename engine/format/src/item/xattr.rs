//! Extended attributes: the value in parts, the first of which also holds the name.
//!
//! ```text
//!  part 0:  0          1           5
//!           | name_len | value_len | name | first PART_BYTES of the value      integers LE
//!  part n:  the value's bytes from n * PART_BYTES
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use vellum_base::{Ino, Key};

use super::{ItemError, ItemKind, MAX_NAME, PART_BYTES, name_hash};

/// Longest value of an xattr in bytes.
pub const MAX_XATTR: usize = 65_535;
const HEADER: usize = 5;

pub fn key(ino: Ino, name: &[u8], id: u64, part: u8) -> Key {
    Key::fs(ino, ItemKind::Xattr as u8, name_hash(name), id, part)
}

/// The values of all parts, in order.
pub fn encode(name: &[u8], value: &[u8]) -> Vec<Bytes> {
    let first_len = value.len().min(PART_BYTES);
    let mut first = BytesMut::with_capacity(HEADER + name.len() + first_len);
    first.put_u8(name.len() as u8);
    first.put_u32_le(value.len() as u32);
    first.put_slice(name);
    first.put_slice(&value[..first_len]);
    std::iter::once(first.freeze()).chain(value[first_len..].chunks(PART_BYTES).map(Bytes::copy_from_slice)).collect()
}

/// What part 0 says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FirstPart {
    pub name: Bytes,
    /// Length of the whole value in bytes.
    pub value_len: usize,
    /// The value's first bytes.
    pub value: Bytes,
}

impl FirstPart {
    /// Number of parts, this one included.
    pub fn parts(&self) -> usize {
        self.value_len.div_ceil(PART_BYTES).max(1)
    }
}

pub fn decode_first(part: &Bytes) -> Result<FirstPart, ItemError> {
    let bad = |expected| ItemError::Length { what: "xattr", expected, found: part.len() };
    if part.len() < HEADER {
        return Err(bad(HEADER));
    }
    let name_len = part[0] as usize;
    let value_len = u32::from_le_bytes([part[1], part[2], part[3], part[4]]) as usize;
    if name_len == 0 || name_len > MAX_NAME || value_len > MAX_XATTR {
        return Err(ItemError::Value { what: "xattr lengths", found: value_len as u64 });
    }
    let expected = HEADER + name_len + value_len.min(PART_BYTES);
    if part.len() != expected {
        return Err(bad(expected));
    }
    Ok(FirstPart { name: part.slice(HEADER..HEADER + name_len), value_len, value: part.slice(HEADER + name_len..) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_length_come_back_from_their_parts() {
        for len in [0, 1, PART_BYTES, PART_BYTES + 1, MAX_XATTR] {
            let value: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let parts = encode(b"user.a", &value);
            let first = decode_first(&parts[0]).unwrap();
            assert_eq!((&first.name[..], first.value_len, first.parts()), (&b"user.a"[..], len, parts.len()));
            let mut whole = first.value.to_vec();
            parts[1..].iter().for_each(|p| whole.extend_from_slice(p));
            assert_eq!(whole, value);
        }
    }

    #[test]
    fn a_first_part_that_contradicts_itself_is_refused() {
        let mut part = encode(b"n", b"v")[0].to_vec();
        part.push(0);
        assert!(decode_first(&Bytes::from(part)).is_err());
        assert!(decode_first(&Bytes::from_static(&[0, 0, 0, 0, 0])).is_err());
    }
}
