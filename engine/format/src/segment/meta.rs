//! What the manifest keeps of a segment: all that is needed to read it without touching the device.

use thiserror::Error;
use vellum_base::{BLOCK_SIZE, BlockAddr, BlockRange, Epoch, Key, SegmentId};
use zerocopy::little_endian::{U16, U32, U64};

use crate::codec::MAX_COUNTED;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A run of blocks inside a segment, in units of 4 KiB from its start. Length 0 says "none".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Place {
    pub at_blocks: u32,
    pub len_blocks: u32,
}

impl Place {
    pub fn is_none(self) -> bool {
        self.len_blocks == 0
    }

    pub fn at_bytes(self) -> u64 {
        u64::from(self.at_blocks) * BLOCK_SIZE as u64
    }

    pub fn len_bytes(self) -> usize {
        self.len_blocks as usize * BLOCK_SIZE
    }
}

/// One segment. Invariants that [`SegmentMeta::decode`] enforces: the ranges hold at least `len_bytes`, every place is
/// inside, `first <= last`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SegmentMeta {
    pub id: SegmentId,
    /// In level 0: the epoch through which the flush went that wrote it. Segments of one flush share it and do not
    /// overlap; a greater one is newer. 0 in the other levels.
    pub run: Epoch,
    /// Where its bytes are, in order.
    pub ranges: Vec<BlockRange>,
    /// A second copy; empty when there is one only.
    pub mirror: Vec<BlockRange>,
    pub len_bytes: u64,
    /// Bounds of its keys, range tombstones included.
    pub first: Key,
    pub last: Key,
    /// Puts and tombstones of single keys.
    pub entries: u64,
    pub tombstones: u64,
    pub range_tombstones: u64,
    /// Bounds of the epochs of what is in it.
    pub min_epoch: Epoch,
    pub max_epoch: Epoch,
    /// Data blocks begin at 0.
    pub data_blocks: u32,
    pub filter: Place,
    pub index: Place,
    pub tombstone_index: Place,
    /// crc32c in the header of its footer.
    pub checksum: u32,
}

#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum SegmentError {
    #[error("segment description: {found} bytes where at least {expected} were expected")]
    Length { expected: usize, found: usize },
    #[error("segment description has version {found}, known is {expected}")]
    Version { expected: u16, found: u16 },
    #[error("segment {segment}: {what} {found} is impossible")]
    Value { segment: SegmentId, what: &'static str, found: u64 },
}

/// Version of a segment's description.
pub const META_VERSION: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default)]
#[repr(C)]
struct DiskPlace {
    at_blocks: U32,
    len_blocks: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskRange {
    start: U64,
    len_blocks: U32,
}
const _: () = assert!(size_of::<DiskRange>() == 12);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskMeta {
    version: U16,
    ranges: U16,
    mirror: U16,
    reserved: U16,
    checksum: U32,
    data_blocks: U32,
    id: U64,
    run: U64,
    len_bytes: U64,
    entries: U64,
    tombstones: U64,
    range_tombstones: U64,
    min_epoch: U64,
    max_epoch: U64,
    filter: DiskPlace,
    index: DiskPlace,
    tombstone_index: DiskPlace,
    first: Key,
    last: Key,
}
const _: () = assert!(size_of::<DiskMeta>() == 160);

impl From<Place> for DiskPlace {
    fn from(p: Place) -> Self {
        DiskPlace { at_blocks: U32::new(p.at_blocks), len_blocks: U32::new(p.len_blocks) }
    }
}

impl From<DiskPlace> for Place {
    fn from(p: DiskPlace) -> Self {
        Place { at_blocks: p.at_blocks.get(), len_blocks: p.len_blocks.get() }
    }
}

impl SegmentMeta {
    /// Most runs of blocks that one copy may be made of.
    pub const MAX_RANGES: usize = u16::MAX as usize;

    pub fn encoded_len(&self) -> usize {
        size_of::<DiskMeta>() + (self.ranges.len() + self.mirror.len()) * size_of::<DiskRange>()
    }

