//! Counters of a session: requests and latencies by opcode.

use std::cell::RefCell;
use std::time::Duration;

use crate::abi::Opcode;

/// Latency classes: powers of two of nanoseconds, the last one open.
const CLASSES: usize = 40;

#[derive(Clone, Debug)]
struct Counter {
    count: u64,
    errors: u64,
    total_ns: u64,
    max_ns: u64,
    classes: [u32; CLASSES],
}

impl Counter {
    const ZERO: Counter = Counter { count: 0, errors: 0, total_ns: 0, max_ns: 0, classes: [0; CLASSES] };

    /// The upper end of the class in which the `part` of all requests lies.
    fn percentile(&self, part: f64) -> Duration {
        let wanted = (self.count as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (class, &count) in self.classes.iter().enumerate() {
            seen += count as u64;
            if seen >= wanted.max(1) {
                return Duration::from_nanos(1 << (class + 1)).min(Duration::from_nanos(self.max_ns));
            }
        }
        Duration::from_nanos(self.max_ns)
    }
}

/// One kind of request. Percentiles are exact to a factor of two.
#[derive(Clone, Debug, PartialEq)]
pub struct OpStatistics {
    pub name: &'static str,
    pub count: u64,
    pub errors: u64,
    pub mean: Duration,
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

/// A session so far.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Statistics {
    /// By opcode, those that came.
    pub ops: Vec<OpStatistics>,
    /// Answered where they were read, without a task.
    pub answered_inline: u64,
    /// Became a task because they had to wait.
    pub waited: u64,
    pub interrupted: u64,
    /// Messages that could not be understood.
    pub malformed: u64,
    /// Waiting when the mount went away: their callers got ENOTCONN or ECONNABORTED.
    pub cut_off: u64,
    /// Waiting now.
    pub in_flight: u64,
}

#[derive(Debug)]
pub(crate) struct Recorder {
    ops: RefCell<Box<[Counter]>>,
    pub rest: RefCell<Statistics>,
}

impl Recorder {
    pub fn new() -> Recorder {
        Recorder { ops: RefCell::new(vec![Counter::ZERO; Opcode::TABLE_LEN].into()), rest: RefCell::default() }
    }

    pub fn record(&self, opcode: Opcode, took: Duration, error: bool) {
        let ns = took.as_nanos() as u64;
        if let Some(counter) = self.ops.borrow_mut().get_mut(opcode as usize) {
            counter.count += 1;
            counter.errors += error as u64;
            counter.total_ns += ns;
            counter.max_ns = counter.max_ns.max(ns);
            let class = (63 - (ns | 1).leading_zeros() as usize).min(CLASSES - 1);
            if let Some(count) = counter.classes.get_mut(class) {
                *count = count.saturating_add(1);
            }
        }
    }

    pub fn read(&self, in_flight: usize) -> Statistics {
        let mut statistics = self.rest.borrow().clone();
        statistics.in_flight = in_flight as u64;
        let ops = self.ops.borrow();
        statistics.ops = Opcode::ALL
            .iter()
            .filter_map(|&op| Some((op, ops.get(op as usize)?)))
            .filter(|(_, counter)| counter.count > 0)
            .map(|(op, counter)| OpStatistics {
                name: op.name(),
                count: counter.count,
                errors: counter.errors,
                mean: Duration::from_nanos(counter.total_ns / counter.count),
                p50: counter.percentile(0.5),
                p99: counter.percentile(0.99),
                max: Duration::from_nanos(counter.max_ns),
            })
            .collect();
        statistics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_within_a_factor_of_two() {
        let recorder = Recorder::new();
        for _ in 0..99 {
            recorder.record(Opcode::Lookup, Duration::from_micros(10), false);
        }
        recorder.record(Opcode::Lookup, Duration::from_millis(1), true);
        let statistics = recorder.read(3);
        let [lookup] = &statistics.ops[..] else { panic!("one opcode") };
        assert_eq!((lookup.name, lookup.count, lookup.errors, statistics.in_flight), ("lookup", 100, 1, 3));
        assert!(lookup.p50 >= Duration::from_micros(10) && lookup.p50 <= Duration::from_micros(20));
        assert_eq!(lookup.max, Duration::from_millis(1));
    }
}
