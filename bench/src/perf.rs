//! A device under load, as SPDK's `perf` does it: a thread per core, each with its queue and its operations in flight.
//!
//! Latency is from the poll after which an operation was submitted to the one that found it completed.

use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;
use vellum_base::units::BLOCK_SIZE;
use vellum_base::{DmaBuf, DmaSlice, prng::Prng};
use vellum_nvme::{Device, IoOp, Ticket};

#[derive(Clone, Debug)]
pub struct Load {
    pub depth: u32,
    pub io_bytes: usize,
    pub random: bool,
    /// Per cent; the rest are writes.
    pub read_percent: u8,
    pub time: Duration,
    /// None: one thread, wherever the kernel puts it.
    pub cores: Option<Vec<usize>>,
}

#[derive(Serialize, Clone, Debug)]
pub struct CoreResult {
    pub core: Option<usize>,
    pub ops: u64,
    pub iops: f64,
    pub mib_per_s: f64,
    pub average_us: f64,
    pub min_us: f64,
    pub max_us: f64,
}

#[derive(Serialize, Clone, Debug)]
pub struct PerfResult {
    pub device: String,
    pub seconds: f64,
    pub cores: Vec<CoreResult>,
    pub total: CoreResult,
    /// (per cent, microseconds)
    pub latency_us: Vec<(f64, f64)>,
}

const PERCENTILES: [f64; 10] = [1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0];

pub fn run(device: &Arc<dyn Device>, load: &Load) -> Result<PerfResult> {
    let geometry = device.geometry();
    ensure!(load.io_bytes > 0 && load.io_bytes.is_multiple_of(BLOCK_SIZE), "operations are whole 4 KiB blocks");
    ensure!(
        load.io_bytes <= geometry.max_transfer_bytes,
        "the device takes at most {} bytes",
        geometry.max_transfer_bytes
    );
    ensure!(geometry.size_bytes >= load.io_bytes as u64, "the device is smaller than one operation");
    let cores: Vec<Option<usize>> = match &load.cores {
        Some(cores) => cores.iter().map(|core| Some(*core)).collect(),
        None => vec![None],
    };
    let barrier = Barrier::new(cores.len());
    let (results, start) = std::thread::scope(|scope| {
        let threads: Vec<_> = cores
            .iter()
            .enumerate()
            .map(|(index, core)| {
                let barrier = &barrier;
                scope.spawn(move || worker(device, load, index as u64, *core, barrier))
            })
            .collect();
        let start = Instant::now();
        let results: Vec<Result<Histogram<u64>>> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
            .collect();
        (results, start)
    });
    let seconds = start.elapsed().as_secs_f64().min(load.time.as_secs_f64() * 2.0).max(1e-9);
    let mut all = histogram()?;
    let mut rows = Vec::new();
    for (core, latency) in cores.iter().zip(results) {
        let latency = latency?;
        all.add(&latency).map_err(|err| anyhow!("{err}"))?;
        rows.push(summary(*core, &latency, load));
    }
    let mut total = summary(None, &all, load);
    total.iops = rows.iter().map(|row| row.iops).sum();
    total.mib_per_s = rows.iter().map(|row| row.mib_per_s).sum();
    let latency_us = PERCENTILES.iter().map(|p| (*p, all.value_at_percentile(*p) as f64 / 1e3)).collect();
    Ok(PerfResult { device: geometry.name.clone(), seconds, cores: rows, total, latency_us })
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(|err| anyhow!("{err}"))
}

fn summary(core: Option<usize>, latency: &Histogram<u64>, load: &Load) -> CoreResult {
    let ops = latency.len();
    let iops = ops as f64 / load.time.as_secs_f64();
    CoreResult {
        core,
        ops,
        iops,
        mib_per_s: iops * load.io_bytes as f64 / f64::from(1 << 20),
        average_us: latency.mean() / 1e3,
        min_us: latency.min() as f64 / 1e3,
        max_us: latency.max() as f64 / 1e3,
    }
}

struct InFlight {
    ticket: Ticket,
    since_ns: u64,
}

/// What is asked of the device next.
struct Operations<'a> {
    load: &'a Load,
    places: u64,
    prng: Prng,
    /// The last place, of a sequence.
    last: u64,
    data: DmaSlice,
    /// Of reads after which came a write.
    spare: Vec<DmaBuf>,
}

