//! Reads a segment whole, every copy of it and past the cache, and writes a bad block again where a good one is at hand:
//! from the other copy, or from memory.
//!
//! The segment is held meanwhile, so its blocks are nobody else's, also when a compaction has made it obsolete.

use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, DmaBuf, KeyRange, SegmentId};
use vellum_format::Place;
use vellum_format::segment::{BlockKind, block};
use vellum_nvme::Queue;

use super::blocks::{View, load_copy, read_span, write_copy};
use super::cache::Block;
use super::segment::Segment;
use super::stand_in::stand_in;
use super::{LsmError, Shard};

/// Blocks that are read at once.
const SPAN_BYTES: usize = 256 << 10;

/// A block that does not verify.
#[derive(Debug)]
pub struct BadBlock {
    pub error: LsmError,
    /// What cannot be read without it.
    pub keys: KeyRange,
    pub repaired: bool,
}

#[derive(Debug, Default)]
pub struct SegmentScrub {
    pub bytes: u64,
    pub bad: Vec<BadBlock>,
}

/// A block as its parent describes it.
#[derive(Clone, Copy)]
struct Part {
    kind: BlockKind,
    place: Place,
    keys: KeyRange,
}

impl Shard {
    /// Segments of the moment, old ones first.
    pub fn segment_ids(&self) -> Vec<SegmentId> {
        let state = self.state();
        let mut ids: Vec<SegmentId> = state.sorted_runs().flat_map(|r| &r.segments).map(|s| s.meta.id).collect();
        ids.sort();
        ids
    }

    /// `None` when the segment is merged away by now.
    /// What is lost and lies within `rewritten`, whose items have all been written anew, is replaced.
    pub async fn scrub_segment(&self, id: SegmentId, rewritten: &[KeyRange]) -> Option<SegmentScrub> {
        let segment = self.state().sorted_runs().flat_map(|r| &r.segments).find(|s| s.meta.id == id).cloned()?;
        let queue = self.env.queue();
        let parts = parts_of(&queue, &segment).await;
        let mut out = SegmentScrub::default();
        for copy in 0..copies(&segment) {
            let mut rest = &parts[..];
            while let Some((span, after)) = next_span(rest) {
                rest = after;
                self.scrub_span(&queue, &segment, span, copy, &mut out).await;
            }
        }
        for bad in out.bad.iter_mut().filter(|bad| !bad.repaired) {
            let lost: Vec<&Part> = parts.iter().filter(|p| p.kind == BlockKind::Data && p.keys == bad.keys).collect();
            let known = |part: &Part| rewritten.iter().any(|range| holds(range, &part.keys));
            if let [part] = lost[..]
                && known(part)
            {
                bad.repaired = replace(&queue, &segment, &parts, part).await;
            }
        }
        Some(out)
    }

    async fn scrub_span(
        &self,
        queue: &Rc<dyn Queue>,
        segment: &Rc<Segment>,
        span: &[Part],
        copy: usize,
        out: &mut SegmentScrub,
    ) {
        let first = span[0].place;
        let len_blocks = span.iter().map(|part| part.place.len_blocks).sum();
        let whole = Place { at_blocks: first.at_blocks, len_blocks };
        let data = read_span(queue, segment, whole, copy).await.ok();
        out.bytes += whole.len_bytes() as u64;
        for part in span {
            if data.as_ref().is_some_and(|data| is_good(data, segment, part, first)) {
                continue;
            }
            // By itself: what fails once and works then is the device's affair, and counted there.
            if let Err(error) = load_copy(queue, segment, part.kind, part.place, copy).await {
                let repaired = self.mend(queue, segment, part, copy).await;
                out.bad.push(BadBlock { error, keys: part.keys, repaired });
            }
        }
    }

    async fn mend(&self, queue: &Rc<dyn Queue>, segment: &Rc<Segment>, part: &Part, copy: usize) -> bool {
        let other = (copies(segment) > 1).then_some(1 - copy);
        let mut good: Option<Rc<Block>> = None;
        if let Some(other) = other {
            good = load_copy(queue, segment, part.kind, part.place, other).await.ok();
        }
        let id = (segment.meta.id, part.place.at_blocks);
        let Some(good) = good.or_else(|| self.cache.get(id)).filter(|block| block.kind == part.kind) else {
            return false;
        };
        write_copy(queue, segment, copy, part.place, &good).await.is_ok()
            && load_copy(queue, segment, part.kind, part.place, copy).await.is_ok()
    }
}

