//! What the NVMe driver costs: the same 4 KiB reads of a controller model that stores nothing, through ever more layers.
//!
//! - `model`: the model alone. Its commands lie ready in the ring; the host does nothing but ring doorbells and look at the
//!   last phase tag;
//! - `driver`: the driver's queue, called with its own type;
//! - `trait`: the same through `dyn Queue`, as the store calls it;
//! - `tasks`: reads awaited by tasks of a reactor.
//!
//! One thread, best of several repeats, by the thread's CPU time: other load costs cache, not time.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use vellum_base::dma::SharedPages;
use vellum_base::units::BLOCK_SIZE;
use vellum_base::{DmaBuf, prng::Prng};
use vellum_nvme::driver::{Controller, NvmeDevice, NvmeQueue, Options, Transport};
use vellum_nvme::emu::{self, ControllerConfig, EmuTransport, Medium, NamespaceConfig, ProcessBus, Subsystem};
use vellum_nvme::spec::{Completion, Submission, doorbell_offset};
use vellum_nvme::{IoOp, Queue};
use vellum_rt::{Class, native};

use crate::recorder::{Recorder, Usage};
use crate::report::{Report, Row};

pub const DEPTHS: [usize; 3] = [1, 32, 128];
/// What a read may cost above the model, from depth 32 on.
const MOST_ABOVE_MODEL_NS: f64 = 100.0;
/// Reads per second that the best driver reaches from a controller in another process, by depth.
const BEST_DRIVER: [(usize, f64); 2] = [(1, 0.7e6), (128, 3e6)];
/// The namespace.
const SIZE_BYTES: u64 = 1 << 40;
/// Entries of the model's ring: more than any depth.
const RING_ENTRIES: u32 = 256;
/// The queue of the `model` rows; the driver takes from 1 on.
const MODEL_QID: u16 = 8;

#[derive(Clone, Debug)]
pub struct Shape {
    pub ops: u64,
    pub repeats: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { ops: 1_000_000, repeats: 7 }
    }
}

/// How one repeat went.
struct Lap {
    cpu: Duration,
    wall: Duration,
    doorbells: u64,
}

/// A model with the driver on it.
pub fn null_device(doorbell_buffers: bool) -> Result<NvmeDevice<EmuTransport>> {
    let null = NamespaceConfig { size_bytes: SIZE_BYTES, lba_bytes: 4096, medium: Medium::Null };
    let subsystem = Subsystem::new("NULL", false, vec![null]);
    let config = ControllerConfig { doorbell_buffers, ..ControllerConfig::default() };
    let model = emu::Controller::new(ProcessBus::new(config.io_queues)?, subsystem, config);
    let controller = Controller::open(EmuTransport::new(model), Options::default())?;
    Ok(NvmeDevice::open(controller, Some(1), false)?)
}

pub fn run(shape: &Shape) -> Result<Report> {
    let mut report = Report::new("nvme", "model");
    let device = null_device(false)?;
    for depth in DEPTHS {
        let case = format!("null read, depth {depth}");
        let model = ModelRing::new(device.controller())?;
        let alone = best(shape, |ops| model.lap(depth, ops))?;
        let base_ns = ns_per_op(&alone, shape.ops);
        report.push(row(&case, "model", shape, &alone));
        drop(model);
        let mut show = |system: &str, lap: &Lap| {
            let limit = (depth >= 32 && system != "tasks").then_some(MOST_ABOVE_MODEL_NS);
            let mut row = row(&case, system, shape, lap);
            row.note += &above_model(ns_per_op(lap, shape.ops) - base_ns, limit);
            row.note += &per_read::<EmuTransport>(lap, shape.ops);
            report.push(row);
        };
        let queue = device.queue(depth as u32)?;
        let lap = best(shape, |ops| own_type(&queue, depth, ops))?;
        show("driver", &lap);
        let own = Rc::new(queue);
        let queue: Rc<dyn Queue> = own.clone();
        let lap = best(shape, |ops| counted(&own, || through_trait(&queue, depth, ops)))?;
        show("trait", &lap);
        let lap = best(shape, |ops| counted(&own, || tasks(&queue, depth, ops)))?;
        show("tasks", &lap);
    }
    Ok(report)
}

/// A controller elsewhere, through the trait. The thread polls all the time, so that its CPU time is the time.
pub fn run_remote<T: Transport>(
    device: &NvmeDevice<T>,
    system: &str,
    shape: &Shape,
    report: &mut Report,
) -> Result<()> {
    for depth in DEPTHS {
        let own = Rc::new(device.queue(depth as u32)?);
        let queue: Rc<dyn Queue> = own.clone();
        let lap = best(shape, |ops| counted(&own, || through_trait(&queue, depth, ops)))?;
        let case = format!("4 KiB read, depth {depth}");
        let mut row = row(&case, system, shape, &lap);
        row.note += &per_read::<T>(&lap, shape.ops);
        row.ops_per_s = shape.ops as f64 / lap.wall.as_secs_f64();
        if let Some((_, best)) = BEST_DRIVER.iter().find(|(at, _)| *at == depth) {
            let (ratio, best) = (row.ops_per_s / best, best / 1e6);
            row.note += &format!("; {ratio:.2}x of the {best} M/s of the best driver");
        }
        report.push(row);
    }
    Ok(())
}

