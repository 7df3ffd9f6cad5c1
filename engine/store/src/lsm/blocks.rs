//! Blocks of segments: from the cache, from what a read holds, or from the device (always verified).
//!
//! Reads are synchronous over what is in memory. When a block is missing they stop with [`Stop::Miss`]; the caller loads
//! it, holds it, and starts the step again. No borrow and no cursor lives over an await, and the many reads that find
//! everything in memory pay for no future.

use std::rc::Rc;

use tracing::warn;
use vellum_base::{DmaBuf, SegmentId};
use vellum_format::Place;
use vellum_format::segment::block;
use vellum_format::segment::entry::{Entries, Entry, get_index_value};
use vellum_format::segment::{BlockError, BlockKind};
use vellum_nvme::Queue;

use super::cache::{Block, BlockCache, BlockId};
use super::segment::Segment;
use super::{LsmError, ShardEnv};

/// Blocks to be loaded: the one that is missing, and some after it that a scan is going to want.
pub struct Miss {
    pub segment: Rc<Segment>,
    pub kind: BlockKind,
    pub place: Place,
    pub ahead: Vec<Place>,
}

/// Why a synchronous step could not go on.
pub enum Stop {
    Miss(Box<Miss>),
    Error(LsmError),
}

impl From<LsmError> for Stop {
    fn from(err: LsmError) -> Stop {
        Stop::Error(err)
    }
}

/// Most blocks that one read holds. More than one step over all sources can need, so that a read with a tiny cache ends.
const MAX_HELD: usize = 512;

/// What one read sees of the blocks.
pub struct Blocks<'a> {
    cache: &'a BlockCache,
    env: &'a dyn ShardEnv,
    /// Blocks loaded for this read: they are found although the cache may have dropped them already.
    held: Vec<(BlockId, Rc<Block>)>,
}

impl<'a> Blocks<'a> {
    pub fn new(cache: &'a BlockCache, env: &'a dyn ShardEnv) -> Blocks<'a> {
        Blocks { cache, env, held: Vec::new() }
    }

    pub fn get(&self, segment: &Rc<Segment>, kind: BlockKind, place: Place) -> Result<Rc<Block>, Stop> {
        let id = (segment.meta.id, place.at_blocks);
        let found = self
            .cache
            .get(id)
            .or_else(|| self.held.iter().find(|(held, _)| *held == id).map(|(_, block)| block.clone()));
        match found {
            Some(block) if block.kind == kind => Ok(block),
            Some(block) => Err(Stop::Error(wrong_kind(segment, kind, place, block.kind))),
            None => {
                let miss = Miss { segment: segment.clone(), kind, place, ahead: Vec::new() };
                Err(Stop::Miss(Box::new(miss)))
            }
        }
    }

    pub fn has(&self, segment: SegmentId, place: Place) -> bool {
        self.cache.contains((segment, place.at_blocks))
    }

    /// Loads what `stop` says is missing; answers the error when that is what stopped the read.
    pub async fn load(&mut self, stop: Stop) -> Result<(), LsmError> {
        let miss = match stop {
            Stop::Miss(miss) => miss,
            Stop::Error(err) => return Err(err),
        };
        let queue = self.env.queue();
        let ahead: Vec<_> = miss.ahead.iter().map(|place| (place, start(&queue, &miss.segment, 0, *place))).collect();
        let block = load_block(&queue, &miss.segment, miss.kind, miss.place).await?;
        if self.held.len() >= MAX_HELD {
            self.held.drain(..MAX_HELD / 2);
        }
        self.keep(&miss.segment, miss.place, block);
        for (place, reading) in ahead {
            // A bad block that nobody asked for yet is reported when somebody does.
            if let Ok(data) = gather(*place, reading).await
                && let Ok(block) = verify(data, &miss.segment, miss.kind, *place, 0)
            {
                self.keep(&miss.segment, *place, block);
            }
        }
        Ok(())
    }

    fn keep(&mut self, segment: &Segment, place: Place, block: Rc<Block>) {
        let id = (segment.meta.id, place.at_blocks);
        self.cache.insert(id, &block);
        self.held.push((id, block));
    }
}

fn corrupt(segment: &Segment, kind: BlockKind, place: Place, copy: usize, reason: BlockError) -> LsmError {
    LsmError::Corrupt {
        segment: segment.meta.id,
        kind,
        at_bytes: place.at_bytes(),
        len_bytes: place.len_bytes(),
        device_bytes: segment.meta.locate(copy, place.at_bytes()).map_or(0, |(at, _)| at),
        reason,
    }
}

