//! When epochs close, are sealed, flushed and durable. A state machine: inputs and time in, commands out.
//!
//! ```text
//!  open -> Close -> parts ready (placed, checksummed) -> Seal   \
//!                \-> parts written ------------------------------> Flush (-> Confirm) -> Durable
//! ```
//! Parts and seal are written in parallel; the flush begins when both are written. Epochs become durable in order.
//! With a volatile write cache a seal may reach the medium before the file data that its epoch refers to (which was written
//! when its batches were admitted). So the seal lists where that data is, and a recovery that finds the seal unconfirmed reads
//! the data again. Where that would be much, the data gets a flush of its own before the seal is written.
//! While something is being sealed or flushed, those who wait gather in the open epoch (group commit).
//! In a cluster a flushed epoch is acknowledged when the node is confirmed to lead still, by a question that was asked after
//! the flush; meanwhile the next epoch goes on.

use std::collections::VecDeque;
use std::time::Duration;

use vellum_base::{BLOCK_SIZE, BlockAddr, BlockRange, Epoch, Fsid, Mutant, Term, mutant};
use vellum_format::{MAX_NEW_DATA, PartRef, Seal};
use vellum_rt::Instant;

use super::ring::Ring;

/// Epochs that may be closed and not yet durable.
pub const MAX_IN_FLIGHT: usize = 4;
/// An epoch with changes that nobody waits for closes after this.
pub const EPOCH_TIMER: Duration = Duration::from_millis(5);
/// After this much quiet a seal says that the last changes are durable, so that later rot among them is told from a
/// torn end of the log.
pub const CONFIRM_AFTER: Duration = Duration::from_millis(200);
/// An empty epoch is sealed all the same when this many were not: it bounds what a recovery must jump over.
pub const MAX_UNSEALED: u64 = 1000;
/// Added to the last known epoch by a recovery.
pub const EPOCH_GAP: u64 = 1 << 20;
const _: () = assert!(EPOCH_GAP > 100 * (MAX_UNSEALED + MAX_IN_FLIGHT as u64));
/// Blocks of new data that a recovery may have to read again for one epoch.
pub const MAX_NEW_BLOCKS: u64 = 256;
/// Seals that stay free in the ring.
const RING_SLACK: u64 = 2 * MAX_IN_FLIGHT as u64;

#[derive(Debug, PartialEq)]
pub enum Command {
    /// Tell every reactor.
    Close(Epoch),
    /// Flush the data of this epoch; its seal waits for it.
    FlushData(Epoch),
    /// Write this block.
    Seal {
        number: u64,
        addr: BlockAddr,
        block: Box<[u8; BLOCK_SIZE]>,
    },
    Flush,
    /// Ask whether this node leads still, on behalf of what is flushed.
    Confirm,
    /// Tell every reactor.
    Durable(Epoch),
    /// The ring of seals fills up: everything up to this epoch should be in segments.
    FlushThrough(Epoch),
}

#[derive(Debug, PartialEq, Clone, Copy)]
enum SealState {
    Waiting,
    FlushingData,
    DataFlushed,
    Writing(u64),
    Written,
    /// Nothing changed: none is written.
    None,
}

#[derive(Debug)]
struct Sealing {
    epoch: Epoch,
    force: bool,
    /// Where data is that it refers to and that no flush has covered yet.
    new_data: Vec<BlockRange>,
    ready: usize,
    written: usize,
    parts: Vec<PartRef>,
    seal: SealState,
}

#[derive(Debug)]
pub struct Coordinator {
    reactors: usize,
    volatile_cache: bool,
    term: Term,
    fsid: Fsid,
    ring: Ring,
    first_number: u64,
    open: Epoch,
    in_flight: VecDeque<Sealing>,
    dirty_since: Option<Instant>,
    wanted: Epoch,
    next_number: u64,
    prev_hash: u64,
    /// (number, epoch, hash) of the seals above the floor, ends with the newest.
    seals: VecDeque<(u64, Epoch, u64)>,
    floor_number: u64,
    durable_number: u64,
    last_sealed: Epoch,
    flushing: Option<Epoch>,
    /// Epochs are confirmed before they are acknowledged.
    gated: bool,
    /// Everything through here is on the medium, acknowledged or not.
    flushed: Epoch,
    /// What the question that was asked stands for.
    confirming: Option<Epoch>,
    confirm_at: Option<Instant>,
    asked_through: Epoch,
}

