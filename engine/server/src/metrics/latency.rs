//! How long clients wait for the engine, one histogram per reactor and kind.

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use vellum_rt::{Instant, now};

/// In microseconds; what takes longer counts as this.
const LONGEST_US: u64 = 600_000_000;

pub(crate) struct Latencies {
    /// From a batch's arrival to its answer.
    pub commit: Histogram<u64>,
    /// From an fsync's request until everything is durable.
    pub sync: Histogram<u64>,
    /// From a request for locks to the last grant.
    pub lock: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Latencies {
        let new = || Histogram::new_with_bounds(1, LONGEST_US, 2).expect("the bounds are legal");
        Latencies { commit: new(), sync: new(), lock: new() }
    }
}

pub(crate) fn record(histogram: &mut Histogram<u64>, since: Instant) {
    let us = (now().0.saturating_sub(since.0)) / 1_000;
    histogram.saturating_record(us.max(1));
}

impl Latencies {
    pub fn committed(&mut self, since: Instant) {
        record(&mut self.commit, since);
    }

    pub fn synced(&mut self, since: Instant) {
        record(&mut self.sync, since);
    }

    pub fn locked(&mut self, since: Instant) {
        record(&mut self.lock, since);
    }

    pub fn json(&self) -> Value {
        let one = |h: &Histogram<u64>| {
            json!({
                "count": h.len(),
                "sum": (h.mean() * h.len() as f64) as u64,
                "p50": h.value_at_quantile(0.5),
                "p99": h.value_at_quantile(0.99),
                "p999": h.value_at_quantile(0.999),
                "max": h.max(),
            })
        };
        json!({ "commit": one(&self.commit), "sync": one(&self.sync), "lock": one(&self.lock) })
    }
}
