//! What a fault device is asked to do wrong.

use std::ops::Range;
use std::sync::Arc;

use crate::IoOp;

/// Virtual time for completions. `call_at` is called by the thread that submits or polls, and must call `f` on that
/// thread when the time has come (in the simulation: spawn a task that sleeps until then and calls it).
pub trait DelayHook: Send + Sync {
    fn now_ns(&self) -> u64;
    fn call_at(&self, due_ns: u64, f: Box<dyn FnOnce()>);
}

/// When an operation completes. Operations due together complete in random order.
#[derive(Clone)]
pub enum Delay {
    /// After this many further calls of `process_completions` (of any queue of the device); 0 is the next one.
    Polls { min: u64, max: u64 },
    /// After virtual time; the queue completes and wakes by itself.
    Time { hook: Arc<dyn DelayHook>, min_ns: u64, max_ns: u64 },
}

impl Delay {
    pub(super) fn range(&self) -> (u64, u64) {
        match self {
            Delay::Polls { min, max } => (*min, *max),
            Delay::Time { min_ns, max_ns, .. } => (*min_ns, *max_ns),
        }
    }
}

/// Rates are "one in so many operations"; 0 is never.
#[derive(Clone)]
pub struct FaultConfig {
    pub delay: Delay,
    /// Keep all events (and the data of all writes) for [`super::Journal`].
    pub record_journal: bool,
    pub max_transfer_bytes: usize,
    /// The unit in which writes are torn and which the geometry reports.
    pub lba_bytes: u32,
    pub read_error_one_in: u64,
    pub write_error_one_in: u64,
    pub flush_error_one_in: u64,
    /// One bit of what is read is wrong, once; the medium is good.
    pub flip_read_one_in: u64,
    /// Acknowledged and never written.
    pub lose_write_one_in: u64,
    /// Acknowledged and written to a random place instead.
    pub misdirect_write_one_in: u64,
}

impl Default for FaultConfig {
    /// An honest device with a volatile cache and completions out of order.
    fn default() -> Self {
        FaultConfig {
            delay: Delay::Polls { min: 0, max: 2 },
            record_journal: false,
            max_transfer_bytes: 1 << 20,
            lba_bytes: 512,
            read_error_one_in: 0,
            write_error_one_in: 0,
            flush_error_one_in: 0,
            flip_read_one_in: 0,
            lose_write_one_in: 0,
            misdirect_write_one_in: 0,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpKind {
    Read,
    Write,
    Flush,
    Discard,
}

impl OpKind {
    pub(super) fn of(op: &IoOp) -> OpKind {
        match op {
            IoOp::Read { .. } => OpKind::Read,
            IoOp::Write { .. } => OpKind::Write,
            IoOp::Flush => OpKind::Flush,
            IoOp::Discard { .. } => OpKind::Discard,
        }
    }
}

/// What goes wrong with an operation that a [`Rule`] hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It answers EIO. A write is torn; a flush fails the device.
    Error,
    /// A read returns one wrong bit.
    FlipBit,
    /// A read returns what was there at the last `mark_old` (at first: when the device was made).
    ReadOld,
    /// A read returns what is at this place instead.
    ReadFrom(u64),
    /// A write (or the effect of a flush) is acknowledged and does not happen.
    Lose,
    /// A write goes to this place instead.
    Misdirect(u64),
    /// It takes this much longer: polls or nanoseconds, as `Delay` counts.
    Slow(u64),
}

/// Applies `fault` to operations of one kind that touch a range of bytes (a flush touches every range).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    pub on: OpKind,
    pub range: Range<u64>,
    /// How many operations that match are let through first.
    pub skip: u32,
    /// How many are hit; `u32::MAX` is for ever.
    pub times: u32,
    pub fault: Fault,
}

impl Rule {
    pub fn once(on: OpKind, range: Range<u64>, fault: Fault) -> Rule {
        Rule { on, range, skip: 0, times: 1, fault }
    }

    pub fn always(on: OpKind, range: Range<u64>, fault: Fault) -> Rule {
        Rule { times: u32::MAX, ..Rule::once(on, range, fault) }
    }

    /// Lets `skip` matching operations through first.
    pub fn after(self, skip: u32) -> Rule {
        Rule { skip, ..self }
    }

    /// Decides about one operation and counts it.
    pub(super) fn hits(&mut self, op: &IoOp) -> Option<Fault> {
        let (at, len) = op.extent();
        let touches = matches!(op, IoOp::Flush) || (at < self.range.end && at.saturating_add(len) > self.range.start);
        if self.times == 0 || OpKind::of(op) != self.on || !touches {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        if self.times != u32::MAX {
            self.times -= 1;
        }
        Some(self.fault)
    }
}
