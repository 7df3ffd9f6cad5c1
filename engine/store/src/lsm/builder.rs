//! Builds one segment in memory. Its length is known only at the end, so space is asked for then, and exactly enough.

use vellum_base::{BLOCK_SIZE, DmaBuf, Epoch, Key, SegmentId};
use vellum_format::segment::block::{self, HEADER_LEN};
use vellum_format::segment::entry::{EntryWriter, MAX_ENTRY_OVERHEAD, put_index_value, put_range_value};
use vellum_format::segment::{BlockKind, filter};
use vellum_format::{Place, SegmentMeta};

use super::image::Image;

const DATA_RESTARTS: u32 = 8;
/// Lower: an index is searched for each block, and is short.
const INDEX_RESTARTS: u32 = 4;
/// A block that an entry does not fit into grows by 4 KiB when it is emptier than this share of its length.
const WASTE_SHARE: usize = 32;
/// Blocks grow up to this many times the wanted length.
const MAX_GROWTH: usize = 2;

/// A block of range tombstones that waits for the data blocks to end.
struct Waiting {
    payload: Vec<u8>,
    first: Key,
}

/// A block of a segment that was built.
pub struct BuiltBlock {
    pub kind: BlockKind,
    pub place: Place,
    pub payload_len: usize,
}

/// A segment without a place on the device.
pub struct Built {
    pub meta: SegmentMeta,
    /// Its bytes; no block crosses from one to the next.
    pub chunks: Vec<DmaBuf>,
    /// In the order of their places.
    pub blocks: Vec<BuiltBlock>,
}

pub struct SegmentBuilder {
    block_bytes: usize,
    meta: SegmentMeta,
    image: Image,
    blocks: Vec<BuiltBlock>,
    data: EntryWriter,
    /// The first key of the data block, and the last key of all.
    block_first: Key,
    last_key: Option<Key>,
    /// The last key of the data block before this one.
    block_before: Option<Key>,
    index: EntryWriter,
    hashes: Vec<u64>,
    ranges: EntryWriter,
    ranges_first: Key,
    waiting: Vec<Waiting>,
    waiting_bytes: usize,
    scratch: Vec<u8>,
}

impl SegmentBuilder {
    pub fn new(id: SegmentId, run: Epoch, block_bytes: usize) -> SegmentBuilder {
        let meta = SegmentMeta { id, run, first: Key::MAX, last: Key::MIN, ..SegmentMeta::default() };
        SegmentBuilder {
            block_bytes,
            meta,
            image: Image::default(),
            blocks: Vec::new(),
            data: EntryWriter::new(DATA_RESTARTS),
            block_first: Key::MIN,
            last_key: None,
            block_before: None,
            index: EntryWriter::new(INDEX_RESTARTS),
            hashes: Vec::new(),
            ranges: EntryWriter::new(DATA_RESTARTS),
            ranges_first: Key::MIN,
            waiting: Vec::new(),
            waiting_bytes: 0,
            scratch: Vec::new(),
        }
    }

    /// About the length of the segment if it ended now.
    pub fn len_bytes(&self) -> usize {
        let blocks =
            self.image.len() as usize + self.data.payload_len() + self.waiting_bytes + self.ranges.payload_len();
        blocks + self.index.payload_len() + self.hashes.len() * 10 / 8 + 4 * BLOCK_SIZE
    }

    /// Adds an entry; keys ascend, versions of one key stand newest first. Epoch 0 is for "visible to everyone".
    pub fn add(&mut self, key: &Key, epoch: Epoch, value: Option<&[u8]>) {
        let same_key = self.last_key == Some(*key);
        if !same_key {
            self.cut_block(value.map_or(0, <[u8]>::len));
            let shared = self.last_key.map_or(0, |last| common(&last, key));
            if shared < filter::PREFIX_LEN {
                self.hashes.push(filter::prefix_hash(key));
            }
            if shared < filter::OWNER_LEN {
                self.hashes.push(filter::owner_hash(key));
            }
        }
        if self.data.is_empty() {
            self.block_first = *key;
        }
        self.data.add(key, epoch, value);
        self.meta.entries += 1;
        self.meta.tombstones += u64::from(value.is_none());
        self.last_key = Some(*key);
        self.bound(key, key);
    }