fn wrong_kind(segment: &Segment, kind: BlockKind, place: Place, found: BlockKind) -> LsmError {
    let reason = BlockError::Field { what: "block kind", expected: kind as u64, found: found as u64 };
    corrupt(segment, kind, place, 0, reason)
}

fn verify(data: DmaBuf, segment: &Segment, kind: BlockKind, place: Place, copy: usize) -> Result<Rc<Block>, LsmError> {
    match block::open(&data, segment.meta.id, place.at_bytes()) {
        Ok((found, _)) if found != kind => Err(wrong_kind(segment, kind, place, found)),
        Ok((_, payload)) => {
            let payload_len = payload.len();
            Ok(Block::new(data, payload_len, kind))
        }
        Err(reason) => Err(corrupt(segment, kind, place, copy, reason)),
    }
}

type Reading = Result<Vec<vellum_nvme::ReadFuture>, LsmError>;

/// Submits the reads of a place: one for each run of blocks that it touches.
fn start(queue: &Rc<dyn Queue>, segment: &Segment, copy: usize, place: Place) -> Reading {
    let mut reads = Vec::with_capacity(1);
    let (mut at, mut left) = (place.at_bytes(), place.len_bytes());
    while left > 0 {
        let (device_at, run) = segment.meta.locate(copy, at).ok_or_else(|| {
            let reason = BlockError::Field { what: "offset", expected: segment.meta.len_bytes, found: at };
            corrupt(segment, BlockKind::Data, place, copy, reason)
        })?;
        let len = left.min(usize::try_from(run).unwrap_or(left));
        reads.push(queue.read(device_at, DmaBuf::new(len)));
        at += len as u64;
        left -= len;
    }
    Ok(reads)
}

async fn gather(place: Place, reading: Reading) -> Result<DmaBuf, LsmError> {
    let mut reads = reading?;
    if reads.len() == 1
        && let Some(read) = reads.pop()
    {
        return Ok(read.await?);
    }
    let mut whole = DmaBuf::new(place.len_bytes());
    let mut at = 0;
    for read in reads {
        let part = read.await?;
        whole[at..at + part.len()].copy_from_slice(&part);
        at += part.len();
    }
    Ok(whole)
}

/// Reads blocks of a segment that follow each other, unverified: for readers that verify each of them.
pub fn read_span(
    queue: &Rc<dyn Queue>,
    segment: &Segment,
    place: Place,
    copy: usize,
) -> impl Future<Output = Result<DmaBuf, LsmError>> + use<> {
    gather(place, start(queue, segment, copy, place))
}

/// Reads and verifies one block of one copy, unlike [`load_block`] without a way out.
pub async fn load_copy(
    queue: &Rc<dyn Queue>,
    segment: &Segment,
    kind: BlockKind,
    place: Place,
    copy: usize,
) -> Result<Rc<Block>, LsmError> {
    let data = gather(place, start(queue, segment, copy, place)).await?;
    verify(data, segment, kind, place, copy)
}

/// Reads and verifies one block; falls back on the second copy, and then repairs the first if it is ours.
pub async fn load_block(
    queue: &Rc<dyn Queue>,
    segment: &Rc<Segment>,
    kind: BlockKind,
    place: Place,
) -> Result<Rc<Block>, LsmError> {
    let first = match gather(place, start(queue, segment, 0, place)).await {
        Ok(data) => verify(data, segment, kind, place, 0),
        Err(err) => Err(err),
    };
    let err = match first {
        Ok(block) => return Ok(block),
        Err(err) if segment.meta.mirror.is_empty() => return Err(err),
        Err(err) => err,
    };
    let data = gather(place, start(queue, segment, 1, place)).await?;
    let block = verify(data, segment, kind, place, 1)?;
    if !segment.may_be_repaired() {
        return Ok(block);
    }
    warn!(%err, "the second copy is good; the first is written again");
    if let Err(err) = write_copy(queue, segment, 0, place, &block).await {
        warn!(%err, "the repair failed");
    }
    Ok(block)
}

