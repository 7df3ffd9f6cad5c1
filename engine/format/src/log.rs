//! Parts: one epoch's records of one reactor's log.
//!
//! A part is one checksummed structure (see [`crate::block`]) on whole blocks. Its body:
//! ```text
//!  0        8       16      24     32
//!  | log id | epoch | place | term | records ...
//!
//!  record: | op u8 | key 28 | put: value_len u32, value     range: last key 28
//! ```
//! `place` is the logical position of the part in its log in blocks. Records hold resolved values: replaying them again
//! changes nothing. They are in the order of their application.

use bytes::{BufMut, Bytes, BytesMut};
use vellum_base::{BlockAddr, Epoch, Fsid, Key, KeyRange, LogId, Term};

use crate::block::{self, BLOCK_HEADER, BlockError, BlockKind};
use crate::codec::{CodecError, Reader};
use crate::item::MAX_VALUE;

pub const PART_VERSION: u16 = 1;
/// Bytes of a part's body before its records.
pub const PART_HEADER: usize = 32;

/// One resolved change of one item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    Put { key: Key, value: Bytes },
    Delete { key: Key },
    DeleteRange { range: KeyRange },
}

impl Record {
    /// Its key, or the first of its range.
    pub fn first_key(&self) -> &Key {
        match self {
            Record::Put { key, .. } | Record::Delete { key } => key,
            Record::DeleteRange { range } => &range.first,
        }
    }
}

const OP_PUT: u8 = 1;
const OP_DELETE: u8 = 2;
const OP_DELETE_RANGE: u8 = 3;

/// Bytes that a put of `value_len` bytes takes in a part; the other records take less than a put of 32 bytes.
pub const fn put_len(value_len: usize) -> usize {
    1 + Key::LEN + 4 + value_len
}

/// Builds a part record by record.
#[derive(Debug)]
pub struct PartBuilder {
    out: BytesMut,
    records: usize,
}

impl Default for PartBuilder {
    fn default() -> Self {
        PartBuilder { out: BytesMut::new(), records: 0 }
    }
}

/// Where a part lies and what it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartPlace {
    pub log: LogId,
    pub epoch: Epoch,
    pub term: Term,
    /// Logical position in the log, in blocks.
    pub place: u64,
    /// First block on the device.
    pub addr: BlockAddr,
}

impl PartBuilder {
    /// In memory that an earlier part was built in.
    pub fn reusing(mut spent: PartBuilder) -> PartBuilder {
        spent.out.clear();
        PartBuilder { out: spent.out, records: 0 }
    }

    /// Bytes that it has memory for.
    pub fn capacity_bytes(&self) -> usize {
        self.out.capacity()
    }

    fn room(&mut self) -> &mut BytesMut {
        if self.out.is_empty() {
            self.out.put_bytes(0, BLOCK_HEADER + PART_HEADER);
        }
        self.records += 1;
        &mut self.out
    }

    pub fn put(&mut self, key: &Key, value: &[u8]) {
        let out = self.room();
        out.reserve(put_len(value.len()));
        out.put_u8(OP_PUT);
        out.put_slice(&key.0);
        out.put_u32_le(value.len() as u32);
        out.put_slice(value);
    }

    pub fn delete(&mut self, key: &Key) {
        let out = self.room();
        out.put_u8(OP_DELETE);
        out.put_slice(&key.0);
    }

    pub fn delete_range(&mut self, range: &KeyRange) {
        let out = self.room();
        out.put_u8(OP_DELETE_RANGE);
        out.put_slice(&range.first.0);
        out.put_slice(&range.last.0);
    }