    /// Adds a range tombstone; ranges ascend and do not overlap. Epochs stand newest first.
    pub fn add_range(&mut self, first: &Key, last: &Key, epochs: &[Epoch]) {
        if self.ranges.is_empty() {
            self.ranges_first = *last;
        }
        self.scratch.clear();
        put_range_value(&mut self.scratch, first, last, epochs);
        self.ranges.add(last, Epoch::NONE, Some(&self.scratch));
        self.meta.range_tombstones += 1;
        self.bound(first, last);
        if self.ranges.payload_len() + MAX_ENTRY_OVERHEAD * 2 > self.block_bytes - HEADER_LEN {
            self.cut_ranges();
        }
    }

    /// Notes the true epochs of what is added (they are 0 in most entries).
    pub fn epochs(&mut self, min: Epoch, max: Epoch) {
        let meta = &mut self.meta;
        meta.min_epoch = if meta.min_epoch == Epoch::NONE { min } else { meta.min_epoch.min(min) };
        meta.max_epoch = meta.max_epoch.max(max);
    }

    fn bound(&mut self, first: &Key, last: &Key) {
        self.meta.first = self.meta.first.min(*first);
        self.meta.last = self.meta.last.max(*last);
    }

    /// Ends the data block when an entry with a value of `value_len` bytes had better begin a new one.
    fn cut_block(&mut self, value_len: usize) {
        if self.data.is_empty() {
            return;
        }
        let used = HEADER_LEN + self.data.payload_len();
        let with = used + value_len + MAX_ENTRY_OVERHEAD;
        let room = self.block_bytes.max(used.next_multiple_of(BLOCK_SIZE));
        if with <= room {
            return;
        }
        // Values are long compared to the block: rather a longer block than a hole at its end.
        let hole = room - used;
        if hole > room / WASTE_SHARE && with <= self.block_bytes * MAX_GROWTH {
            return;
        }
        self.end_block();
    }

    fn end_block(&mut self) {
        if self.data.is_empty() {
            return;
        }
        let at_blocks = (self.image.len() / BLOCK_SIZE as u64) as u32;
        let len = self.write_block_of_data();
        let bound = match self.block_before {
            Some(before) => separator(&before, &self.block_first),
            None => self.block_first,
        };
        self.scratch.clear();
        put_index_value(&mut self.scratch, at_blocks, (len / BLOCK_SIZE) as u32);
        self.index.add(&bound, Epoch::NONE, Some(&self.scratch));
        self.block_before = self.last_key;
    }

    fn write_block_of_data(&mut self) -> usize {
        let payload_len = self.data.payload_len();
        let at = self.image.len();
        let len = block::block_len(payload_len);
        let out = self.image.extend(len);
        self.data.finish_into(&mut out[HEADER_LEN..HEADER_LEN + payload_len]);
        block::seal(out, BlockKind::Data, payload_len, self.meta.id, at);
        self.built(BlockKind::Data, at, len, payload_len);
        len
    }

    fn built(&mut self, kind: BlockKind, at: u64, len: usize, payload_len: usize) -> Place {
        let place = Place { at_blocks: (at / BLOCK_SIZE as u64) as u32, len_blocks: (len / BLOCK_SIZE) as u32 };
        self.blocks.push(BuiltBlock { kind, place, payload_len });
        place
    }

    fn cut_ranges(&mut self) {
        if self.ranges.is_empty() {
            return;
        }
        let mut payload = vec![0; self.ranges.payload_len()];
        self.ranges.finish_into(&mut payload);
        self.waiting_bytes += block::block_len(payload.len());
        self.waiting.push(Waiting { payload, first: self.ranges_first });
    }

    /// Writes a block and answers its place and checksum.
    fn write(&mut self, kind: BlockKind, payload: &[u8]) -> (Place, u32) {
        let at = self.image.len();
        let len = block::block_len(payload.len());
        let out = self.image.extend(len);
        out[HEADER_LEN..HEADER_LEN + payload.len()].copy_from_slice(payload);
        let checksum = block::seal(out, kind, payload.len(), self.meta.id, at);
        (self.built(kind, at, len, payload.len()), checksum)
    }

    fn write_index(&mut self, mut index: EntryWriter) -> Place {
        if index.is_empty() {
            return Place::default();
        }
        let mut payload = vec![0; index.payload_len()];
        index.finish_into(&mut payload);
        self.write(BlockKind::Index, &payload).0
    }