/// Writes a block again whose copy is bad; durable when it answers.
pub async fn write_copy(
    queue: &Rc<dyn Queue>,
    segment: &Segment,
    copy: usize,
    place: Place,
    good: &Block,
) -> Result<(), LsmError> {
    let data = DmaBuf::copy_from(good.bytes(), true).freeze();
    let (mut at, mut done) = (place.at_bytes(), 0);
    while done < data.len() {
        let Some((device_at, run)) = segment.meta.locate(copy, at) else { break };
        let len = (data.len() - done).min(usize::try_from(run).unwrap_or(usize::MAX));
        queue.write(device_at, data.slice(done..done + len), false).await?;
        at += len as u64;
        done += len;
    }
    queue.flush().await?;
    Ok(())
}

/// Decodes the entries of a block whose checksum holds; failures are still reported as corruption.
pub struct View<'a> {
    pub segment: &'a Segment,
    pub block: &'a Block,
}

impl<'a> View<'a> {
    fn fail(&self, reason: BlockError) -> Stop {
        Stop::Error(corrupt(self.segment, self.block.kind, Place::default(), 0, reason))
    }

    fn entries(&self) -> Result<Entries<'a>, Stop> {
        Entries::new(self.block.payload()).map_err(|reason| self.fail(reason))
    }

    pub fn first(&self) -> Result<Option<Entry>, Stop> {
        self.entries()?.first().map_err(|reason| self.fail(reason))
    }

    pub fn seek(&self, key: &vellum_base::Key) -> Result<Option<Entry>, Stop> {
        self.entries()?.seek(key).map_err(|reason| self.fail(reason))
    }

    pub fn seek_floor(&self, key: &vellum_base::Key) -> Result<Option<Entry>, Stop> {
        self.entries()?.seek_floor(key).map_err(|reason| self.fail(reason))
    }

    /// The next entry, whose key is not less: whoever reads on comes to an end.
    pub fn after(&self, entry: &Entry) -> Result<Option<Entry>, Stop> {
        let next = self.entries()?.decode(entry.next_at, &entry.key).map_err(|reason| self.fail(reason))?;
        if next.as_ref().is_some_and(|next| next.key < entry.key) {
            return Err(self.disorder(entry));
        }
        Ok(next)
    }

    /// What comes after `entry` has a lesser key.
    pub fn disorder(&self, entry: &Entry) -> Stop {
        self.fail(BlockError::Malformed { at: entry.next_at })
    }

    pub fn value(&self, entry: &Entry) -> Option<&'a [u8]> {
        entry.value.as_ref().map(|range| self.block.payload().get(range.clone()).unwrap_or_default())
    }

    /// Of an index: the block that the entry stands for.
    pub fn child(&self, entry: &Entry) -> Result<Place, Stop> {
        let place = self.value(entry).and_then(get_index_value);
        place.ok_or_else(|| self.fail(BlockError::Malformed { at: entry.next_at }))
    }

    /// Of a tombstone block: the range's first key; its epochs, newest first, go to `epochs`.
    pub fn range_first(&self, entry: &Entry, epochs: &mut Vec<vellum_base::Epoch>) -> Result<vellum_base::Key, Stop> {
        let value = self.value(entry).unwrap_or_default();
        vellum_format::segment::entry::get_range_value(value, &entry.key, epochs)
            .ok_or_else(|| self.fail(BlockError::Malformed { at: entry.next_at }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::{Epoch, Ino, Key};
    use vellum_format::SegmentMeta;
    use vellum_format::segment::block::HEADER_LEN;
    use vellum_format::segment::entry::EntryWriter;

    /// Found by fuzzing whole images: a scan stood at such a block for ever.
    #[test]
    fn keys_that_do_not_ascend_are_damage() {
        let mut writer = EntryWriter::new(1);
        for n in [3, 5, 4] {
            writer.add(&Key::fs(Ino(n), 1, 0, 0, 0), Epoch::NONE, None);
        }
        let len = writer.payload_len();
        let mut data = DmaBuf::zeroed(4096);
        writer.finish_into(&mut data[HEADER_LEN..HEADER_LEN + len]);
        let block = Block::new(data, len, BlockKind::Data);
        let segment = Segment::borrowed(SegmentMeta::default());
        let view = View { segment: &segment, block: &block };
        let Ok(Some(first)) = view.first() else { panic!("three entries") };
        let Ok(Some(second)) = view.after(&first) else { panic!("three entries") };
        assert!(matches!(view.after(&second), Err(Stop::Error(LsmError::Corrupt { .. }))));
    }
}
