//! The end of one reactor's log: where the next part goes and how much room is left. Pure.

use std::collections::VecDeque;

use vellum_base::{BLOCK_SIZE, Epoch, LogId};

use super::ring::Ring;

#[derive(Debug)]
pub struct LogWriter {
    pub id: LogId,
    pub ring: Ring,
    /// Next logical position.
    head: u64,
    /// Positions below may be overwritten: the manifest says so durably.
    floor: u64,
    /// Bytes promised to admitted batches whose part is not placed yet.
    charged: usize,
    /// (epoch, first position) of the parts above the floor.
    parts: VecDeque<(Epoch, u64)>,
}

impl LogWriter {
    pub fn new(id: LogId, ring: Ring) -> LogWriter {
        LogWriter { id, ring, head: 0, floor: 0, charged: 0, parts: VecDeque::new() }
    }

    pub fn capacity_bytes(&self) -> usize {
        self.ring.capacity() as usize * BLOCK_SIZE
    }

    /// In use on the device, in bytes.
    pub fn used_bytes(&self) -> usize {
        (self.head - self.floor) as usize * BLOCK_SIZE
    }

    /// Promises `bytes` to a batch; false when more than `most` would be used then.
    pub fn charge(&mut self, bytes: usize, most: usize) -> bool {
        let ok = self.used_bytes() + self.charged + bytes <= most.min(self.capacity_bytes());
        if ok {
            self.charged += bytes;
        }
        ok
    }

    pub fn release(&mut self, bytes: usize) {
        self.charged -= bytes.min(self.charged);
    }

    /// Places a part; `None` when the promises were broken (our own bug), for the store to fail on.
    pub fn place(&mut self, epoch: Epoch, blocks: u64) -> Option<u64> {
        if self.head - self.floor + blocks > self.ring.capacity() {
            return None;
        }
        let place = self.head;
        self.head += blocks;
        self.parts.push_back((epoch, place));
        Some(place)
    }

    /// Past half of its bound: the epoch through which flushing would win a quarter, at least the oldest part's.
    pub fn pressing_epoch(&self) -> Option<Epoch> {
        if self.used_bytes() + self.charged <= self.capacity_bytes() / 2 {
            return None;
        }
        let quarter = self.floor + self.ring.capacity() / 4;
        let last = self.parts.iter().take_while(|(_, place)| *place < quarter).last();
        last.or(self.parts.front()).map(|(epoch, _)| *epoch)
    }

    /// The floor when all epochs below `oldest_unflushed` (all that are `durable` when `None`) are in segments.
    pub fn new_floor(&self, oldest_unflushed: Option<Epoch>, durable: Epoch) -> u64 {
        let keep = oldest_unflushed.unwrap_or(durable.next()).min(durable.next());
        self.parts.iter().find(|(epoch, _)| *epoch >= keep).map_or(self.head, |(_, place)| *place)
    }

    pub fn floor(&self) -> u64 {
        self.floor
    }

    pub fn set_floor(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        while self.parts.front().is_some_and(|(_, place)| *place < self.floor) {
            self.parts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::ChunkIndex;

    #[test]
    fn room_is_what_is_neither_used_nor_promised() {
        let mut log = LogWriter::new(LogId(1), Ring::new(vec![ChunkIndex(1)], 16));
        assert!(!log.charge(10 * BLOCK_SIZE, 9 * BLOCK_SIZE));
        assert!(log.charge(10 * BLOCK_SIZE, usize::MAX));
        assert!(!log.charge(7 * BLOCK_SIZE, usize::MAX));
        log.release(10 * BLOCK_SIZE);
        for e in 1..=4 {
            assert_eq!(log.place(Epoch(e), 4), Some((e - 1) * 4));
        }
        assert_eq!(log.place(Epoch(5), 1), None);
        assert_eq!(log.pressing_epoch(), Some(Epoch(1)));
        assert_eq!(log.new_floor(Some(Epoch(3)), Epoch(4)), 8);
        assert_eq!(log.new_floor(None, Epoch(2)), 8, "what is not durable stays");
        assert_eq!(log.new_floor(None, Epoch(4)), 16);
        log.set_floor(8);
        assert_eq!(log.place(Epoch(5), 8), Some(16));
        assert_eq!(log.pressing_epoch(), Some(Epoch(3)));
    }
}
