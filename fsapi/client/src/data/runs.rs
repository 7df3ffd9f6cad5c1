//! Runs of provisional blocks: where each is on the device, its content while that is not durable, who refers to it.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BatchNo, BlockRange, DmaSlice};

use super::PROVISIONAL;
use crate::ClientError;
use crate::lock::Era;

struct Run {
    len_blocks: u32,
    /// First block on the device.
    place: u64,
    /// `None` when it is durable.
    data: Option<DmaSlice>,
    /// The first batch that refers to it, and the last.
    batch: Option<BatchNo>,
    last: BatchNo,
    /// Places of it in the queues below: it is forgotten with the last.
    places: u32,
}

/// Part of a block range.
pub(crate) enum Piece {
    Memory(DmaSlice),
    Device(BlockRange),
}

impl Piece {
    pub fn len_blocks(&self) -> u64 {
        match self {
            Piece::Memory(data) => (data.len() / BLOCK_SIZE) as u64,
            Piece::Device(range) => range.len_blocks.into(),
        }
    }
}

/// Data to send again: neighbours together, so that extents that span them stay whole.
pub(crate) struct Resend {
    /// Provisional address of each slice.
    pub start: u64,
    pub slices: Vec<DmaSlice>,
}

pub(crate) struct Runs {
    /// By provisional address.
    runs: BTreeMap<u64, Run>,
    next: u64,
    by_batch: BTreeMap<BatchNo, Vec<u64>>,
    /// Durable runs that a later batch moved: their translations are needed until that batch is durable.
    by_last: BTreeMap<BatchNo, Vec<u64>>,
    /// Translations of durable runs, oldest first, each with the guards that may still use it.
    dead: VecDeque<(Rc<Era>, Vec<u64>)>,
    retained_bytes: usize,
    referred_bytes: usize,
}

impl Default for Runs {
    fn default() -> Self {
        Runs {
            runs: BTreeMap::new(),
            next: PROVISIONAL,
            by_batch: BTreeMap::new(),
            by_last: BTreeMap::new(),
            dead: VecDeque::new(),
            retained_bytes: 0,
            referred_bytes: 0,
        }
    }
}

impl Runs {
    pub fn retained_bytes(&self) -> usize {
        self.retained_bytes
    }

    /// Retained bytes that some batch refers to: those go when it is durable.
    pub fn referred_bytes(&self) -> usize {
        self.referred_bytes
    }

    /// Takes written data. One provisional range for each range on the device, with a gap after it, so that ranges
    /// that are neighbours by chance are never taken for one.
    pub fn add(&mut self, data: DmaSlice, places: &[BlockRange]) -> Vec<BlockRange> {
        self.retained_bytes += data.len();
        let mut at = 0;
        let mut provisional = Vec::with_capacity(places.len());
        for place in places {
            let start = self.next;
            self.next += u64::from(place.len_blocks) + 1;
            let slice = data.slice(at..at + place.len_bytes());
            at += place.len_bytes();
            let run = Run {
                len_blocks: place.len_blocks,
                place: place.start.0,
                data: Some(slice),
                batch: None,
                last: BatchNo(0),
                places: 0,
            };
            self.runs.insert(start, run);
            provisional.push(BlockRange::new(start, place.len_blocks));
        }
        provisional
    }

    fn containing(&self, block: u64) -> Option<(u64, &Run)> {
        let (start, run) = self.runs.range(..=block).next_back()?;
        (block - start < u64::from(run.len_blocks)).then_some((*start, run))
    }

    /// The device's address of a provisional block.
    pub fn place(&self, block: u64) -> Option<u64> {
        self.containing(block).map(|(start, run)| run.place + (block - start))
    }

    pub fn refer(&mut self, start: u64, len_blocks: u32, batch: BatchNo) {
        let end = start + u64::from(len_blocks);
        let mut at = start;
        while at < end {
            let Some((run_start, run)) = self.containing(at) else { return };
            let run_end = run_start + u64::from(run.len_blocks);
            if run.batch.is_none() {
                // A part may be referred to now and the rest by a later batch: each keeps its own date.
                self.cut(run_start, at);
                self.cut(at, end);
                if let Some(run) = self.runs.get_mut(&at) {
                    run.batch = Some(batch);
                    run.places += 1;
                    self.referred_bytes += run.len_blocks as usize * BLOCK_SIZE;
                    self.by_batch.entry(batch).or_default().push(at);
                }
            }
            at = run_end;
        }
        // Runs that begin before `start` or end behind `end` keep their translations a little longer than needed.
        let first = self.containing(start).map_or(start, |(run_start, _)| run_start);
        for (start, run) in self.runs.range_mut(first..end) {
            if run.data.is_none() && run.last < batch {
                // It is durable already, and perhaps dead, when it is moved: it dies once more after this batch.
                self.by_last.entry(batch).or_default().push(*start);
                run.places += 1;
            }
            run.last = run.last.max(batch);
        }
    }