impl Operations<'_> {
    fn new(load: &Load, size_bytes: u64, thread: u64) -> Operations<'_> {
        let mut prng = Prng::new(thread + 1);
        let mut data = DmaBuf::new(load.io_bytes);
        prng.fill(&mut data);
        let places = size_bytes / load.io_bytes as u64;
        Operations { load, places, prng, last: thread * (places / 64), data: data.freeze(), spare: Vec::new() }
    }

    /// `buf`: what an earlier read gave back.
    fn next(&mut self, buf: Option<DmaBuf>) -> IoOp {
        self.last = if self.load.random { self.prng.below(self.places) } else { (self.last + 1) % self.places };
        let at_bytes = self.last * self.load.io_bytes as u64;
        if self.load.read_percent == 100 || self.prng.below(100) < u64::from(self.load.read_percent) {
            let buf = buf.or_else(|| self.spare.pop()).unwrap_or_else(|| DmaBuf::new(self.load.io_bytes));
            IoOp::Read { at_bytes, buf }
        } else {
            self.spare.extend(buf);
            IoOp::Write { at_bytes, data: self.data.clone(), fua: false }
        }
    }
}

fn worker(
    device: &Arc<dyn Device>,
    load: &Load,
    index: u64,
    core: Option<usize>,
    barrier: &Barrier,
) -> Result<Histogram<u64>> {
    // A thread that fails before the start must not leave the others at the barrier.
    let ready = pin(core).and_then(|()| Ok(device.open_queue(load.depth)?));
    barrier.wait();
    let queue = ready?;
    let mut latency = histogram()?;
    let mut operations = Operations::new(load, device.geometry().size_bytes, index);
    let mut in_flight: Vec<InFlight> =
        (0..load.depth).map(|_| InFlight { ticket: queue.submit(operations.next(None)), since_ns: 0 }).collect();
    let start = Instant::now();
    let end_ns = load.time.as_nanos() as u64;
    let mut cx = Context::from_waker(Waker::noop());
    // Most end in the order in which they were submitted: looking goes on where it ended.
    let mut at = 0;
    loop {
        queue.process_completions();
        let now_ns = start.elapsed().as_nanos() as u64;
        if now_ns >= end_ns {
            break;
        }
        let mut ended = in_flight.len() - queue.in_flight();
        while ended > 0 {
            let one = &mut in_flight[at];
            if let Poll::Ready((result, buf)) = queue.poll_done(one.ticket, &mut cx) {
                result?;
                latency.saturating_record(now_ns - one.since_ns);
                *one = InFlight { ticket: queue.submit(operations.next(buf)), since_ns: now_ns };
                ended -= 1;
            }
            at = if at + 1 == in_flight.len() { 0 } else { at + 1 };
        }
    }
    for one in in_flight {
        queue.forget(one.ticket);
    }
    while queue.in_flight() > 0 {
        queue.process_completions();
    }
    Ok(latency)
}

/// Keeps this thread on `core`.
pub fn pin(core: Option<usize>) -> Result<()> {
    if let Some(core) = core {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("cannot run on core {core}"))?;
    }
    Ok(())
}

impl PerfResult {
    /// SPDK perf's tables.
    pub fn table(&self) -> String {
        let mut out = format!("{}\n\n", self.device);
        let line = |name: &str, row: &CoreResult| {
            format!(
                "{name:>8} {:>12.2} {:>10.2} {:>12.2} {:>10.2} {:>12.2}\n",
                row.iops, row.mib_per_s, row.average_us, row.min_us, row.max_us
            )
        };
        out += &format!(
            "{:>8} {:>12} {:>10} {:>12} {:>10} {:>12}\n",
            "core", "IOPS", "MiB/s", "average us", "min us", "max us"
        );
        for row in &self.cores {
            out += &line(&row.core.map_or("-".to_owned(), |core| core.to_string()), row);
        }
        out += &line("total", &self.total);
        out += "\nlatency\n";
        for (percent, us) in &self.latency_us {
            out += &format!("{percent:>8.2}% {us:>12.3} us\n");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_measured_on_every_core() {
        let device = vellum_nvme::open("emu:4M", Default::default()).unwrap();
        let load = Load {
            depth: 8,
            io_bytes: 8192,
            random: true,
            read_percent: 70,
            time: Duration::from_millis(50),
            cores: Some(vec![0, 0]),
        };
        let result = run(&device, &load).unwrap();
        assert_eq!(result.cores.len(), 2);
        assert!(result.cores.iter().all(|row| row.ops > 0 && row.iops > 0.0));
        assert!(result.table().contains("99.99%"));
        assert!(run(&device, &Load { io_bytes: 1000, ..load }).is_err());
    }
}
