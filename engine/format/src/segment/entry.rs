//! Entries of data, tombstone and index blocks: prefix-compressed keys with restart points.
//!
//! ```text
//!  entry:   flags|shared (1)  suffix_len (1)  [value_len varint]  [epoch varint]  suffix  [value]
//!  payload: entries...  restart offsets (u32 each)  number of restarts (u32)
//! ```
//! The key is `shared` bytes of the key before it, then the suffix, then zeros (or 0xff with [`FILL_FF`]) up to 28 bytes:
//! most keys end in zeros, and the end of a deleted range in 0xff. At a restart `shared` is 0. Keys ascend; versions of
//! one key stand newest first.

use std::ops::Range;

use vellum_base::{Epoch, Key};

use super::block::BlockError;

/// The bits of an entry's first byte.
pub const SHARED_MASK: u8 = 0x1f;
pub const TOMBSTONE: u8 = 0x20;
pub const HAS_EPOCH: u8 = 0x40;
pub const FILL_FF: u8 = 0x80;
const _: () = assert!(Key::LEN <= SHARED_MASK as usize);

/// Most bytes that an entry takes beyond its value.
pub const MAX_ENTRY_OVERHEAD: usize = 2 + 5 + 10 + Key::LEN + 4;

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn get_varint(input: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *input.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Builds one payload.
#[derive(Debug)]
pub struct EntryWriter {
    buf: Vec<u8>,
    restarts: Vec<u32>,
    interval: u32,
    count: u32,
    last: Key,
}

impl EntryWriter {
    pub fn new(interval: u32) -> EntryWriter {
        EntryWriter { buf: Vec::new(), restarts: Vec::new(), interval, count: 0, last: Key::MIN }
    }

    /// `value` is `None` for a tombstone; epoch 0 is not stored.
    pub fn add(&mut self, key: &Key, epoch: Epoch, value: Option<&[u8]>) {
        let restart = self.count.is_multiple_of(self.interval);
        if restart {
            self.restarts.push(self.buf.len() as u32);
        }
        let shared = if restart { 0 } else { common_prefix(&key.0, &self.last.0) };
        let (fill, end) = trimmed(&key.0, shared);
        let mut flags = shared as u8;
        flags |= if value.is_none() { TOMBSTONE } else { 0 };
        flags |= if epoch != Epoch::NONE { HAS_EPOCH } else { 0 };
        flags |= if fill == 0xff { FILL_FF } else { 0 };
        self.buf.push(flags);
        self.buf.push((end - shared) as u8);
        if let Some(value) = value {
            put_varint(&mut self.buf, value.len() as u64);
        }
        if epoch != Epoch::NONE {
            put_varint(&mut self.buf, epoch.0);
        }
        self.buf.extend_from_slice(&key.0[shared..end]);
        self.buf.extend_from_slice(value.unwrap_or_default());
        self.last = *key;
        self.count += 1;
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the payload if it ended now.
    pub fn payload_len(&self) -> usize {
        self.buf.len() + self.restarts.len() * 4 + 4
    }

    /// Writes the payload to the front of `out` (at least [`EntryWriter::payload_len`] long) and starts anew.
    pub fn finish_into(&mut self, out: &mut [u8]) {
        let (entries, tail) = out.split_at_mut(self.buf.len());
        entries.copy_from_slice(&self.buf);
        let count = self.restarts.len() as u32;
        for (slot, value) in tail.chunks_exact_mut(4).zip(self.restarts.iter().chain([&count])) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        self.buf.clear();
        self.restarts.clear();
        self.count = 0;
    }
}

fn common_prefix(a: &[u8; Key::LEN], b: &[u8; Key::LEN]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// The byte that fills the key's end, and where that fill begins (not before `from`).
fn trimmed(key: &[u8; Key::LEN], from: usize) -> (u8, usize) {
    let fill = match key[Key::LEN - 1] {
        0xff => 0xff,
        _ => 0,
    };
    let end = key.iter().rposition(|b| *b != fill).map_or(0, |i| i + 1);
    (fill, end.max(from))
}

/// One decoded entry; the value is a range of the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Key,
    pub epoch: Epoch,
    pub value: Option<Range<usize>>,
    /// Where the entry after it begins.
    pub next_at: usize,
}

/// An entry without its key.
struct Rest {
    epoch: Epoch,
    value: Option<Range<usize>>,
    next_at: usize,
}

impl Rest {
    #[inline]
    fn with_key(self, key: Key) -> Entry {
        Entry { key, epoch: self.epoch, value: self.value, next_at: self.next_at }
    }
}

/// Reads a payload. Nothing in it is trusted beyond its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Entries<'a> {
    payload: &'a [u8],
    entries_end: usize,
    restarts: usize,
}

impl<'a> Entries<'a> {
    pub fn new(payload: &'a [u8]) -> Result<Entries<'a>, BlockError> {
        let malformed = BlockError::Malformed { at: payload.len() };
        let (front, count) = payload.split_last_chunk::<4>().ok_or(malformed.clone())?;
        let restarts = u32::from_le_bytes(*count) as usize;
        let entries_end = restarts.checked_mul(4).and_then(|table| front.len().checked_sub(table)).ok_or(malformed)?;
        Ok(Entries { payload, entries_end, restarts })
    }

    fn restart(&self, index: usize) -> Option<usize> {
        let at = self.entries_end + index * 4;
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    }

    /// The entry at byte `at`, whose predecessor's key is `before`; `None` at the end.
    pub fn decode(&self, at: usize, before: &Key) -> Result<Option<Entry>, BlockError> {
        if at >= self.entries_end {
            return Ok(None);
        }
        let mut key = *before;
        let rest = self.parse(at, &mut key)?;
        Ok(Some(rest.with_key(key)))
    }

    /// Reads the entry at `at`; `key` holds its predecessor's key and gets its own.
    #[inline]
    fn parse(&self, at: usize, key: &mut Key) -> Result<Rest, BlockError> {
        self.parse_inner(at, key).ok_or(BlockError::Malformed { at })
    }

    #[inline]
    fn parse_inner(&self, at: usize, key: &mut Key) -> Option<Rest> {
        let input = self.payload.get(..self.entries_end)?;
        let (flags, suffix_len) = (*input.get(at)?, usize::from(*input.get(at + 1)?));
        let mut at = at + 2;
        let value_len = if flags & TOMBSTONE == 0 { Some(get_varint(input, &mut at)? as usize) } else { None };
        let epoch = Epoch(if flags & HAS_EPOCH != 0 { get_varint(input, &mut at)? } else { 0 });
        let shared = usize::from(flags & SHARED_MASK);
        let suffix_end = at.checked_add(suffix_len)?;
        let suffix = input.get(at..suffix_end)?;
        let tail = key.0.get_mut(shared..)?;
        if suffix.len() > tail.len() {
            return None;
        }
        let fill = if flags & FILL_FF == 0 { 0 } else { 0xff };
        // Byte by byte: the lengths are short and vary, which calls of memcpy and memset are bad at.
        let mut bytes = suffix.iter();
        for byte in tail {
            *byte = bytes.next().copied().unwrap_or(fill);
        }
        let next_at = suffix_end.checked_add(value_len.unwrap_or(0))?;
        if next_at > input.len() {
            return None;
        }
        Some(Rest { epoch, value: value_len.map(|_| suffix_end..next_at), next_at })
    }

    pub fn first(&self) -> Result<Option<Entry>, BlockError> {
        self.decode(0, &Key::MIN)
    }

    /// The last restart whose key is less than `key` (or the first restart).
    fn restart_before(&self, key: &Key) -> Result<usize, BlockError> {
        let at = |index: usize| self.restart(index).ok_or(BlockError::Malformed { at: self.entries_end });
        let wanted = key.words();
        let (mut low, mut high) = (0, self.restarts);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let mut found = Key::MIN;
            self.parse(at(middle)?, &mut found)?;
            if found.words() < wanted { low = middle } else { high = middle }
        }
        if self.restarts == 0 { Ok(0) } else { at(low) }
    }

    /// The first entry with a key of at least `key`.
    pub fn seek(&self, key: &Key) -> Result<Option<Entry>, BlockError> {
        let mut at = self.restart_before(key)?;
        let (wanted, mut current) = (key.words(), Key::MIN);
        while at < self.entries_end {
            let rest = self.parse(at, &mut current)?;
            if current.words() >= wanted {
                return Ok(Some(rest.with_key(current)));
            }
            at = rest.next_at;
        }
        Ok(None)
    }

    /// The last entry with a key of at most `key`; the first entry when there is none such.
    pub fn seek_floor(&self, key: &Key) -> Result<Option<Entry>, BlockError> {
        let mut at = self.restart_before(key)?;
        let (wanted, mut current) = (key.words(), Key::MIN);
        let mut floor = None;
        while at < self.entries_end {
            let rest = self.parse(at, &mut current)?;
            if floor.is_some() && current.words() > wanted {
                break;
            }
            at = rest.next_at;
            floor = Some(rest.with_key(current));
        }
        Ok(floor)
    }

    pub fn value(&self, range: &Range<usize>) -> &'a [u8] {
        self.payload.get(range.clone()).unwrap_or_default()
    }
}