/// Where the numbers of a run begin.
#[derive(Debug, Clone)]
pub struct Start {
    pub term: Term,
    pub fsid: Fsid,
    pub first_epoch: Epoch,
    pub first_number: u64,
    pub base_hash: u64,
}

impl Coordinator {
    pub fn new(reactors: usize, volatile_cache: bool, gated: bool, ring: Ring, start: &Start) -> Coordinator {
        let base = start.first_number - 1;
        Coordinator {
            reactors,
            volatile_cache,
            term: start.term,
            fsid: start.fsid,
            ring,
            first_number: start.first_number,
            open: start.first_epoch,
            in_flight: VecDeque::new(),
            dirty_since: None,
            wanted: Epoch::NONE,
            next_number: start.first_number,
            prev_hash: start.base_hash,
            seals: VecDeque::from([(base, Epoch(start.first_epoch.0 - 1), start.base_hash)]),
            floor_number: base,
            durable_number: base,
            last_sealed: start.first_epoch,
            flushing: None,
            gated,
            flushed: Epoch(start.first_epoch.0 - 1),
            confirming: None,
            confirm_at: None,
            asked_through: Epoch::NONE,
        }
    }

    pub fn dirty(&mut self, epoch: Epoch, now: Instant) {
        if epoch >= self.open {
            self.dirty_since.get_or_insert(now);
            self.confirm_at = None;
        }
    }

    /// Somebody waits for `epoch`.
    pub fn want(&mut self, epoch: Epoch) {
        self.wanted = self.wanted.max(epoch);
    }

    /// Somebody waits for what is not on the medium.
    pub fn is_waited_for(&self) -> bool {
        self.wanted > self.flushed
    }

    fn sealing(&mut self, epoch: Epoch) -> Option<&mut Sealing> {
        self.in_flight.iter_mut().find(|s| s.epoch == epoch)
    }

    /// A reactor's part of `epoch` is placed; `None` when it is empty. Its write runs. `new_data` was written for it.
    pub fn part_ready(&mut self, epoch: Epoch, part: Option<PartRef>, new_data: Vec<BlockRange>) {
        let volatile_cache = self.volatile_cache;
        if let Some(s) = self.sealing(epoch) {
            s.ready += 1;
            if volatile_cache && !mutant::active(Mutant::SkipDataFlush) {
                s.new_data.extend(new_data);
            }
            s.written += usize::from(part.is_none());
            s.parts.extend(part);
        }
    }

    /// The flush of [`Command::FlushData`] is done.
    pub fn data_flushed(&mut self, epoch: Epoch) {
        if let Some(s) = self.sealing(epoch).filter(|s| s.seal == SealState::FlushingData) {
            s.seal = SealState::DataFlushed;
            s.new_data.clear();
        }
    }

    pub fn part_written(&mut self, epoch: Epoch) {
        if let Some(s) = self.sealing(epoch) {
            s.written += 1;
        }
    }

    pub fn seal_written(&mut self, number: u64) {
        if let Some(s) = self.in_flight.iter_mut().find(|s| s.seal == SealState::Writing(number)) {
            s.seal = SealState::Written;
        }
    }

    /// The flush that was asked for is done.
    pub fn flushed(&mut self) -> Option<Command> {
        let through = self.flushing.take()?;
        self.on_medium(through)
    }

    /// This node led at some moment after [`Command::Confirm`].
    pub fn confirmed(&mut self) -> Option<Command> {
        let through = self.confirming.take()?;
        Some(self.make_durable(through))
    }

    /// Nobody will be told of anything any more: what is on the medium counts.
    pub fn ungate(&mut self) -> Option<Command> {
        self.gated = false;
        self.confirming = None;
        let waits = self.in_flight.front().is_some_and(|s| s.epoch <= self.flushed);
        waits.then(|| self.make_durable(self.flushed))
    }

