//! What may go wrong, and when: rules made by a test, and delays drawn by chance.

use std::ops::Range;
use std::time::Duration;

use vellum_base::prng::Prng;

use super::sharing::ProcessId;
use crate::IoOp;

/// What happens to an operation that a rule meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The operation fails. A failed write has written some of its sectors; a failed flush fails the device for good.
    Error { errno: i32 },
    /// A read answers with one bit flipped; the medium is as it was.
    FlipBit,
    /// A read answers what is on the medium, without the writes that are in the cache only.
    OldData,
    /// A write lands so many bytes further (or at the device's start, if that is past its end).
    Misdirect { by_bytes: u64 },
    /// A write is acknowledged and dropped.
    Lose,
    /// Everything later: needs a delay hook.
    Stall { time: Duration },
}

impl Fault {
    fn meets(self, op: &IoOp) -> bool {
        match self {
            Fault::FlipBit | Fault::OldData => matches!(op, IoOp::Read { .. }),
            Fault::Misdirect { .. } | Fault::Lose => matches!(op, IoOp::Write { .. }),
            Fault::Error { .. } | Fault::Stall { .. } => true,
        }
    }
}

/// Kinds of operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    Reads,
    Writes,
    Flushes,
    Anything,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    pub fault: Fault,
    pub on: On,
    /// Bytes of the device; a flush is met whatever they are.
    pub range: Range<u64>,
    /// Operations that pass before the first that is met.
    pub skip: u64,
    /// Operations that are met; `u64::MAX` is always.
    pub times: u64,
    /// Only what this process submits is met.
    pub by: Option<ProcessId>,
}

impl Rule {
    pub fn once(fault: Fault, on: On, range: Range<u64>) -> Rule {
        Rule { fault, on, range, skip: 0, times: 1, by: None }
    }

    pub fn always(fault: Fault, on: On, range: Range<u64>) -> Rule {
        Rule { times: u64::MAX, ..Rule::once(fault, on, range) }
    }

    pub fn after(self, skip: u64) -> Rule {
        Rule { skip, ..self }
    }

    /// Only for what `process` submits.
    pub fn by(self, process: ProcessId) -> Rule {
        Rule { by: Some(process), ..self }
    }

    /// Counts the operation; true when the fault happens to it.
    fn take(&mut self, op: &IoOp, process: ProcessId) -> bool {
        let (at, len) = op.extent();
        let kind = match self.on {
            On::Reads => matches!(op, IoOp::Read { .. }),
            On::Writes => matches!(op, IoOp::Write { .. }),
            On::Flushes => matches!(op, IoOp::Flush),
            On::Anything => true,
        };
        let place = matches!(op, IoOp::Flush) || (at < self.range.end && self.range.start < at + len);
        let whose = self.by.is_none_or(|by| by == process);
        if !kind || !place || !whose || !self.fault.meets(op) || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if self.times != u64::MAX {
            self.times -= 1;
        }
        true
    }
}

/// How long operations take: drawn for each, so that they complete out of order. Needs a delay hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delays {
    pub read: Range<Duration>,
    pub write: Range<Duration>,
    pub flush: Range<Duration>,
    /// Operations that take `spike` longer; 0 is none.
    pub spike_one_in: u64,
    pub spike: Duration,
}

impl Default for Delays {
    /// A good device.
    fn default() -> Delays {
        let micros = |from, to| Duration::from_micros(from)..Duration::from_micros(to);
        Delays {
            read: micros(20, 120),
            write: micros(5, 40),
            flush: micros(20, 400),
            spike_one_in: 2000,
            spike: Duration::from_millis(5),
        }
    }
}

impl Delays {
    pub(super) fn draw(&self, op: &IoOp, prng: &mut Prng) -> Duration {
        let range = match op {
            IoOp::Read { .. } => &self.read,
            IoOp::Write { .. } | IoOp::Discard { .. } => &self.write,
            IoOp::Flush => &self.flush,
        };
        let spread = range.end.saturating_sub(range.start).as_nanos() as u64;
        let extra = if spread > 0 { prng.below(spread) } else { 0 };
        let spike = if self.spike_one_in > 0 && prng.one_in(self.spike_one_in) { self.spike } else { Duration::ZERO };
        range.start + Duration::from_nanos(extra) + spike
    }
}

/// Every fault that meets `op`.
pub(super) fn faults(rules: &mut Vec<Rule>, op: &IoOp, process: ProcessId) -> Vec<Fault> {
    let met = rules.iter_mut().filter_map(|rule| rule.take(op, process).then_some(rule.fault)).collect();
    rules.retain(|rule| rule.times > 0);
    met
}
