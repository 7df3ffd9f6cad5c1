//! Dirty blocks of one file, as runs of neighbours in aligned memory.
//!
//! Invariants: runs do not overlap; every block in one is a whole image of the file's block, with zeros past the file's
//! end, so that a run can go to the device as it is. A run's memory is allocated ahead of sequential growth, up to a
//! data frame, so a large file is copied once: from the caller into the run.

use std::collections::BTreeMap;

use vellum_base::{BLOCK_SIZE, DmaBuf, DmaSlice};
use vellum_format::item::MAX_EXTENT_BLOCKS;

/// Blocks in the largest run and the largest data frame.
pub const FRAME_BLOCKS: usize = MAX_EXTENT_BLOCKS as usize;

#[derive(Default)]
pub struct Runs {
    by_first: BTreeMap<u64, DmaBuf>,
    len_blocks: usize,
}

fn blocks_of(buf: &DmaBuf) -> u64 {
    (buf.len() / BLOCK_SIZE) as u64
}

impl Runs {
    pub fn len_blocks(&self) -> usize {
        self.len_blocks
    }

    pub fn is_empty(&self) -> bool {
        self.len_blocks == 0
    }

    /// First block, and the block after the last.
    pub fn span(&self) -> Option<(u64, u64)> {
        let first = *self.by_first.first_key_value()?.0;
        let (last, buf) = self.by_first.last_key_value()?;
        Some((first, last + blocks_of(buf)))
    }

    fn run_at(&self, block: u64) -> Option<(u64, &DmaBuf)> {
        let (first, buf) = self.by_first.range(..=block).next_back()?;
        (block < first + blocks_of(buf)).then_some((*first, buf))
    }

    pub fn contains(&self, block: u64) -> bool {
        self.run_at(block).is_some()
    }

    pub fn get(&self, block: u64) -> Option<&[u8]> {
        let (first, buf) = self.run_at(block)?;
        let at = (block - first) as usize * BLOCK_SIZE;
        Some(&buf[at..at + BLOCK_SIZE])
    }

    pub fn get_mut(&mut self, block: u64) -> Option<&mut [u8]> {
        let (first, buf) = self.by_first.range_mut(..=block).next_back()?;
        let at = (block - first) as usize * BLOCK_SIZE;
        buf.get_mut(at..at + BLOCK_SIZE)
    }

    /// Writes whole blocks from `first_block`. `growth_blocks` is how much memory a new run may take ahead of need.
    pub fn write(&mut self, first_block: u64, data: &[u8], growth_blocks: usize) {
        debug_assert!(data.len().is_multiple_of(BLOCK_SIZE));
        let (mut block, mut rest) = (first_block, data);
        while !rest.is_empty() {
            let room = self.room_at(block, rest.len() / BLOCK_SIZE, growth_blocks);
            let (now, later) = rest.split_at(room.len().min(rest.len()));
            room[..now.len()].copy_from_slice(now);
            block += (now.len() / BLOCK_SIZE) as u64;
            rest = later;
        }
    }

    /// The memory of one block, new if it was not there (then of unspecified content: the caller fills it).
    pub fn block_for_write(&mut self, block: u64, growth_blocks: usize) -> &mut [u8] {
        &mut self.room_at(block, 1, growth_blocks)[..BLOCK_SIZE]
    }

