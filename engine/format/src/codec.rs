//! Little-endian writing and bounded reading of bodies with variable content.

use bytes::{BufMut, BytesMut};
use thiserror::Error;

/// The body ended early or holds a value that is none.
#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum CodecError {
    #[error("{what}: the body ends {missing} bytes early")]
    Short { what: &'static str, missing: usize },
    #[error("{what}: {found} is no legal value")]
    Value { what: &'static str, found: u64 },
}

/// What counts up from 0 (terms, epochs, generations, ids, positions in a log) never gets beyond: whoever adds to it need
/// not fear an overflow.
pub const MAX_COUNTED: u64 = 1 << 62;

/// Reads a body front to back; every read is checked against what is left.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub fn new(body: &'a [u8], what: &'static str) -> Reader<'a> {
        Reader { rest: body, what }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        match self.rest.split_at_checked(len) {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(head)
            }
            None => Err(CodecError::Short { what: self.what, missing: len - self.rest.len() }),
        }
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let mut out = [0u8; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    pub fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number that counts up from 0 in the life of a filesystem: see [`MAX_COUNTED`].
    pub fn counted(&mut self) -> Result<u64, CodecError> {
        match self.u64()? {
            number if number <= MAX_COUNTED => Ok(number),
            number => self.illegal(number),
        }
    }

    /// A count of things of at least `min_len` bytes each: refused when they cannot all be there.
    pub fn count(&mut self, min_len: usize) -> Result<usize, CodecError> {
        let count = self.u32()?;
        if (count as usize).saturating_mul(min_len.max(1)) > self.rest.len() {
            return Err(CodecError::Value { what: self.what, found: count.into() });
        }
        Ok(count as usize)
    }

    pub fn illegal<T>(&self, found: u64) -> Result<T, CodecError> {
        Err(CodecError::Value { what: self.what, found })
    }
}

/// What bodies are written into.
pub type Writer = BytesMut;

/// Puts a count in front of a list.
pub fn put_count(out: &mut Writer, count: usize) {
    out.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_never_passes_the_end() {
        let mut r = Reader::new(&[1, 2, 3], "test");
        assert_eq!(r.u16(), Ok(0x0201));
        assert_eq!(r.u32(), Err(CodecError::Short { what: "test", missing: 3 }));
        assert!(Reader::new(&[255, 255, 255, 255, 0], "test").count(1).is_err());
    }
}