    /// Appends the durable form. Panics when a copy has more than [`SegmentMeta::MAX_RANGES`] runs: our own bug.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let count = |list: &[BlockRange]| U16::new(u16::try_from(list.len()).expect("bounded by MAX_RANGES"));
        let disk = DiskMeta {
            version: U16::new(META_VERSION),
            ranges: count(&self.ranges),
            mirror: count(&self.mirror),
            reserved: U16::new(0),
            checksum: U32::new(self.checksum),
            data_blocks: U32::new(self.data_blocks),
            id: U64::new(self.id.0),
            run: U64::new(self.run.0),
            len_bytes: U64::new(self.len_bytes),
            entries: U64::new(self.entries),
            tombstones: U64::new(self.tombstones),
            range_tombstones: U64::new(self.range_tombstones),
            min_epoch: U64::new(self.min_epoch.0),
            max_epoch: U64::new(self.max_epoch.0),
            filter: self.filter.into(),
            index: self.index.into(),
            tombstone_index: self.tombstone_index.into(),
            first: self.first,
            last: self.last,
        };
        out.extend_from_slice(disk.as_bytes());
        for range in self.ranges.iter().chain(&self.mirror) {
            let disk = DiskRange { start: U64::new(range.start.0), len_blocks: U32::new(range.len_blocks) };
            out.extend_from_slice(disk.as_bytes());
        }
    }

    /// Decodes one description at the start of `input`; answers it and the bytes after it.
    pub fn decode(input: &[u8]) -> Result<(SegmentMeta, &[u8]), SegmentError> {
        let too_short = |expected| SegmentError::Length { expected, found: input.len() };
        let (d, rest) = DiskMeta::ref_from_prefix(input).map_err(|_| too_short(size_of::<DiskMeta>()))?;
        if d.version.get() != META_VERSION {
            return Err(SegmentError::Version { expected: META_VERSION, found: d.version.get() });
        }
        let (ranges, mirror) = (usize::from(d.ranges.get()), usize::from(d.mirror.get()));
        let (list, rest) = <[DiskRange]>::ref_from_prefix_with_elems(rest, ranges + mirror)
            .map_err(|_| too_short(size_of::<DiskMeta>() + (ranges + mirror) * size_of::<DiskRange>()))?;
        let runs = |list: &[DiskRange]| -> Vec<BlockRange> {
            list.iter()
                .map(|r| BlockRange { start: BlockAddr(r.start.get()), len_blocks: r.len_blocks.get() })
                .collect()
        };
        let meta = SegmentMeta {
            id: SegmentId(d.id.get()),
            run: Epoch(d.run.get()),
            ranges: runs(list.get(..ranges).unwrap_or_default()),
            mirror: runs(list.get(ranges..).unwrap_or_default()),
            len_bytes: d.len_bytes.get(),
            first: d.first,
            last: d.last,
            entries: d.entries.get(),
            tombstones: d.tombstones.get(),
            range_tombstones: d.range_tombstones.get(),
            min_epoch: Epoch(d.min_epoch.get()),
            max_epoch: Epoch(d.max_epoch.get()),
            data_blocks: d.data_blocks.get(),
            filter: d.filter.into(),
            index: d.index.into(),
            tombstone_index: d.tombstone_index.into(),
            checksum: d.checksum.get(),
        };
        meta.check()?;
        Ok((meta, rest))
    }

    fn check(&self) -> Result<(), SegmentError> {
        let bad = |what, found| Err(SegmentError::Value { segment: self.id, what, found });
        let blocks = self.len_bytes / BLOCK_SIZE as u64;
        if !self.len_bytes.is_multiple_of(BLOCK_SIZE as u64) || blocks == 0 || blocks > u64::from(u32::MAX) {
            return bad("length", self.len_bytes);
        }
        for copy in [&self.ranges, &self.mirror] {
            let mut held = 0u64;
            for range in copy {
                if range.start.is_none() || range.end().is_none() || range.len_blocks == 0 {
                    return bad("range at block", range.start.0);
                }
                held += u64::from(range.len_blocks);
            }
            let optional = copy.is_empty() && std::ptr::eq(copy, &self.mirror);
            if held < blocks && !optional {
                return bad("number of blocks held", held);
            }
        }
        for (what, place) in [("filter", self.filter), ("index", self.index), ("tombstone index", self.tombstone_index)]
        {
            if u64::from(place.at_blocks) + u64::from(place.len_blocks) > blocks {
                return bad(what, u64::from(place.at_blocks));
            }
        }
        for (what, counted) in [
            ("id", self.id.0),
            ("run", self.run.0),
            ("least epoch", self.min_epoch.0),
            ("greatest epoch", self.max_epoch.0),
        ] {
            if counted > MAX_COUNTED {
                return bad(what, counted);
            }
        }
        // Each takes a byte at least.
        for (what, number) in [
            ("number of entries", self.entries),
            ("number of tombstones", self.tombstones),
            ("number of range tombstones", self.range_tombstones),
        ] {
            if number > self.len_bytes {
                return bad(what, number);
            }
        }
        if u64::from(self.data_blocks) > blocks {
            return bad("number of data blocks", self.data_blocks.into());
        }
        if self.first > self.last {
            return bad("key order of bucket", self.first.bucket().0.into());
        }
        Ok(())
    }