    /// Memory for at least one and at most `want` blocks from `block`: of the run that holds it, else by growing the
    /// run that ends there, else of a new run.
    fn room_at(&mut self, block: u64, want: usize, growth_blocks: usize) -> &mut [u8] {
        let mut until_next = want;
        if let Some((next, _)) = self.by_first.range(block + 1..).next() {
            until_next = until_next.min((next - block) as usize);
        }
        let before = self.by_first.range(..=block).next_back().map(|(first, buf)| {
            let used = blocks_of(buf);
            (*first, used, (buf.capacity() / BLOCK_SIZE).min(FRAME_BLOCKS) as u64)
        });
        let (first, end) = match before {
            Some((first, used, _)) if block < first + used => (first, first + used),
            Some((first, used, capacity)) if block == first + used && used < capacity => {
                let add = (until_next as u64).min(capacity - used);
                self.len_blocks += add as usize;
                if let Some(buf) = self.by_first.get_mut(&first) {
                    buf.set_len((used + add) as usize * BLOCK_SIZE);
                }
                (first, first + used + add)
            }
            _ => {
                let len = until_next.min(FRAME_BLOCKS);
                // Behind a full run somebody writes on and on: twice as much as there.
                let goes_on =
                    before.filter(|(first, used, _)| block == first + used).map_or(0, |(_, used, _)| 2 * used);
                let ahead = growth_blocks.max(goes_on as usize).min(FRAME_BLOCKS);
                let mut buf = DmaBuf::new(len.max(ahead) * BLOCK_SIZE);
                buf.set_len(len * BLOCK_SIZE);
                self.len_blocks += len;
                self.by_first.insert(block, buf);
                (block, block + len as u64)
            }
        };
        let from = (block - first) as usize * BLOCK_SIZE;
        let to = (end - first) as usize * BLOCK_SIZE;
        match self.by_first.get_mut(&first) {
            Some(buf) => &mut buf[from..to],
            None => unreachable!("the run was found or made above"),
        }
    }

    /// Forgets every block from `block` on.
    pub fn truncate(&mut self, block: u64) {
        let beyond = self.by_first.split_off(&block);
        self.len_blocks -= beyond.values().map(|b| blocks_of(b) as usize).sum::<usize>();
        if let Some((first, buf)) = self.by_first.last_entry().map(|e| (*e.key(), e.into_mut())) {
            let keep = (block - first).min(blocks_of(buf));
            self.len_blocks -= (blocks_of(buf) - keep) as usize;
            buf.set_len(keep as usize * BLOCK_SIZE);
        }
    }

    /// Removes one block (it is written elsewhere).
    pub fn remove(&mut self, block: u64) {
        let Some((first, len)) = self.run_at(block).map(|(first, buf)| (first, blocks_of(buf))) else { return };
        let Some(mut buf) = self.by_first.remove(&first) else { return };
        let at = (block - first) as usize;
        if block + 1 < first + len {
            self.by_first.insert(block + 1, DmaBuf::copy_from(&buf[(at + 1) * BLOCK_SIZE..], false));
        }
        if at > 0 {
            buf.set_len(at * BLOCK_SIZE);
            self.by_first.insert(first, buf);
        }
        self.len_blocks -= 1;
    }

    /// Forgets the blocks `first..end`.
    pub fn remove_range(&mut self, first: u64, end: u64) {
        let from = self.run_at(first).map_or(first, |(start, _)| start);
        let touched: Vec<u64> = self.by_first.range(from..end.max(from)).map(|(start, _)| *start).collect();
        for start in touched {
            let Some(mut buf) = self.by_first.remove(&start) else { continue };
            let run_end = start + blocks_of(&buf);
            self.len_blocks -= (run_end.min(end) - start.max(first)) as usize;
            if end < run_end {
                let at = (end - start) as usize * BLOCK_SIZE;
                self.by_first.insert(end, DmaBuf::copy_from(&buf[at..], false));
            }
            if start < first {
                buf.set_len((first - start) as usize * BLOCK_SIZE);
                self.by_first.insert(start, buf);
            }
        }
    }

    /// The first run that has blocks at or after `block`: its first block and the block after its last.
    pub fn next_run(&self, block: u64) -> Option<(u64, u64)> {
        let here = self.run_at(block);
        let (first, buf) = here.or_else(|| self.by_first.range(block..).next().map(|(first, buf)| (*first, buf)))?;
        Some((first, first + blocks_of(buf)))
    }

    /// Takes up to `max_blocks` from the front, frozen.
    pub fn take_front(&mut self, max_blocks: usize) -> Vec<(u64, DmaSlice)> {
        let mut taken = Vec::new();
        let mut left = max_blocks;
        while left > 0 {
            let Some((first, buf)) = self.by_first.pop_first() else { break };
            let len = blocks_of(&buf) as usize;
            self.len_blocks -= len.min(left);
            if len <= left {
                taken.push((first, buf.freeze()));
                left -= len;
            } else {
                let rest = DmaBuf::copy_from(&buf[left * BLOCK_SIZE..], false);
                self.by_first.insert(first + left as u64, rest);
                taken.push((first, buf.freeze().slice(0..left * BLOCK_SIZE)));
                left = 0;
            }
        }
        taken
    }

