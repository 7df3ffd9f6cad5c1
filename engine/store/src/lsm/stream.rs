//! Reads the blocks of a run's segments one after the other, in large reads, past the cache: the input of a compaction.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, DmaBuf, Epoch, Key};
use vellum_format::Place;
use vellum_format::segment::entry::Entry;
use vellum_format::segment::{BlockKind, block};
use vellum_nvme::Queue;

use super::LsmError;
use super::blocks::{Stop, View, load_block, read_span};
use super::cache::Block;
use super::segment::Segment;

/// Length of a read; one more is in flight.
const SPAN_BYTES: usize = 256 << 10;

/// Blocks that follow each other on the segment, with one read under way for all.
struct Span {
    segment: Rc<Segment>,
    places: VecDeque<Place>,
    first: Place,
    reading: Pin<Box<dyn Future<Output = Result<DmaBuf, LsmError>>>>,
}

/// A span that has been read; its blocks are not verified yet.
struct Loaded {
    segment: Rc<Segment>,
    places: VecDeque<Place>,
    first: Place,
    /// `None` when the read failed: each block is then read by itself, where the second copy helps.
    data: Option<DmaBuf>,
}

struct Current {
    segment: Rc<Segment>,
    block: Rc<Block>,
    entry: Entry,
}

/// Entries (points or range tombstones) of segments that do not overlap, in key order.
pub struct Stream {
    queue: Rc<dyn Queue>,
    kind: BlockKind,
    segments: VecDeque<Rc<Segment>>,
    /// Blocks of the segment at hand that no span holds yet.
    places: VecDeque<Place>,
    segment: Option<Rc<Segment>>,
    next: Option<Span>,
    loaded: Option<Loaded>,
    current: Option<Current>,
    /// Entries stood at so far.
    read: u64,
}

fn ended(stop: Stop) -> LsmError {
    match stop {
        Stop::Error(err) => err,
        Stop::Miss(miss) => LsmError::Space(format!("segment {} asked for a block it holds", miss.segment.meta.id)),
    }
}

impl Stream {
    /// Stands before the first entry: call [`Stream::advance`].
    pub fn new(queue: Rc<dyn Queue>, kind: BlockKind, segments: &[Rc<Segment>]) -> Stream {
        let segments = segments.iter().cloned().collect();
        let (places, segment, next, loaded, current) = (VecDeque::new(), None, None, None, None);
        Stream { queue, kind, segments, places, segment, next, loaded, current, read: 0 }
    }

    /// How many entries were read: at the end as many as the segments say they hold, or something was missed.
    pub fn entries_read(&self) -> u64 {
        self.read
    }

    pub fn key(&self) -> Option<&Key> {
        self.current.as_ref().map(|current| &current.entry.key)
    }

    pub fn entry(&self) -> Option<(Epoch, Option<&[u8]>)> {
        let current = self.current.as_ref()?;
        let view = View { segment: &current.segment, block: &current.block };
        Some((current.entry.epoch, view.value(&current.entry)))
    }

    /// Of a stream of range tombstones: first and last key of the current one, its epochs to `epochs`.
    pub fn range(&self, epochs: &mut Vec<Epoch>) -> Result<Option<(Key, Key)>, LsmError> {
        let Some(current) = &self.current else { return Ok(None) };
        let view = View { segment: &current.segment, block: &current.block };
        let first = view.range_first(&current.entry, epochs).map_err(ended)?;
        Ok(Some((first, current.entry.key)))
    }

    /// Goes on within the block. False at its end: then [`Stream::advance`] is needed.
    pub fn step(&mut self) -> Result<bool, LsmError> {
        let Some(current) = &mut self.current else { return Ok(true) };
        let view = View { segment: &current.segment, block: &current.block };
        match view.after(&current.entry).map_err(ended)? {
            Some(entry) => {
                current.entry = entry;
                self.read += 1;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Goes to the first entry of the next block.
    pub async fn advance(&mut self) -> Result<(), LsmError> {
        let before = self.current.take().map(|current| current.entry.key);
        while self.current.is_none() {
            let Some(loaded) = &mut self.loaded else {
                if self.next.is_none() {
                    self.start_span().await?;
                }
                let Some(span) = self.next.take() else { return Ok(()) };
                let data = match span.reading.await {
                    Ok(data) => Some(data),
                    Err(_) if !span.segment.meta.mirror.is_empty() => None,
                    Err(err) => return Err(err),
                };
                self.loaded = Some(Loaded { segment: span.segment, places: span.places, first: span.first, data });
                self.start_span().await?;
                continue;
            };
            let Some(place) = loaded.places.pop_front() else {
                self.loaded = None;
                continue;
            };
            let block = match open_block(loaded, self.kind, place) {
                Some(block) => block,
                // Bad, or not read at all: the slow way tells why, or finds the second copy.
                None => load_block(&self.queue, &loaded.segment, self.kind, place).await?,
            };
            let segment = loaded.segment.clone();
            let first = View { segment: &segment, block: &block }.first().map_err(ended)?;
            if let Some(entry) = first.as_ref().filter(|entry| before.is_some_and(|before| entry.key < before)) {
                return Err(ended(View { segment: &segment, block: &block }.disorder(entry)));
            }
            self.read += u64::from(first.is_some());
            self.current = first.map(|entry| Current { segment, block, entry });
        }
        Ok(())
    }

    /// Starts to read the next span, if any.
    async fn start_span(&mut self) -> Result<(), LsmError> {
        while self.places.is_empty() {
            let Some(segment) = self.segments.pop_front() else { return Ok(()) };
            let index = if self.kind == BlockKind::Data { segment.meta.index } else { segment.meta.tombstone_index };
            if !index.is_none() {
                let index = load_block(&self.queue, &segment, BlockKind::Index, index).await?;
                self.places = children(&segment, &index).map_err(ended)?;
                self.segment = Some(segment);
            }
        }
        let (Some(segment), Some(first)) = (self.segment.clone(), self.places.front().copied()) else { return Ok(()) };
        let (mut places, mut end) = (VecDeque::new(), first.at_blocks);
        while let Some(place) = self.places.front().copied() {
            let len = (end - first.at_blocks + place.len_blocks) as usize * BLOCK_SIZE;
            if place.at_blocks != end || (len > SPAN_BYTES && !places.is_empty()) {
                break;
            }
            end += place.len_blocks;
            places.push_back(place);
            self.places.pop_front();
        }
        let whole = Place { at_blocks: first.at_blocks, len_blocks: end - first.at_blocks };
        let reading = Box::pin(read_span(&self.queue, &segment, whole, 0));
        self.next = Some(Span { segment, places, first, reading });
        Ok(())
    }
}

fn children(segment: &Segment, index: &Block) -> Result<VecDeque<Place>, Stop> {
    let view = View { segment, block: index };
    let mut places = VecDeque::new();
    let mut next = view.first()?;
    while let Some(entry) = next {
        places.push_back(view.child(&entry)?);
        next = view.after(&entry)?;
    }
    Ok(places)
}

fn open_block(loaded: &Loaded, kind: BlockKind, place: Place) -> Option<Rc<Block>> {
    let data = loaded.data.as_ref()?;
    let at = place.at_blocks.checked_sub(loaded.first.at_blocks)? as usize * BLOCK_SIZE;
    let bytes = data.get(at..at.checked_add(place.len_bytes())?)?;
    let (found, payload) = block::open(bytes, loaded.segment.meta.id, place.at_bytes()).ok()?;
    let payload_len = payload.len();
    (found == kind).then(|| Block::new(DmaBuf::copy_from(bytes, false), payload_len, kind))
}
