//! Measures one case: latency of every operation, wall and CPU time, bytes the process sent to devices.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::report::Row;

/// One per thread; threads' recorders are merged with [`Recorder::merge`]. Recording costs about 10 ns.
pub struct Recorder {
    latency_ns: Histogram<u64>,
    bytes: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        // 1 ns to 60 s, three significant digits.
        let latency_ns = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are legal");
        Recorder { latency_ns, bytes: 0 }
    }
}

impl Recorder {
    /// Times one operation that moved `bytes` of user data.
    pub fn time<T>(&mut self, bytes: u64, op: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = op();
        self.record(start.elapsed(), bytes);
        result
    }

    pub fn record(&mut self, latency: Duration, bytes: u64) {
        self.latency_ns.saturating_record(latency.as_nanos() as u64);
        self.bytes += bytes;
    }

    pub fn merge(&mut self, other: &Recorder) {
        self.latency_ns.add(&other.latency_ns).expect("all recorders have the same bounds");
        self.bytes += other.bytes;
    }

    pub fn ops(&self) -> u64 {
        self.latency_ns.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn quantile_us(&self, q: f64) -> f64 {
        self.latency_ns.value_at_quantile(q) as f64 / 1e3
    }

    pub fn max_us(&self) -> f64 {
        self.latency_ns.max() as f64 / 1e3
    }
}

/// What the machine spent between two readings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_us: u64,
    /// Bytes this process gave to the block layer (`/proc/self/io`, write_bytes).
    pub device_write_bytes: u64,
}

impl Usage {
    /// Of this process and all its threads, since it began.
    pub fn now() -> Usage {
        let r = rustix_rusage();
        let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
        let device_write_bytes =
            io.lines().find_map(|l| l.strip_prefix("write_bytes: ")).and_then(|v| v.trim().parse().ok()).unwrap_or(0);
        Usage { cpu_us: r, device_write_bytes }
    }

    pub fn and(self, other: Usage) -> Usage {
        Usage {
            cpu_us: self.cpu_us + other.cpu_us,
            device_write_bytes: self.device_write_bytes + other.device_write_bytes,
        }
    }

    pub fn since(self, earlier: Usage) -> Usage {
        Usage {
            cpu_us: self.cpu_us.saturating_sub(earlier.cpu_us),
            device_write_bytes: self.device_write_bytes.saturating_sub(earlier.device_write_bytes),
        }
    }
}

/// User and system time of this process in microseconds, at the scheduler's own resolution.
fn rustix_rusage() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as u64 * 1_000_000 + t.tv_nsec as u64 / 1_000
}

/// Runs a case on `threads` threads and returns its row. `work(thread, recorder)` does that thread's share.
pub fn measure(
    case: &str,
    system: &str,
    threads: usize,
    work: impl Fn(usize, &mut Recorder) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<Row> {
    let before = Usage::now();
    let start = Instant::now();
    let mut all = Recorder::default();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let work = &work;
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut recorder = Recorder::default();
                    work(thread, &mut recorder).map(|()| recorder)
                })
            })
            .collect();
        for handle in handles {
            all.merge(&handle.join().map_err(|_| anyhow::anyhow!("a benchmark thread panicked"))??);
        }
        Ok(())
    })?;
    Ok(Row::of(case, system, &all, start.elapsed(), Usage::now().since(before)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_counts_the_operations_of_all_threads() {
        let row = measure("count", "self", 2, |_, r| {
            for _ in 0..10 {
                r.time(3, || std::hint::black_box(1));
            }
            Ok(())
        })
        .unwrap();
        assert_eq!((row.ops, row.bytes), (20, 60));
        assert!(row.p50_us <= row.p99_us && row.p99_us <= row.max_us);
    }

    #[test]
    fn an_error_of_one_thread_is_the_error_of_the_case() {
        let r = measure("fail", "self", 2, |t, _| if t == 1 { anyhow::bail!("no") } else { Ok(()) });
        assert_eq!(r.unwrap_err().to_string(), "no");
    }
}