    /// Makes `block` the begin of a run of its own, if it lies within the run at `start`.
    fn cut(&mut self, start: u64, block: u64) {
        let Some(run) = self.runs.get_mut(&start) else { return };
        let head = block.saturating_sub(start);
        if head == 0 || head >= u64::from(run.len_blocks) {
            return;
        }
        let tail = Run {
            len_blocks: run.len_blocks - head as u32,
            place: run.place + head,
            data: run.data.as_ref().map(|d| d.slice(head as usize * BLOCK_SIZE..d.len())),
            batch: run.batch,
            last: run.last,
            places: run.places,
        };
        run.len_blocks = head as u32;
        run.data = run.data.as_ref().map(|d| d.slice(0..head as usize * BLOCK_SIZE));
        self.runs.insert(block, tail);
    }

    /// Frees the data of durable batches. The runs whose translations only guards may still need.
    pub fn release(&mut self, through: BatchNo) -> Vec<u64> {
        let later = self.by_batch.split_off(&through.next());
        let durable = std::mem::replace(&mut self.by_batch, later);
        let starts: Vec<u64> = durable.into_values().flatten().collect();
        for start in &starts {
            if let Some(run) = self.runs.get_mut(start)
                && run.data.take().is_some()
            {
                self.retained_bytes -= run.len_blocks as usize * BLOCK_SIZE;
                self.referred_bytes -= run.len_blocks as usize * BLOCK_SIZE;
            }
        }
        let later = self.by_last.split_off(&through.next());
        let moved = std::mem::replace(&mut self.by_last, later).into_values().flatten();
        let all: Vec<u64> = starts.into_iter().chain(moved).collect();
        all.into_iter().filter(|start| !self.linger(*start, through)).collect()
    }

    /// Guards up to `era` may ask for these runs; no batch does.
    pub fn die(&mut self, era: Rc<Era>, starts: Vec<u64>) {
        self.dead.push_back((era, starts));
    }

    /// True when a batch after `through` still refers to the run: then it is looked at again when that is durable.
    fn linger(&mut self, start: u64, through: BatchNo) -> bool {
        match self.runs.get(&start) {
            Some(run) if run.last > through => {
                self.by_last.entry(run.last).or_default().push(start);
                true
            }
            _ => false,
        }
    }

    /// Forgets translations that no guard and no batch can ask for any more.
    pub fn bury(&mut self) {
        while self.dead.front().is_some_and(|(era, _)| Rc::strong_count(era) == 1) {
            for start in self.dead.pop_front().into_iter().flat_map(|(_, starts)| starts) {
                if let Some(run) = self.runs.get_mut(&start) {
                    run.places -= 1;
                    if run.places == 0 {
                        self.runs.remove(&start);
                    }
                }
            }
        }
    }

    pub fn pieces(&self, range: BlockRange) -> Result<Vec<Piece>, ClientError> {
        if range.start.0 < PROVISIONAL {
            return Ok(vec![Piece::Device(range)]);
        }
        let mut pieces = Vec::new();
        let (mut at, end) = (range.start.0, range.start.0.saturating_add(u64::from(range.len_blocks)));
        while at < end {
            let (start, run) = self.containing(at).ok_or(ClientError::StaleRange { start: at })?;
            let skip = (at - start) as u32;
            let take = (run.len_blocks - skip).min((end - at) as u32);
            pieces.push(match &run.data {
                Some(data) => {
                    let from = skip as usize * BLOCK_SIZE;
                    Piece::Memory(data.slice(from..from + take as usize * BLOCK_SIZE))
                }
                None => Piece::Device(BlockRange::new(run.place + u64::from(skip), take)),
            });
            at += u64::from(take);
        }
        Ok(pieces)
    }

    /// All data that a new leader must get again.
    pub fn to_resend(&self) -> Vec<Resend> {
        let mut all: Vec<Resend> = Vec::new();
        let mut end = 0;
        for (start, run) in &self.runs {
            let Some(data) = &run.data else { continue };
            match all.last_mut() {
                Some(last) if end == *start => last.slices.push(data.clone()),
                _ => all.push(Resend { start: *start, slices: vec![data.clone()] }),
            }
            end = start + u64::from(run.len_blocks);
        }
        all
    }

    /// Puts data that was sent again to its new places. False when an extent that is whole would be torn.
    pub fn moved(&mut self, start: u64, places: &[BlockRange]) {
        let mut at = start;
        for place in places {
            let end = at + u64::from(place.len_blocks);
            if let Some((run_start, _)) = self.containing(at) {
                self.cut_tracked(run_start, at);
            }
            if let Some((run_start, _)) = self.containing(end - 1) {
                self.cut_tracked(run_start, end);
            }
            for (run_start, run) in self.runs.range_mut(at..end) {
                run.place = place.start.0 + (run_start - at);
            }
            at = end;
        }
    }