/// The value of an index entry, whose key is a lower bound of the block's keys.
pub fn put_index_value(out: &mut Vec<u8>, at_blocks: u32, len_blocks: u32) {
    put_varint(out, at_blocks.into());
    put_varint(out, len_blocks.into());
}

pub fn get_index_value(value: &[u8]) -> Option<super::Place> {
    let mut at = 0;
    let at_blocks = u32::try_from(get_varint(value, &mut at)?).ok()?;
    let len_blocks = u32::try_from(get_varint(value, &mut at)?).ok()?;
    (len_blocks > 0).then_some(super::Place { at_blocks, len_blocks })
}

/// The value of a range tombstone, whose entry has the range's last key: its first key (relative to the last), and the
/// epochs at which the range was deleted, newest first; 0 as elsewhere for "visible to everyone".
pub fn put_range_value(out: &mut Vec<u8>, first: &Key, last: &Key, epochs: &[Epoch]) {
    let shared = common_prefix(&first.0, &last.0);
    let end = first.0.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1).max(shared);
    out.push(shared as u8);
    out.push((end - shared) as u8);
    out.extend_from_slice(&first.0[shared..end]);
    put_varint(out, epochs.len() as u64);
    for epoch in epochs {
        put_varint(out, epoch.0);
    }
}

