//! Memory for the values of one memtable: slots in large chunks, reused when a version is dropped.
//!
//! A value is never referred to from outside: readers get a copy. (Sharing the chunk would let a client's cache pin it.)

use bytes::Bytes;

const CHUNK_BYTES: usize = 1 << 20;
const UNIT: usize = 16;
/// Longest value that has a slot.
pub const MAX_SLOT_BYTES: usize = 64 << 10;
const TOMBSTONE: u32 = u32::MAX;
const _: () = assert!(MAX_SLOT_BYTES <= CHUNK_BYTES);

/// A value's slot, or the mark of a tombstone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ValueRef {
    at_units: u32,
    len: u32,
}

impl ValueRef {
    pub const TOMBSTONE: ValueRef = ValueRef { at_units: 0, len: TOMBSTONE };

    pub fn is_tombstone(self) -> bool {
        self.len == TOMBSTONE
    }

    fn slot_units(self) -> usize {
        if self.is_tombstone() { 0 } else { slot_units(self.len as usize) }
    }
}

fn slot_units(len: usize) -> usize {
    len.div_ceil(UNIT)
}

#[derive(Default)]
pub struct Arena {
    chunks: Vec<Vec<u8>>,
    /// Of slots, also of those that are free: one is only used again for as long a value.
    taken_bytes: usize,
    /// Freed slots by their number of units.
    free: Vec<Vec<u32>>,
}

impl Arena {
    pub fn bytes_taken(&self) -> usize {
        self.taken_bytes
    }

    pub fn store(&mut self, value: Option<&[u8]>) -> ValueRef {
        let Some(value) = value else { return ValueRef::TOMBSTONE };
        assert!(value.len() <= MAX_SLOT_BYTES, "a value of {} bytes is no item", value.len());
        let units = slot_units(value.len());
        let len = value.len() as u32;
        if let Some(at_units) = self.free.get_mut(units).and_then(Vec::pop) {
            let reused = ValueRef { at_units, len };
            self.slot_mut(reused).copy_from_slice(value);
            return reused;
        }
        let full = |chunk: &Vec<u8>| chunk.len() + units * UNIT > CHUNK_BYTES;
        if self.chunks.last().is_none_or(full) {
            self.chunks.push(Vec::with_capacity(CHUNK_BYTES));
        }
        let index = self.chunks.len() - 1;
        let chunk = &mut self.chunks[index];
        let at = chunk.len();
        chunk.extend_from_slice(value);
        chunk.resize(at + units * UNIT, 0);
        self.taken_bytes += units * UNIT;
        ValueRef { at_units: ((index * CHUNK_BYTES + at) / UNIT) as u32, len }
    }

    pub fn release(&mut self, value: ValueRef) {
        let units = value.slot_units();
        if units == 0 {
            return;
        }
        if self.free.len() <= units {
            self.free.resize_with(units + 1, Vec::new);
        }
        self.free[units].push(value.at_units);
    }

    fn place(value: ValueRef) -> (usize, usize) {
        let at = value.at_units as usize * UNIT;
        (at / CHUNK_BYTES, at % CHUNK_BYTES)
    }

    fn slot_mut(&mut self, value: ValueRef) -> &mut [u8] {
        let (chunk, at) = Arena::place(value);
        &mut self.chunks[chunk][at..at + value.len as usize]
    }

    /// The value's bytes; `None` for a tombstone.
    pub fn bytes(&self, value: ValueRef) -> Option<&[u8]> {
        if value.is_tombstone() {
            return None;
        }
        if value.len == 0 {
            return Some(&[]);
        }
        let (chunk, at) = Arena::place(value);
        Some(&self.chunks[chunk][at..at + value.len as usize])
    }

    /// Reads a byte of each cache line of the value, and tells their sum so that they are read.
    pub fn touch(&self, value: ValueRef) -> u8 {
        let lines = self.bytes(value).unwrap_or_default().iter().step_by(64);
        lines.fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    pub fn copy(&self, value: ValueRef) -> Option<Bytes> {
        self.bytes(value).map(Bytes::copy_from_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_hold_their_values_and_are_reused() {
        let mut arena = Arena::default();
        let refs: Vec<_> = (0..5000usize).map(|i| (i, arena.store(Some(&vec![i as u8; i % 900])))).collect();
        for (i, value) in &refs {
            assert_eq!(arena.bytes(*value).unwrap(), vec![*i as u8; i % 900]);
        }
        let (chunks, taken) = (arena.chunks.len(), arena.bytes_taken());
        for (_, value) in &refs {
            arena.release(*value);
        }
        for (i, _) in &refs {
            arena.store(Some(&vec![1; i % 900]));
        }
        assert_eq!((arena.chunks.len(), arena.bytes_taken()), (chunks, taken));
        let (none, empty) = (arena.store(None), arena.store(Some(&[])));
        assert_eq!(arena.bytes(none), None);
        assert_eq!(arena.bytes(empty), Some(&[][..]));
    }
}
