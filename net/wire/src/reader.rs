//! A cursor over received bytes that never panics and never allocates more than the bytes that are there justify.

use bytes::Bytes;
use vellum_base::Key;

use crate::codec::WireFault;

pub(crate) struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Reader {
        Reader { bytes, at: 0 }
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireFault> {
        let chunk = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let Some(chunk) = chunk else {
            return Err(WireFault::Short { what, needed: N - self.remaining() });
        };
        self.at += N;
        Ok(*chunk)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, WireFault> {
        self.take::<1>(what).map(|[b]| b)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, WireFault> {
        self.take(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, WireFault> {
        self.take(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, WireFault> {
        self.take(what).map(u64::from_le_bytes)
    }

    pub(crate) fn array16(&mut self, what: &'static str) -> Result<[u8; 16], WireFault> {
        self.take(what)
    }

    pub(crate) fn key(&mut self) -> Result<Key, WireFault> {
        self.take("key").map(Key)
    }

    pub(crate) fn bool(&mut self, what: &'static str) -> Result<bool, WireFault> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(WireFault::Value { what, found: found.into() }),
        }
    }

    /// `len` bytes that share the memory of the frame.
    pub(crate) fn slice(&mut self, what: &'static str, len: usize) -> Result<Bytes, WireFault> {
        if len > self.remaining() {
            return Err(WireFault::Short { what, needed: len - self.remaining() });
        }
        let slice = self.bytes.slice(self.at..self.at + len);
        self.at += len;
        Ok(slice)
    }

    /// A length and as many bytes.
    pub(crate) fn bytes(&mut self, what: &'static str) -> Result<Bytes, WireFault> {
        let len = self.u32(what)? as usize;
        self.slice(what, len)
    }

    pub(crate) fn string(&mut self, what: &'static str) -> Result<String, WireFault> {
        let bytes = self.bytes(what)?;
        match std::str::from_utf8(&bytes) {
            Ok(s) => Ok(s.to_owned()),
            Err(e) => Err(WireFault::Value { what, found: e.valid_up_to() as u64 }),
        }
    }

    pub(crate) fn option<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Reader) -> Result<T, WireFault>,
    ) -> Result<Option<T>, WireFault> {
        if self.bool(what)? { read(self).map(Some) } else { Ok(None) }
    }

    /// A list of at most `most` elements of at least `min_len` bytes each: its length is believed only when the bytes
    /// for it are there.
    pub(crate) fn list<T>(
        &mut self,
        what: &'static str,
        most: usize,
        min_len: usize,
        mut read: impl FnMut(&mut Reader) -> Result<T, WireFault>,
    ) -> Result<Vec<T>, WireFault> {
        let len = self.u32(what)? as usize;
        if len > most {
            return Err(WireFault::Bound { what, found: len as u64, bound: most as u64 });
        }
        if len.saturating_mul(min_len) > self.remaining() {
            return Err(WireFault::Short { what, needed: len * min_len - self.remaining() });
        }
        let mut out = Vec::with_capacity(len);
        for _ in 0..len {
            out.push(read(self)?);
        }
        Ok(out)
    }

    /// A message must end where its bytes end.
    pub(crate) fn end(&self, what: &'static str) -> Result<(), WireFault> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(WireFault::Trailing { what, left }),
        }
    }
}