pub fn get_range_value(value: &[u8], last: &Key, epochs: &mut Vec<Epoch>) -> Option<Key> {
    let (shared, suffix_len) = (usize::from(*value.first()?), usize::from(*value.get(1)?));
    let mut first = Key::MIN;
    first.0.get_mut(..shared)?.copy_from_slice(last.0.get(..shared)?);
    first.0.get_mut(shared..shared + suffix_len)?.copy_from_slice(value.get(2..2 + suffix_len)?);
    let mut at = 2 + suffix_len;
    let count = get_varint(value, &mut at)?;
    epochs.clear();
    for _ in 0..count {
        epochs.push(Epoch(get_varint(value, &mut at)?));
    }
    (first <= *last && !epochs.is_empty()).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::prng::Prng;
    use vellum_base::{Ino, KeyRange};

    fn payload(entries: &[(Key, Epoch, Option<Vec<u8>>)], interval: u32) -> Vec<u8> {
        let mut writer = EntryWriter::new(interval);
        for (key, epoch, value) in entries {
            writer.add(key, *epoch, value.as_deref());
        }
        let mut out = vec![0; writer.payload_len()];
        writer.finish_into(&mut out);
        assert!(writer.is_empty());
        out
    }

    #[test]
    fn entries_come_back_and_are_found() {
        let mut random = Prng::new(1);
        let mut keys: Vec<Key> =
            (0..500).map(|_| Key::fs(Ino(random.below(60)), random.below(4) as u8, random.below(3), 0, 0)).collect();
        keys.push(KeyRange::of_inode(Ino(7)).last);
        keys.push(Key::MAX);
        keys.sort();
        keys.dedup();
        let entries: Vec<_> = keys
            .iter()
            .map(|key| (*key, Epoch(random.below(3)), (!random.one_in(4)).then(|| vec![1; random.below(40) as usize])))
            .collect();
        for interval in [1, 4, 16] {
            let payload = payload(&entries, interval);
            let block = Entries::new(&payload).unwrap();
            let (mut at, mut before) = (0, Key::MIN);
            for (key, epoch, value) in &entries {
                let entry = block.decode(at, &before).unwrap().unwrap();
                assert_eq!((entry.key, entry.epoch), (*key, *epoch));
                assert_eq!(entry.value.as_ref().map(|v| block.value(v)), value.as_deref());
                (at, before) = (entry.next_at, entry.key);
            }
            assert_eq!(block.decode(at, &before).unwrap(), None);
            for _ in 0..500 {
                let key = Key::fs(Ino(random.below(62)), random.below(5) as u8, random.below(4), 0, 0);
                let ceiling = keys.iter().find(|k| **k >= key);
                assert_eq!(block.seek(&key).unwrap().map(|e| e.key).as_ref(), ceiling);
                let floor = keys.iter().rfind(|k| **k <= key).or(keys.first());
                assert_eq!(block.seek_floor(&key).unwrap().map(|e| e.key).as_ref(), floor);
            }
        }
    }

    #[test]
    fn an_inode_item_costs_few_bytes_beside_its_value() {
        let entries: Vec<_> =
            (0..64).map(|i| (Key::fs(Ino(1000 + i), 1, 0, 0, 0), Epoch::NONE, Some(vec![0u8; 152]))).collect();
        assert!(payload(&entries, 16).len() <= 64 * (152 + 8));
    }

    #[test]
    fn a_deleted_inode_costs_few_bytes() {
        let range = KeyRange::of_inode(Ino(77));
        let mut value = Vec::new();
        put_range_value(&mut value, &range.first, &range.last, &[Epoch(0)]);
        assert!(value.len() <= 4);
        let mut epochs = Vec::new();
        assert_eq!(get_range_value(&value, &range.last, &mut epochs), Some(range.first));
        assert_eq!(epochs, [Epoch(0)]);
    }

    #[test]
    fn garbage_never_panics() {
        let mut random = Prng::new(3);
        let entries: Vec<_> = (0..20).map(|i| (Key::fs(Ino(i), 1, 0, 0, 0), Epoch(i), Some(vec![3; 9]))).collect();
        let good = payload(&entries, 4);
        for _ in 0..20_000 {
            let mut bad = good.clone();
            for _ in 0..1 + random.below(4) {
                let at = random.below(bad.len() as u64) as usize;
                bad[at] = random.next_u64() as u8;
            }
            bad.truncate(random.below(good.len() as u64 + 1) as usize);
            let Ok(block) = Entries::new(&bad) else { continue };
            let key = Key::fs(Ino(random.below(25)), 1, 0, 0, 0);
            let _ = block.seek(&key);
            let _ = block.seek_floor(&key);
            let _ = get_range_value(&bad, &key, &mut Vec::new());
            let _ = get_index_value(&bad);
        }
    }
}