fn ns_per_op(lap: &Lap, ops: u64) -> f64 {
    lap.cpu.as_secs_f64() * 1e9 / ops as f64
}

fn row(case: &str, system: &str, shape: &Shape, lap: &Lap) -> Row {
    let ns = ns_per_op(lap, shape.ops);
    let mut recorder = Recorder::default();
    recorder.record(lap.cpu / shape.ops as u32, 0);
    let mut row = Row::of(case, system, &recorder, lap.cpu, Usage::default());
    row.ops = shape.ops;
    row.ops_per_s = 1e9 / ns;
    row.cpu_us_per_op = ns / 1e3;
    let mhz = cpu_mhz();
    row.note(format!("{ns:.0} ns, {:.0} cycles at {mhz:.0} MHz", ns * mhz / 1e3))
}

fn above_model(above_ns: f64, limit_ns: Option<f64>) -> String {
    let limit = limit_ns.map(|limit| format!(" ({:.2}x of the {limit} ns allowed)", above_ns / limit));
    format!("; {above_ns:.0} ns above the model{}", limit.unwrap_or_default())
}

fn per_read<T: Transport>(lap: &Lap, ops: u64) -> String {
    let lines = NvmeQueue::<T>::cache_lines_per_read();
    format!("; {:.3} doorbells, {lines:.1} cache lines (by layout)", lap.doorbells as f64 / ops as f64)
}

/// `lap`, with the doorbells that `queue` rang in it.
fn counted<T: Transport>(queue: &NvmeQueue<T>, lap: impl FnOnce() -> Result<Lap>) -> Result<Lap> {
    let before = queue.doorbells();
    let lap = lap()?;
    Ok(Lap { doorbells: queue.doorbells() - before, ..lap })
}

fn best(shape: &Shape, mut lap: impl FnMut(u64) -> Result<Lap>) -> Result<Lap> {
    lap(shape.ops / 10 + 1)?; // warm
    let mut best: Option<Lap> = None;
    for _ in 0..shape.repeats {
        let one = lap(shape.ops)?;
        if best.as_ref().is_none_or(|best| one.cpu < best.cpu) {
            best = Some(one);
        }
    }
    best.context("at least one repeat")
}

/// Times `work` on this thread.
fn timed(work: impl FnOnce() -> Result<u64>) -> Result<Lap> {
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let (cpu_start, start) = (cpu(), Instant::now());
    let doorbells = work()?;
    Ok(Lap { cpu: cpu() - cpu_start, wall: start.elapsed(), doorbells })
}

fn cpu_mhz() -> f64 {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("cpu MHz"));
    line.and_then(|line| line.split(':').nth(1)?.trim().parse().ok()).unwrap_or(0.0)
}

/// A queue of the model whose commands are there already.
struct ModelRing {
    controller: Arc<Controller<EmuTransport>>,
    submissions: SharedPages,
    completions: SharedPages,
    tail: std::cell::Cell<u32>,
    phase: std::cell::Cell<bool>,
}

impl ModelRing {
    fn new(controller: &Arc<Controller<EmuTransport>>) -> Result<ModelRing> {
        let pages = |entry: usize| SharedPages::new(RING_ENTRIES as usize * entry).context("no memory");
        let (submissions, completions) = (pages(size_of::<Submission>())?, pages(size_of::<Completion>())?);
        let data = SharedPages::new(BLOCK_SIZE).context("no memory")?;
        let transport = controller.transport();
        let at = |pages: &SharedPages| transport.address_of(pages.arena_offset(), pages.len()).context("no address");
        for index in 0..RING_ENTRIES {
            let mut command = Submission::read(1, u64::from(index) * 7, 1).with_prp(at(&data)?, 0);
            command.cid = (index as u16).into();
            submissions.store_words(index as usize * size_of::<Submission>(), command.to_words());
        }
        let create = Submission::create_completion_queue(MODEL_QID, RING_ENTRIES, at(&completions)?);
        controller.execute("create completion queue", create, false)?;
        let create = Submission::create_submission_queue(MODEL_QID, RING_ENTRIES, at(&submissions)?);
        controller.execute("create submission queue", create, false)?;
        let controller = controller.clone();
        Ok(ModelRing { controller, submissions, completions, tail: 0.into(), phase: true.into() })
    }