    /// As `cut`, for a run that a batch may refer to already.
    fn cut_tracked(&mut self, start: u64, block: u64) {
        self.cut(start, block);
        if let Some(batch) = self.runs.get(&block).and_then(|r| r.batch)
            && let Some(starts) = self.by_batch.get_mut(&batch)
            && !starts.contains(&block)
        {
            starts.push(block);
        }
    }

    /// Lengths of the parts of a provisional range that are whole on the device.
    pub fn parts(&self, start: u64, len_blocks: u32) -> Vec<u32> {
        let end = start + u64::from(len_blocks);
        let (mut at, mut parts, mut expected) = (start, Vec::<u32>::new(), None);
        while at < end {
            let Some((run_start, run)) = self.containing(at) else { break };
            let place = run.place + (at - run_start);
            let take = (run_start + u64::from(run.len_blocks)).min(end) - at;
            match parts.last_mut() {
                Some(last) if expected == Some(place) => *last += take as u32,
                _ => parts.push(take as u32),
            }
            expected = Some(place + take);
            at += take;
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::DmaBuf;

    fn data(blocks: usize) -> DmaSlice {
        let mut buf = DmaBuf::zeroed(blocks * BLOCK_SIZE);
        for (i, block) in buf.chunks_mut(BLOCK_SIZE).enumerate() {
            block.fill(i as u8);
        }
        buf.freeze()
    }

    #[test]
    fn data_stays_until_each_part_is_durable_and_its_translation_until_no_guard_can_ask() {
        let mut runs = Runs::default();
        let r = runs.add(data(8), &[BlockRange::new(100, 8)])[0];
        runs.refer(r.start.0, 3, BatchNo(1));
        runs.refer(r.start.0 + 3, 5, BatchNo(2));
        assert_eq!((runs.retained_bytes(), runs.referred_bytes()), (8 * BLOCK_SIZE, 8 * BLOCK_SIZE));
        let era = Rc::new(Era(1));
        let guard = era.clone();
        let dead = runs.release(BatchNo(1));
        runs.die(era, dead);
        runs.bury();
        let pieces = runs.pieces(BlockRange::new(r.start.0 + 2, 2)).unwrap();
        assert!(matches!(pieces[0], Piece::Device(d) if d == BlockRange::new(102, 1)));
        assert!(matches!(&pieces[1], Piece::Memory(m) if m[0] == 3));
        drop(guard);
        runs.bury();
        assert!(runs.pieces(BlockRange::new(r.start.0, 1)).is_err());
        assert_eq!(runs.to_resend().len(), 1);
    }

    #[test]
    fn neighbours_are_sent_again_together_and_may_fall_apart() {
        let mut runs = Runs::default();
        let r = runs.add(data(8), &[BlockRange::new(100, 8)])[0];
        runs.refer(r.start.0, 3, BatchNo(1));
        let again = runs.to_resend();
        assert_eq!((again.len(), again[0].slices.len()), (1, 2));
        runs.moved(r.start.0, &[BlockRange::new(50, 2), BlockRange::new(70, 6)]);
        assert_eq!(runs.parts(r.start.0, 8), vec![2, 6]);
        assert_eq!((runs.place(r.start.0 + 1), runs.place(r.start.0 + 2)), (Some(51), Some(70)));
        runs.release(BatchNo(1));
        assert_eq!(runs.retained_bytes(), 5 * BLOCK_SIZE);
    }

    #[test]
    fn a_durable_run_that_a_later_batch_moved_is_translated_until_that_is_durable() {
        let mut runs = Runs::default();
        let start = runs.add(data(4), &[BlockRange::new(100, 4)])[0].start.0;
        runs.refer(start, 4, BatchNo(1));
        runs.refer(start + 2, 2, BatchNo(3));
        assert!(runs.release(BatchNo(1)).is_empty());
        runs.bury();
        assert_eq!(runs.place(start + 2), Some(102));
        let dead = runs.release(BatchNo(3));
        let era = Rc::new(Era(2));
        let old = era.clone();
        runs.die(era, dead);
        // A guard of that time moves it again: it stays for later guards too.
        runs.refer(start, 2, BatchNo(5));
        drop(old);
        runs.bury();
        assert_eq!(runs.place(start), Some(100));
        let dead = runs.release(BatchNo(5));
        let era = Rc::new(Era(3));
        let later = era.clone();
        runs.die(era, dead);
        runs.bury();
        assert_eq!(runs.place(start), Some(100));
        drop(later);
        runs.bury();
        assert_eq!(runs.place(start), None);
    }
}
