//! Our own block: what it says, what of it is durable, and how long its writes take.
//!
//! Events are recorded here at once and become durable with the write whose number [`OwnBlock::record`] gives. One write
//! is in flight at a time; what is recorded meanwhile leaves together with the next.

use std::collections::VecDeque;
use std::time::Duration;

use vellum_base::{Rid, Term};
use vellum_format::quorum::{EventKind, SlotBlock, SlotEvent};

use crate::backoff::Backoff;
use crate::time::Time;

/// The measured latency is the median of so many writes: one stall is no slow device.
const SAMPLES: usize = 8;

#[derive(Debug)]
pub(super) struct OwnBlock {
    block: SlotBlock,
    /// Number of the newest write that was started, and of the newest that is durable.
    emitted: u64,
    durable: u64,
    dirty: bool,
    in_flight: Option<u64>,
    /// Since when the newest content waits to be durable.
    waiting_since: Option<Time>,
    retry_at: Option<Time>,
    backoff: Backoff,
    took: VecDeque<Duration>,
    written_at: Option<Time>,
    pub errors: u64,
}

impl OwnBlock {
    pub fn new(block: SlotBlock, backoff: Backoff) -> OwnBlock {
        let newest = block.newest_write();
        OwnBlock {
            block,
            emitted: newest,
            durable: newest,
            dirty: false,
            in_flight: None,
            waiting_since: None,
            retry_at: None,
            backoff,
            took: VecDeque::with_capacity(SAMPLES),
            written_at: None,
            errors: 0,
        }
    }

    pub fn block(&self) -> &SlotBlock {
        &self.block
    }

    /// Number of the write that will carry what is recorded now.
    pub fn next_write(&self) -> u64 {
        self.emitted + 1
    }

    pub fn record(&mut self, now: Time, kind: EventKind, event: SlotEvent) -> u64 {
        let write = self.next_write();
        self.block.set(kind, SlotEvent { write, ..event });
        self.dirty = true;
        self.waiting_since.get_or_insert(now);
        write
    }

    pub fn is_durable(&self, write: u64) -> bool {
        self.durable >= write
    }

    pub fn idle(&self) -> bool {
        !self.dirty && self.in_flight.is_none()
    }

    /// The write to start now, if any.
    pub fn start_write(&mut self, now: Time) -> Option<(u64, SlotBlock)> {
        if !self.dirty || self.in_flight.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        self.emitted += 1;
        self.dirty = false;
        self.retry_at = None;
        self.in_flight = Some(self.emitted);
        Some((self.emitted, self.block))
    }

    /// False when no such write is in flight.
    pub fn written(&mut self, now: Time, write: u64, took: Duration) -> bool {
        if self.in_flight != Some(write) {
            return false;
        }
        self.in_flight = None;
        self.durable = write;
        self.waiting_since = self.dirty.then_some(now);
        self.backoff.succeeded();
        if self.took.len() == SAMPLES {
            self.took.pop_front();
        }
        self.took.push_back(took);
        self.written_at = Some(now);
        true
    }

    /// It may or may not have reached the device: the same content goes again, under a new number.
    pub fn write_failed(&mut self, now: Time, write: u64) -> bool {
        if self.in_flight != Some(write) {
            return false;
        }
        self.in_flight = None;
        self.dirty = true;
        self.errors += 1;
        self.retry_at = Some(now + self.backoff.pause());
        true
    }

    pub fn retry_at(&self) -> Option<Time> {
        self.retry_at
    }

    /// How long a write is usually in flight.
    pub fn latency(&self) -> Duration {
        let mut sorted: Vec<Duration> = self.took.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    /// How long the oldest unwritten event has been waiting.
    pub fn stalled(&self, now: Time) -> Duration {
        self.waiting_since.map_or(Duration::ZERO, |since| now - since)
    }

    pub fn waiting_since(&self) -> Option<Time> {
        self.waiting_since
    }

    pub fn written_at(&self) -> Option<Time> {
        self.written_at
    }

    /// Whether `found`, read from the device, was written by another process than this, since this one started.
    pub fn is_foreign(&self, found: &SlotBlock) -> bool {
        let began = |block: &SlotBlock| block.get(EventKind::Begin).map_or((0, Rid::default()), |e| (e.write, e.rid));
        let (ours, theirs) = (began(&self.block), began(found));
        found.newest_write() > self.emitted || (theirs.1 != ours.1 && theirs.0 >= ours.0)
    }

    pub fn vote(&self) -> Option<&SlotEvent> {
        self.block.get(EventKind::Term)
    }

    pub fn fence_term(&self) -> Term {
        self.block.get(EventKind::Fence).map_or(Term::NONE, |e| e.term)
    }
}
