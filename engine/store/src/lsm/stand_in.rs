//! A block in the place of a lost one whose items are all known to be written anew elsewhere: as many tombstones as there
//! were entries, so that the segment is what its footer says and can be merged away.

use std::rc::Rc;

use vellum_base::{DmaBuf, KeyRange};
use vellum_format::Place;
use vellum_format::segment::block::HEADER_LEN;
use vellum_format::segment::entry::EntryWriter;
use vellum_format::segment::{BlockKind, block};

use super::cache::Block;
use super::segment::Segment;

/// `entries` tombstones from `keys.first` on; `None` when they do not fit.
pub fn stand_in(segment: &Segment, place: Place, keys: &KeyRange, entries: u64) -> Option<Rc<Block>> {
    let mut writer = EntryWriter::new(16);
    let mut key = keys.first;
    for _ in 0..entries {
        if key > keys.last {
            return None;
        }
        writer.add(&key, segment.meta.min_epoch, None);
        key = key.successor()?;
    }
    let payload_len = writer.payload_len();
    if entries == 0 || HEADER_LEN + payload_len > place.len_bytes() {
        return None;
    }
    let mut data = DmaBuf::zeroed(place.len_bytes());
    writer.finish_into(&mut data[HEADER_LEN..HEADER_LEN + payload_len]);
    block::seal(&mut data, BlockKind::Data, payload_len, segment.meta.id, place.at_bytes());
    Some(Block::new(data, payload_len, BlockKind::Data))
}
