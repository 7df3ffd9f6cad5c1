//! A device under load, as SPDK's `perf` does it: a thread per core, each with its queue and its operations in flight.
//!
//! Latency is from the poll after which an operation was submitted to the one that found it completed.

use std::cell::RefCell;
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;
use vellum_base::units::BLOCK_SIZE;
use vellum_base::{DmaBuf, DmaSlice, prng::Prng};
use vellum_nvme::{Device, IoOp, Queue, Ticket};

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
    since: Instant,
}

thread_local! {
    /// Indexes of the operations that are answered, of this thread's queue. A poll that finds nothing then costs no look at
    /// each of them.
    static ANSWERED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

struct Tell(usize);

impl Wake for Tell {
    fn wake(self: Arc<Self>) {
        ANSWERED.with_borrow_mut(|answered| answered.push(self.0)); // a queue wakes on its own thread
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
    let mut prng = Prng::new(index + 1);
    let mut data = DmaBuf::new(load.io_bytes);
    prng.fill(&mut data);
    let data = data.freeze();
    let places = device.geometry().size_bytes / load.io_bytes as u64;
    let mut next = index * (places / 64);
    let mut place = move |prng: &mut Prng| {
        if load.random {
            return prng.below(places) * load.io_bytes as u64;
        }
        next = (next + 1) % places;
        next * load.io_bytes as u64
    };
    let wakers: Vec<Waker> = (0..load.depth as usize).map(|index| Waker::from(Arc::new(Tell(index)))).collect();
    let mut bufs: Vec<DmaBuf> = (0..load.depth).map(|_| DmaBuf::new(load.io_bytes)).collect();
    let mut in_flight: Vec<InFlight> = Vec::with_capacity(load.depth as usize);
    for _ in 0..load.depth {
        let at = place(&mut prng);
        in_flight.push(submit(&*queue, load, at, Instant::now(), &mut prng, &mut bufs, &data));
    }
    // Each is asked for once, which leaves its waker; then when that has told.
    let mut due: Vec<usize> = (0..in_flight.len()).collect();
    let end = Instant::now() + load.time;
    loop {
        queue.process_completions();
        let now = Instant::now();
        if now >= end {
            break;
        }
        ANSWERED.with_borrow_mut(|answered| due.append(answered));
        for index in due.drain(..) {
            let one = &mut in_flight[index];
            let mut cx = Context::from_waker(&wakers[index]);
            while let Poll::Ready((result, buf)) = queue.poll_done(one.ticket, &mut cx) {
                result?;
                latency.saturating_record(now.saturating_duration_since(one.since).as_nanos() as u64);
                bufs.extend(buf);
                let at = place(&mut prng);
                *one = submit(&*queue, load, at, now, &mut prng, &mut bufs, &data);
            }
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

fn submit(
    queue: &dyn Queue,
    load: &Load,
    at_bytes: u64,
    now: Instant,
    prng: &mut Prng,
    bufs: &mut Vec<DmaBuf>,
    data: &DmaSlice,
) -> InFlight {
    let read = load.read_percent == 100 || prng.below(100) < u64::from(load.read_percent);
    let op = if read {
        IoOp::Read { at_bytes, buf: bufs.pop().unwrap_or_else(|| DmaBuf::new(load.io_bytes)) }
    } else {
        IoOp::Write { at_bytes, data: data.clone(), fua: false }
    };
    InFlight { ticket: queue.submit(op), since: now }
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
