//! File data that is not durable yet: kept in memory by provisional address.
//!
//! `write_blocks` answers with *provisional* addresses, which only this client knows and never uses twice. Extents in
//! the cache and in retained batches carry them; the device's addresses are filled in when a batch is sent, and in the
//! cache when the batch is durable. So when a new leader has forgotten where undurable data was, the data is sent
//! again, its runs get other places, and nothing else changes: no extent can be mistaken for a new one at an old place.
//! Reads of provisional addresses are answered from memory.
//!
//! A run's memory goes when the batch that first referred to it is durable. Its translation stays until the last batch
//! that refers to it is durable too, and as long as a lock guard of that time lives, because that guard's user may hold
//! the address.

mod read;
mod runs;
mod split;
mod write;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use vellum_base::{BatchNo, BlockAddr, BlockRange, DmaSlice, ItemOp, Key, Zone, crc32c};
use vellum_format::{Extent, ItemKind};

pub(crate) use runs::{Piece, Runs};
use split::Splits;
pub(crate) use write::written;

use crate::ClientError;
use crate::lock::Era;

/// Addresses from here on are provisional. No device has so many blocks.
pub(crate) const PROVISIONAL: u64 = 1 << 63;

/// True for an address that only this client knows so far, in memory until the next sync.
pub fn is_provisional(address: BlockAddr) -> bool {
    address.0 >= PROVISIONAL
}

/// crc32c of each 4 KiB block of `data`, as extents carry them.
pub fn block_checksums(data: &[u8]) -> impl Iterator<Item = u32> + '_ {
    data.chunks(vellum_base::BLOCK_SIZE).map(crc32c)
}

pub(crate) struct RetainedData {
    pub runs: RefCell<Runs>,
    /// Bytes asked for by writes that wait for their answer.
    pub writing: Cell<usize>,
    pub splits: RefCell<Splits>,
    era: RefCell<Rc<Era>>,
}

impl Default for RetainedData {
    fn default() -> Self {
        RetainedData {
            runs: RefCell::default(),
            writing: Cell::new(0),
            splits: RefCell::default(),
            era: RefCell::new(Rc::new(Era(1))),
        }
    }
}

impl RetainedData {
    pub fn era(&self) -> Rc<Era> {
        self.era.borrow().clone()
    }

    /// Batches up to `through` are durable.
    pub fn release(&self, through: BatchNo) {
        let dead = self.runs.borrow_mut().release(through);
        if !dead.is_empty() {
            self.end_era(dead);
        }
        self.runs.borrow_mut().bury();
    }

    /// Guards that are taken from now on know what was true now.
    pub fn new_era(&self) {
        self.end_era(Vec::new());
    }

    /// Every era stands in the queue of the dead, also one without any: its guards protect those of later eras too.
    fn end_era(&self, dead: Vec<u64>) {
        let next = Rc::new(Era(self.era.borrow().0 + 1));
        let ended = std::mem::replace(&mut *self.era.borrow_mut(), next);
        self.runs.borrow_mut().die(ended, dead);
    }

    /// Notes that `batch` refers to the data of a provisional extent.
    pub fn refer(&self, key: &Key, value: &[u8], batch: BatchNo) {
        if let Some((start, len)) = provisional_extent(key, value) {
            self.runs.borrow_mut().refer(start, len, batch);
        }
    }

    pub fn add(&self, data: DmaSlice, places: &[BlockRange]) -> Vec<BlockRange> {
        self.runs.borrow_mut().add(data, places)
    }

    /// The operations with device addresses in place of provisional ones.
    pub fn settle_ops(&self, ops: &[ItemOp]) -> Vec<ItemOp> {
        ops.iter().map(|op| self.settle_op(op)).collect()
    }

    fn settle_op(&self, op: &ItemOp) -> ItemOp {
        if let ItemOp::Put { key, value } = op
            && let Some((start, _)) = provisional_extent(key, value)
            && let Some(value) = self.settle_value(value, start)
        {
            return ItemOp::Put { key: *key, value };
        }
        op.clone()
    }

    /// The encoded extent with the device's address of `start`.
    pub fn settle_value(&self, value: &Bytes, start: u64) -> Option<Bytes> {
        let place = self.runs.borrow().place(start)?;
        let mut settled = BytesMut::from(&value[..]);
        settled.get_mut(..8)?.copy_from_slice(&place.to_le_bytes());
        Some(settled.freeze())
    }

    pub fn pieces(&self, range: BlockRange) -> Result<Vec<Piece>, ClientError> {
        self.runs.borrow().pieces(range)
    }
}

/// Provisional start and length of an extent item; `None` for every other item.
pub(crate) fn provisional_extent(key: &Key, value: &[u8]) -> Option<(u64, u32)> {
    // The address's top bit first: nearly all items fail here, cheaply.
    if value.get(7)? & 0x80 == 0 || key.kind() != ItemKind::Extent as u8 || key.zone() != Some(Zone::Fs) {
        return None;
    }
    let header = Extent::decode_header(value).ok()?;
    (!header.offline && header.start.0 >= PROVISIONAL).then_some((header.start.0, header.len_blocks))
}