    /// Gives every block within `first..end` to `f`.
    pub fn for_each_in(&self, first: u64, end: u64, mut f: impl FnMut(u64, &[u8])) {
        let from = self.run_at(first).map_or(first, |(start, _)| start);
        for (start, buf) in self.by_first.range(from..end) {
            for block in (*start).max(first)..(start + blocks_of(buf)).min(end) {
                let at = (block - start) as usize * BLOCK_SIZE;
                f(block, &buf[at..at + BLOCK_SIZE]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use vellum_base::prng::Prng;

    fn image(byte: u8, blocks: usize) -> Vec<u8> {
        vec![byte; blocks * BLOCK_SIZE]
    }

    #[test]
    fn memory_is_taken_ahead_of_writers_that_go_on() {
        let mut runs = Runs::default();
        let capacities =
            |runs: &Runs| runs.by_first.values().map(|buf| buf.capacity() / BLOCK_SIZE).collect::<Vec<_>>();
        runs.write(50, &image(1, 1), 1);
        runs.write(100, &image(2, 1), 1);
        assert_eq!(capacities(&runs), [1, 1], "blocks at random places");
        (101..107).for_each(|block| runs.write(block, &image(3, 1), 1));
        assert_eq!(capacities(&runs), [1, 1, 2, 4]);
    }

    #[test]
    fn sequential_growth_stays_in_one_run_of_a_frame() {
        let mut runs = Runs::default();
        for b in 0..300 {
            runs.write(b, &image(b as u8, 1), FRAME_BLOCKS);
        }
        assert_eq!(runs.by_first.keys().copied().collect::<Vec<_>>(), [0, 256]);
        let front = runs.take_front(FRAME_BLOCKS);
        assert_eq!((front.len(), front[0].0, front[0].1.len()), (1, 0, 1 << 20));
        assert_eq!((runs.len_blocks(), runs.span()), (44, Some((256, 300))));
    }

    #[test]
    fn runs_agree_with_a_plain_map() {
        for seed in 0..30 {
            let mut rng = Prng::new(seed);
            let (mut runs, mut model) = (Runs::default(), BTreeMap::<u64, u8>::new());
            for step in 0..300 {
                let (block, n, byte) = (rng.below(64), 1 + rng.below(8), rng.next_u64() as u8);
                match rng.below(13) {
                    4 => {
                        runs.remove_range(block, block + 3 * n);
                        model.retain(|b, _| !(block..block + 3 * n).contains(b));
                    }
                    0 => {
                        runs.truncate(block);
                        model.split_off(&block);
                    }
                    1 => {
                        runs.remove(block);
                        model.remove(&block);
                    }
                    2 => {
                        let expected: Vec<u64> = model.keys().copied().take(n as usize).collect();
                        let mut got = Vec::new();
                        for (first, slice) in runs.take_front(n as usize) {
                            for (i, b) in slice.chunks(BLOCK_SIZE).enumerate() {
                                assert!(b.iter().all(|x| *x == model[&(first + i as u64)]));
                                got.push(first + i as u64);
                            }
                        }
                        assert_eq!(got, expected, "seed {seed} step {step}");
                        model.retain(|b, _| !expected.contains(b));
                    }
                    3 => {
                        runs.block_for_write(block, 1).fill(byte);
                        model.insert(block, byte);
                    }
                    _ => {
                        runs.write(block, &image(byte, n as usize), 1 + rng.below(16) as usize);
                        model.extend((block..block + n).map(|b| (b, byte)));
                    }
                }
                assert_eq!(runs.len_blocks(), model.len(), "seed {seed} step {step}");
                let mut seen = BTreeMap::new();
                runs.for_each_in(3, 60, |b, data| seen.extend([(b, data[17])]));
                assert_eq!(seen, model.range(3..60).map(|(k, v)| (*k, *v)).collect());
                let next = runs.next_run(block).map(|(first, _)| first.max(block));
                assert_eq!(next, model.range(block..).next().map(|(b, _)| *b), "seed {seed} step {step}");
                for b in 0..80 {
                    assert_eq!(runs.get(b).map(|d| d[0]), model.get(&b).copied());
                    assert_eq!(runs.get_mut(b).map(|d| d[4095]), model.get(&b).copied());
                }
            }
        }
    }
}