    fn lap(&self, depth: usize, ops: u64) -> Result<Lap> {
        let transport = self.controller.transport();
        let (tail_bell, head_bell) = (doorbell_offset(MODEL_QID, false, 0), doorbell_offset(MODEL_QID, true, 0));
        timed(|| {
            for _ in 0..ops / depth as u64 {
                let last = (self.tail.get() + depth as u32 - 1) % RING_ENTRIES;
                let passes_end = self.tail.get() + depth as u32 > RING_ENTRIES;
                self.tail.set((last + 1) % RING_ENTRIES);
                transport.write32(tail_bell, self.tail.get());
                transport.turn(MODEL_QID);
                let expected = self.phase.get() != passes_end;
                let word = self.completions.load32(last as usize * size_of::<Completion>() + 12);
                ensure!((word >> 16 & 1 == 1) == expected, "the model has not answered");
                self.phase.set(expected != (last + 1 == RING_ENTRIES));
                transport.write32(head_bell, self.tail.get());
            }
            Ok(0)
        })
    }
}

impl Drop for ModelRing {
    fn drop(&mut self) {
        let delete = |command| drop(self.controller.execute("delete queue", command, false));
        delete(Submission::delete_submission_queue(MODEL_QID));
        delete(Submission::delete_completion_queue(MODEL_QID));
        debug_assert!(!self.submissions.is_empty());
    }
}

/// Keeps `depth` reads in flight; generic, so that each caller's calls are what they are.
fn pump<Q: Queue + ?Sized>(queue: &Q, depth: usize, ops: u64) -> Result<()> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut prng = Prng::new(depth as u64);
    let blocks = queue.geometry().size_bytes / BLOCK_SIZE as u64;
    let mut submit = |buf| queue.submit(IoOp::Read { at_bytes: prng.below(blocks) * BLOCK_SIZE as u64, buf });
    let mut tickets: Vec<_> = (0..depth).map(|_| submit(DmaBuf::new(BLOCK_SIZE))).collect();
    let mut done = 0;
    while done < ops {
        if queue.process_completions() == 0 {
            bail!("nothing is in flight");
        }
        for ticket in &mut tickets {
            if let Poll::Ready((result, buf)) = queue.poll_done(*ticket, &mut cx) {
                result?;
                done += 1;
                *ticket = submit(buf.context("a read gives its buffer back")?);
            }
        }
    }
    for ticket in tickets {
        queue.forget(ticket);
    }
    while queue.in_flight() > 0 {
        queue.process_completions();
    }
    Ok(())
}

fn own_type(queue: &NvmeQueue<EmuTransport>, depth: usize, ops: u64) -> Result<Lap> {
    timed(|| {
        let before = queue.doorbells();
        pump(queue, depth, ops)?;
        Ok(queue.doorbells() - before)
    })
}

fn through_trait(queue: &Rc<dyn Queue>, depth: usize, ops: u64) -> Result<Lap> {
    timed(|| pump(&**queue, depth, ops).map(|()| 0))
}

fn tasks(queue: &Rc<dyn Queue>, depth: usize, ops: u64) -> Result<Lap> {
    timed(|| {
        native::block_on(async {
            let polled = queue.clone();
            let _poller = vellum_rt::add_poller("device", move || polled.process_completions());
            let blocks = queue.geometry().size_bytes / BLOCK_SIZE as u64;
            let workers: Vec<_> = (0..depth)
                .map(|worker| {
                    let queue = queue.clone();
                    vellum_rt::spawn(Class::Request, "reads", async move {
                        let mut prng = Prng::new(worker as u64);
                        let mut buf = DmaBuf::new(BLOCK_SIZE);
                        for _ in 0..ops / depth as u64 {
                            buf = queue.read(prng.below(blocks) * BLOCK_SIZE as u64, buf).await?;
                        }
                        Ok::<(), vellum_nvme::DeviceError>(())
                    })
                })
                .collect();
            for worker in workers {
                worker.await.map_err(|_| anyhow::anyhow!("a reader was cancelled"))??;
            }
            Ok(0)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_runs_small() {
        let report = run(&Shape { ops: 2_000, repeats: 1 }).unwrap();
        assert_eq!(report.rows.len(), 4 * DEPTHS.len());
        assert!(report.rows.iter().all(|row| row.ops_per_s > 0.0));
        let notes = |system: &str, case: &str| {
            report.rows.iter().find(|row| row.system == system && row.case.ends_with(case)).unwrap().note.clone()
        };
        assert!(notes("trait", "depth 32").contains("of the 100 ns allowed"), "{}", notes("trait", "depth 32"));
        assert!(notes("driver", "depth 128").contains("doorbells"), "{}", notes("driver", "depth 128"));
        assert!(!notes("tasks", "depth 1").contains("allowed"), "the limit is for the driver, and for depths from 32");
    }
}