/// A block's keys end where the next block's begin.
fn holds(range: &KeyRange, keys: &KeyRange) -> bool {
    range.first <= keys.first && (keys.last <= range.last || range.last.successor() == Some(keys.last))
}

/// Writes a stand-in over the one block of data that cannot be read.
async fn replace(queue: &Rc<dyn Queue>, segment: &Rc<Segment>, parts: &[Part], lost: &Part) -> bool {
    let mut others = 0;
    for part in parts.iter().filter(|part| part.kind == BlockKind::Data && part.place != lost.place) {
        let Ok(block) = load_copy(queue, segment, part.kind, part.place, 0).await else { return false };
        let view = View { segment, block: &block };
        let mut next = view.first().ok().flatten();
        while let Some(entry) = next {
            others += 1;
            next = view.after(&entry).ok().flatten();
        }
    }
    let Some(entries) = segment.meta.entries.checked_sub(others) else { return false };
    let Some(block) = stand_in(segment, lost.place, &lost.keys, entries) else { return false };
    for copy in 0..copies(segment) {
        if write_copy(queue, segment, copy, lost.place, &block).await.is_err() {
            return false;
        }
    }
    load_copy(queue, segment, lost.kind, lost.place, 0).await.is_ok()
}

fn copies(segment: &Segment) -> usize {
    if segment.meta.mirror.is_empty() { 1 } else { 2 }
}

/// Blocks that follow each other, and the rest.
fn next_span(parts: &[Part]) -> Option<(&[Part], &[Part])> {
    let first = parts.first()?;
    let mut end = first.place.at_blocks;
    let len = parts
        .iter()
        .take_while(|part| {
            let follows = part.place.at_blocks == end;
            end += part.place.len_blocks;
            let bytes = (end - first.place.at_blocks) as usize * BLOCK_SIZE;
            follows && (bytes <= SPAN_BYTES || part.place == first.place)
        })
        .count();
    Some(parts.split_at(len.max(1)))
}

fn is_good(data: &DmaBuf, segment: &Segment, part: &Part, first: Place) -> bool {
    let at = (part.place.at_blocks - first.at_blocks) as usize * BLOCK_SIZE;
    let bytes = data.get(at..at + part.place.len_bytes()).unwrap_or_default();
    block::open(bytes, segment.meta.id, part.place.at_bytes()).is_ok_and(|(kind, _)| kind == part.kind)
}

/// All blocks in the order of their places. Those that only an index names are left out when no copy of it is good: then
/// the index is what is found bad.
async fn parts_of(queue: &Rc<dyn Queue>, segment: &Rc<Segment>) -> Vec<Part> {
    let meta = &segment.meta;
    let keys = KeyRange { first: meta.first, last: meta.last };
    let footer = Place { at_blocks: (meta.len_bytes / BLOCK_SIZE as u64).saturating_sub(1) as u32, len_blocks: 1 };
    let mut parts = vec![Part { kind: BlockKind::Footer, place: footer, keys }];
    let page = |i| Place { at_blocks: meta.filter.at_blocks + i, len_blocks: 1 };
    parts.extend((0..meta.filter.len_blocks).map(|i| Part { kind: BlockKind::Filter, place: page(i), keys }));
    for (index, kind) in [(meta.index, BlockKind::Data), (meta.tombstone_index, BlockKind::Tombstones)] {
        if index.is_none() {
            continue;
        }
        parts.push(Part { kind: BlockKind::Index, place: index, keys });
        for copy in 0..copies(segment) {
            if let Ok(block) = load_copy(queue, segment, BlockKind::Index, index, copy).await {
                parts.extend(children(segment, &block, kind, keys));
                break;
            }
        }
    }
    parts.sort_by_key(|part| part.place.at_blocks);
    parts
}

/// A block begins at its entry in the index, and ends where the next one begins.
fn children(segment: &Segment, index: &Block, kind: BlockKind, keys: KeyRange) -> Vec<Part> {
    let view = View { segment, block: index };
    let mut parts: Vec<Part> = Vec::new();
    let mut next = view.first().ok().flatten();
    while let Some(entry) = next {
        // Range tombstones reach beyond the next entry: theirs is the segment's end.
        if let Some(before) = parts.last_mut().filter(|_| kind == BlockKind::Data) {
            before.keys.last = entry.key;
        }
        if let Ok(place) = view.child(&entry) {
            parts.push(Part { kind, place, keys: KeyRange { first: entry.key, last: keys.last } });
        }
        next = view.after(&entry).ok().flatten();
    }
    parts
}