    /// The run ends in order: the manifest will say what is durable, and no seal has to.
    pub fn ends(&mut self) {
        self.confirm_at = None;
    }

    pub fn is_gated(&self) -> bool {
        self.gated
    }

    /// Nothing is left to do for these epochs, but to confirm them where that is asked for.
    fn on_medium(&mut self, through: Epoch) -> Option<Command> {
        self.flushed = self.flushed.max(through);
        if self.gated { self.next_confirm() } else { Some(self.make_durable(through)) }
    }

    fn next_confirm(&mut self) -> Option<Command> {
        let waits = self.confirming.is_none() && self.in_flight.front().is_some_and(|s| s.epoch <= self.flushed);
        if !self.gated || !waits {
            return None;
        }
        self.confirming = Some(self.flushed);
        Some(Command::Confirm)
    }

    fn make_durable(&mut self, through: Epoch) -> Command {
        self.in_flight.retain(|s| s.epoch > through);
        if let Some((number, ..)) = self.seals.iter().rev().find(|(_, epoch, _)| *epoch <= through) {
            self.durable_number = self.durable_number.max(*number);
        }
        Command::Durable(through)
    }

    pub fn open(&self) -> Epoch {
        self.open
    }

    /// Everything that was said to be dirty is durable.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.dirty_since.is_none()
    }

    /// The last durable seal: number and hash.
    pub fn durable_seal(&self) -> (u64, u64) {
        let hash = self.seals.iter().find(|(n, ..)| *n == self.durable_number).map(|(.., h)| *h);
        (self.durable_number, hash.unwrap_or(self.prev_hash))
    }

    /// Seals in the ring, and how many it has room for.
    pub fn ring_used(&self) -> (u64, u64) {
        (self.next_number - 1 - self.floor_number, self.ring.capacity())
    }

    /// The floor that can be set when everything up to `flushed` is in segments: (number, hash), if it moves by `least`.
    pub fn new_floor(&self, flushed: Epoch, least: u64) -> Option<(u64, u64)> {
        let (number, _, hash) = self
            .seals
            .iter()
            .take_while(|(number, epoch, _)| *epoch <= flushed && *number <= self.durable_number)
            .last()?;
        (*number >= self.floor_number + least.max(1)).then_some((*number, *hash))
    }

    /// The floor is durable: the seals up to it may be overwritten.
    pub fn set_floor(&mut self, number: u64) {
        self.floor_number = self.floor_number.max(number);
        // The floor's own entry stays: its hash may be asked for.
        while self.seals.front().is_some_and(|(n, ..)| *n < self.floor_number) {
            self.seals.pop_front();
        }
    }

    /// When to look again although nothing comes in.
    pub fn deadline(&self) -> Option<Instant> {
        let dirty = self.dirty_since.map(|t| t + EPOCH_TIMER).filter(|_| self.may_close());
        let confirm = self.confirm_at.filter(|_| self.in_flight.is_empty() && self.may_close());
        dirty.into_iter().chain(confirm).min()
    }

    fn may_close(&self) -> bool {
        let coming = self
            .in_flight
            .iter()
            .filter(|s| !matches!(s.seal, SealState::Writing(_) | SealState::Written | SealState::None))
            .count() as u64
            + 1;
        let (used, capacity) = self.ring_used();
        self.in_flight.len() < MAX_IN_FLIGHT && used + coming + RING_SLACK <= capacity
    }

    /// The next thing to do, until `None`.
    pub fn next(&mut self, now: Instant) -> Option<Command> {
        self.next_seal()
            .or_else(|| self.next_confirm())
            .or_else(|| self.next_flush(now))
            .or_else(|| self.next_close(now))
            .or_else(|| self.next_flush_through())
    }

    fn next_seal(&mut self) -> Option<Command> {
        // In order: each seal holds the hash of the one before.
        let unsealed =
            |s: &SealState| matches!(s, SealState::Waiting | SealState::FlushingData | SealState::DataFlushed);
        let s = self.in_flight.iter_mut().find(|s| unsealed(&s.seal))?;
        if s.ready < self.reactors || s.seal == SealState::FlushingData {
            return None;
        }
        s.new_data = merged(std::mem::take(&mut s.new_data));
        let blocks: u64 = s.new_data.iter().map(|run| u64::from(run.len_blocks)).sum();
        if s.new_data.len() > MAX_NEW_DATA || blocks > MAX_NEW_BLOCKS {
            s.seal = SealState::FlushingData;
            return Some(Command::FlushData(s.epoch));
        }
        if s.parts.is_empty() && !s.force && s.epoch.0 < self.last_sealed.0 + MAX_UNSEALED {
            s.seal = SealState::None;
            return self.next_seal();
        }
        let number = self.next_number;
        let seal = Seal {
            term: self.term,
            number,
            epoch: s.epoch,
            prev_hash: self.prev_hash,
            durable_number: self.durable_number,
            parts: s.parts.clone(),
            new_data: s.new_data.clone(),
        };
        let addr = self.ring.addr(number - self.first_number)?;
        let (block, hash) = seal.encode(addr, &self.fsid);
        s.seal = SealState::Writing(number);
        self.last_sealed = s.epoch;
        self.seals.push_back((number, s.epoch, hash));
        (self.next_number, self.prev_hash) = (number + 1, hash);
        Some(Command::Seal { number, addr, block: Box::new(block) })
    }

    fn next_flush(&mut self, now: Instant) -> Option<Command> {
        if self.flushing.is_some() {
            return None;
        }
        let reactors = self.reactors;
        let whole = |s: &&Sealing| {
            s.ready == reactors && s.written == reactors && matches!(s.seal, SealState::Written | SealState::None)
        };
        let flushed = self.flushed;
        let unflushed = |s: &&Sealing| s.epoch > flushed;
        let through = self.in_flight.iter().filter(unflushed).take_while(whole).last()?.epoch;
        let covered = || self.in_flight.iter().filter(unflushed).filter(|s| s.epoch <= through);
        if covered().all(|s| s.seal == SealState::None) {
            return self.on_medium(through);
        }
        // A seal without changes needs no other one to confirm it.
        if covered().any(|s| !s.parts.is_empty()) {
            self.confirm_at = Some(now + CONFIRM_AFTER);
        }
        self.flushing = Some(through);
        Some(Command::Flush)
    }

    fn next_close(&mut self, now: Instant) -> Option<Command> {
        if !self.may_close() {
            return None;
        }
        // What only waits to be confirmed holds nobody up.
        let demanded = self.wanted >= self.open && self.in_flight.iter().all(|s| s.epoch <= self.flushed);
        let timed = self.dirty_since.is_some_and(|t| now >= t + EPOCH_TIMER);
        let confirm =
            self.in_flight.is_empty() && self.dirty_since.is_none() && self.confirm_at.is_some_and(|t| now >= t);
        if !demanded && !timed && !confirm {
            return None;
        }
        if confirm {
            self.confirm_at = None;
        }
        let epoch = self.open;
        self.open = epoch.next();
        self.dirty_since = None;
        self.in_flight.push_back(Sealing {
            epoch,
            force: confirm,
            new_data: Vec::new(),
            ready: 0,
            written: 0,
            parts: Vec::new(),
            seal: SealState::Waiting,
        });
        Some(Command::Close(epoch))
    }

    fn next_flush_through(&mut self) -> Option<Command> {
        let (used, capacity) = self.ring_used();
        if used <= capacity / 2 {
            return None;
        }
        // The older half of what is in the ring.
        let (_, epoch, _) = *self.seals.get(used as usize / 2)?;
        if epoch <= self.asked_through {
            return None;
        }
        self.asked_through = epoch;
        Some(Command::FlushThrough(epoch))
    }
}

/// The same blocks in as few runs as they make.
fn merged(mut runs: Vec<BlockRange>) -> Vec<BlockRange> {
    runs.sort_unstable();
    runs.dedup_by(|next, run| {
        let joins = run.end() == Some(next.start);
        run.len_blocks += if joins { next.len_blocks } else { 0 };
        joins
    });
    runs
}

#[cfg(test)]
mod tests;