    fn write_filter(&mut self) -> Place {
        if self.hashes.is_empty() {
            return Place::default();
        }
        let pages = filter::pages_for(self.hashes.len() as u64);
        let mut payloads = vec![vec![0u8; filter::PAGE_PAYLOAD]; pages as usize];
        for hash in &self.hashes {
            filter::insert(&mut payloads[filter::page_of(*hash, pages) as usize], *hash);
        }
        let at_blocks = (self.image.len() / BLOCK_SIZE as u64) as u32;
        for payload in payloads {
            self.write(BlockKind::Filter, &payload);
        }
        Place { at_blocks, len_blocks: pages }
    }

    pub fn finish(mut self) -> Built {
        self.end_block();
        self.cut_ranges();
        self.meta.data_blocks = (self.image.len() / BLOCK_SIZE as u64) as u32;
        let mut ranges_index = EntryWriter::new(INDEX_RESTARTS);
        for Waiting { payload, first } in std::mem::take(&mut self.waiting) {
            let (place, _) = self.write(BlockKind::Tombstones, &payload);
            self.scratch.clear();
            put_index_value(&mut self.scratch, place.at_blocks, place.len_blocks);
            ranges_index.add(&first, Epoch::NONE, Some(&self.scratch));
        }
        self.meta.filter = self.write_filter();
        let index = std::mem::replace(&mut self.index, EntryWriter::new(INDEX_RESTARTS));
        self.meta.index = self.write_index(index);
        self.meta.tombstone_index = self.write_index(ranges_index);
        self.meta.len_bytes = self.image.len() + BLOCK_SIZE as u64;
        // The footer describes the segment without the manifest: for tools that look at a damaged device.
        let mut footer = Vec::new();
        self.meta.encode(&mut footer);
        self.meta.checksum = self.write(BlockKind::Footer, &footer).1;
        assert_eq!(self.image.len(), self.meta.len_bytes, "the footer is one block");
        Built { meta: self.meta, chunks: self.image.into_chunks(), blocks: self.blocks }
    }
}

/// Number of leading bytes that two keys share.
fn common(a: &Key, b: &Key) -> usize {
    a.0.iter().zip(&b.0).take_while(|(x, y)| x == y).count()
}

/// The shortest key (ending in zeros) that is greater than `before` and at most `first`.
fn separator(before: &Key, first: &Key) -> Key {
    let shared = common(before, first);
    let mut key = *first;
    if let Some(rest) = key.0.get_mut(shared + 1..) {
        rest.fill(0);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::Ino;

    #[test]
    fn a_separator_separates_and_is_short() {
        let before = Key::fs(Ino(5), 3, 0x1111_2222, 7, 0);
        let first = Key::fs(Ino(5), 3, 0x1111_9922, 7, 0);
        let key = separator(&before, &first);
        assert!(before < key && key <= first);
        assert_eq!(key.second(), 0x1111_9900);
        let last = separator(&Key::fs(Ino(5), 3, 0, 0, 0), &Key::fs(Ino(5), 3, 0, 0, 1));
        assert_eq!(last.fourth(), 1);
    }

    #[test]
    fn blocks_are_full_with_small_values_and_grow_for_long_ones() {
        for value_len in [0, 30, 152, 1024, 2048] {
            let mut builder = SegmentBuilder::new(SegmentId(1), Epoch(1), 8192);
            let mut raw = 0;
            for i in 0..3000 {
                let value = vec![7; value_len];
                builder.add(&Key::fs(Ino(i), 1, 0, 0, 0), Epoch::NONE, Some(&value));
                raw += value_len + 4;
            }
            let estimate = builder.len_bytes();
            let Built { meta, chunks, blocks } = builder.finish();
            assert_eq!(
                blocks.iter().map(|b| u64::from(b.place.len_blocks)).sum::<u64>() * BLOCK_SIZE as u64,
                meta.len_bytes
            );
            assert_eq!(chunks.iter().map(|c| c.len() as u64).sum::<u64>(), meta.len_bytes);
            let data = meta.data_blocks as usize * BLOCK_SIZE;
            assert!(data < raw * 115 / 100 + 2 * 8192 + 3000 * 6, "{value_len}: {data} for {raw}");
            assert!(
                (meta.len_bytes as usize).abs_diff(estimate) < estimate / 50 + 16384,
                "{} {estimate}",
                meta.len_bytes
            );
        }
    }
}