    /// Device place, in bytes, of the segment's byte `at` in copy 0 or 1, and how many bytes follow in the same run.
    pub fn locate(&self, copy: usize, at: u64) -> Option<(u64, u64)> {
        let list = if copy == 0 { &self.ranges } else { &self.mirror };
        let mut skip = at;
        for range in list {
            let len = range.len_bytes() as u64;
            if skip < len {
                return Some((range.start.bytes() + skip, len - skip));
            }
            skip -= len;
        }
        None
    }

    /// Tombstones of both sorts as a share of what is in it, in percent. A range stands for several keys.
    pub fn tombstone_percent(&self) -> u32 {
        const KEYS_PER_RANGE: u64 = 4;
        let ranges = self.range_tombstones * KEYS_PER_RANGE;
        let all = (self.entries + ranges).max(1);
        ((self.tombstones + ranges) * 100 / all) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::Ino;

    fn sample() -> SegmentMeta {
        SegmentMeta {
            id: SegmentId(7),
            run: Epoch(9),
            ranges: vec![BlockRange::new(100, 3), BlockRange::new(200, 4)],
            mirror: vec![BlockRange::new(300, 7)],
            len_bytes: 7 * 4096,
            first: Key::fs(Ino(1), 1, 0, 0, 0),
            last: Key::fs(Ino(2), 1, 0, 0, 0),
            entries: 12,
            tombstones: 3,
            range_tombstones: 1,
            min_epoch: Epoch(4),
            max_epoch: Epoch(9),
            data_blocks: 2,
            filter: Place { at_blocks: 3, len_blocks: 1 },
            index: Place { at_blocks: 4, len_blocks: 1 },
            tombstone_index: Place { at_blocks: 5, len_blocks: 1 },
            checksum: 0x1234,
        }
    }

    #[test]
    fn a_description_survives_its_durable_form_and_leaves_the_rest() {
        let mut out = Vec::new();
        sample().encode(&mut out);
        assert_eq!(out.len(), sample().encoded_len());
        out.extend_from_slice(b"rest");
        let (meta, rest) = SegmentMeta::decode(&out).unwrap();
        assert_eq!((meta, rest), (sample(), &b"rest"[..]));
        for cut in 0..out.len() - 4 {
            assert!(SegmentMeta::decode(&out[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn impossible_descriptions_are_refused() {
        let spoil: [fn(&mut SegmentMeta); 6] = [
            |m| m.len_bytes = 8 * 4096,
            |m| m.len_bytes += 1,
            |m| m.ranges[0].start = BlockAddr(u64::MAX),
            |m| m.index.at_blocks = 7,
            |m| m.last = Key::MIN,
            |m| m.mirror[0].len_blocks = 1,
        ];
        for (i, spoil) in spoil.iter().enumerate() {
            let mut meta = sample();
            spoil(&mut meta);
            let mut out = Vec::new();
            meta.encode(&mut out);
            assert!(matches!(SegmentMeta::decode(&out), Err(SegmentError::Value { .. })), "case {i}");
        }
    }

    #[test]
    fn a_byte_is_located_in_its_run() {
        let meta = sample();
        assert_eq!(meta.locate(0, 0), Some((100 * 4096, 3 * 4096)));
        assert_eq!(meta.locate(0, 4 * 4096), Some((201 * 4096, 3 * 4096)));
        assert_eq!(meta.locate(1, 4 * 4096), Some((304 * 4096, 3 * 4096)));
        assert_eq!(meta.locate(0, 7 * 4096), None);
    }
}