    pub fn push(&mut self, record: &Record) {
        match record {
            Record::Put { key, value } => self.put(key, value),
            Record::Delete { key } => self.delete(key),
            Record::DeleteRange { range } => self.delete_range(range),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub fn records(&self) -> usize {
        self.records
    }

    /// Bytes on the device.
    pub fn padded_len(&self) -> usize {
        if self.is_empty() { 0 } else { block::padded_len(self.out.len() - BLOCK_HEADER) }
    }

    /// The part's blocks and their checksum. `buf` has [`Self::padded_len`] bytes.
    pub fn finish(&self, buf: &mut [u8], place: &PartPlace, fsid: &Fsid) -> u32 {
        buf[..self.out.len()].copy_from_slice(&self.out);
        buf[self.out.len()..].fill(0);
        let h = &mut buf[BLOCK_HEADER..BLOCK_HEADER + PART_HEADER];
        h[..8].copy_from_slice(&place.log.0.to_le_bytes());
        h[8..16].copy_from_slice(&place.epoch.0.to_le_bytes());
        h[16..24].copy_from_slice(&place.place.to_le_bytes());
        h[24..32].copy_from_slice(&place.term.0.to_le_bytes());
        let body_len = self.out.len() - BLOCK_HEADER;
        block::finish(buf, BlockKind::Part, PART_VERSION, place.addr, fsid, place.term.0, body_len)
    }
}

/// Verifies a part that should lie at `place` and gives its record bytes for [`records`].
pub fn verify_part<'a>(buf: &'a [u8], place: &PartPlace, fsid: &Fsid) -> Result<&'a [u8], BlockError> {
    let (_, body) = block::verify(buf, BlockKind::Part, PART_VERSION, place.addr, Some(fsid))?;
    let content = |what: String| BlockError::Content { kind: BlockKind::Part, addr: place.addr, what };
    let mut r = Reader::new(body, "part");
    let header = (|| Ok((r.u64()?, r.u64()?, r.u64()?, r.u64()?)))().map_err(|e: CodecError| content(e.to_string()))?;
    let expected = (place.log.0, place.epoch.0, place.place, place.term.0);
    if header != expected {
        return Err(content(format!("(log, epoch, place, term) is {header:?}, expected {expected:?}")));
    }
    Ok(&body[PART_HEADER..])
}

/// Decodes the records of a verified part; `body` shares its memory with the values.
pub fn records(body: &Bytes) -> impl Iterator<Item = Result<Record, CodecError>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= body.len() {
            return None;
        }
        let mut r = Reader::new(&body[at..], "record");
        let record = decode_record(&mut r, body, at);
        at = if record.is_ok() { body.len() - r.remaining() } else { body.len() };
        Some(record)
    })
}

fn decode_record(r: &mut Reader<'_>, body: &Bytes, at: usize) -> Result<Record, CodecError> {
    let op = r.u8()?;
    let key = Key(r.array()?);
    match op {
        OP_PUT => {
            let len = r.u32()? as usize;
            if len > MAX_VALUE {
                return r.illegal(len as u64);
            }
            r.bytes(len)?;
            let start = at + 1 + Key::LEN + 4;
            Ok(Record::Put { key, value: body.slice(start..start + len) })
        }
        OP_DELETE => Ok(Record::Delete { key }),
        OP_DELETE_RANGE => Ok(Record::DeleteRange { range: KeyRange { first: key, last: Key(r.array()?) } }),
        other => r.illegal(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::{BLOCK_SIZE, Ino};

    #[test]
    fn records_come_back_in_order_and_a_part_knows_its_place() {
        let key = |n| Key::fs(Ino(n), 1, 0, 0, 0);
        let all = vec![
            Record::Put { key: key(1), value: Bytes::from(vec![7; 2000]) },
            Record::Delete { key: key(2) },
            Record::DeleteRange { range: KeyRange::of_inode(Ino(3)) },
            Record::Put { key: key(4), value: Bytes::from(vec![8; 2048]) },
            Record::Put { key: key(5), value: Bytes::new() },
        ];
        let mut b = PartBuilder::default();
        b.delete(&key(9));
        let mut b = PartBuilder::reusing(b);
        assert!(b.is_empty() && b.padded_len() == 0 && b.capacity_bytes() > 0);
        all.iter().for_each(|r| b.push(r));
        assert_eq!((b.records(), b.padded_len()), (5, 2 * BLOCK_SIZE));
        let place = PartPlace { log: LogId(1), epoch: Epoch(2), term: Term(3), place: 4, addr: BlockAddr(5) };
        let fsid = Fsid([1; 16]);
        let mut buf = vec![0xff; b.padded_len()];
        b.finish(&mut buf, &place, &fsid);
        let body = Bytes::copy_from_slice(verify_part(&buf, &place, &fsid).unwrap());
        assert_eq!(records(&body).collect::<Result<Vec<_>, _>>().unwrap(), all);
        for wrong in [
            PartPlace { log: LogId(9), ..place },
            PartPlace { epoch: Epoch(9), ..place },
            PartPlace { place: 9, ..place },
            PartPlace { term: Term(9), ..place },
            PartPlace { addr: BlockAddr(9), ..place },
        ] {
            assert!(verify_part(&buf, &wrong, &fsid).is_err());
        }
    }

    #[test]
    fn cut_and_senseless_records_are_errors() {
        for body in [&[OP_PUT][..], &[9; 40], &[OP_DELETE; 28]] {
            assert!(records(&Bytes::copy_from_slice(body)).any(|r| r.is_err()));
        }
    }
}
