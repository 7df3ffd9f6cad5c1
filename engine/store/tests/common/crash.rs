//! A device with a volatile write cache whose power can be cut at any operation: writes that no flush covered are lost,
//! torn at 512 B, or there, independently of each other.

use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use vellum_base::DmaSlice;
use vellum_base::prng::Prng;
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, DeviceError, Geometry, Image, IoDone, IoOp, Queue, Ticket};

#[derive(Clone)]
struct Pending {
    id: u64,
    at: u64,
    data: DmaSlice,
    completed: bool,
}

#[derive(Default)]
struct State {
    durable: Option<Image>,
    pending: Vec<Pending>,
    /// Flushes that run, with the writes that each covers.
    flushes: Vec<Vec<u64>>,
    ops: u64,
    every: u64,
    cuts: Vec<Cut>,
    /// What the test knows to be durable, taken along with each cut.
    note: u64,
    fail_flushes: bool,
}

/// The device at one instant.
pub struct Cut {
    durable: Image,
    pending: Vec<Pending>,
    pub op: u64,
    pub note: u64,
}

impl Cut {
    /// One of the images that the medium may hold after power was lost at this instant.
    pub fn image(&self, seed: u64) -> Image {
        let mut prng = Prng::new(seed);
        let mut image = self.durable.clone();
        let mut order: Vec<usize> = (0..self.pending.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, prng.below(i as u64 + 1) as usize);
        }
        // Some crashes lose nearly all, some nearly nothing.
        let bias = prng.below(4);
        for i in order {
            let p = &self.pending[i];
            match prng.below(4) + bias {
                0 | 1 => {}
                2 => {
                    let sectors = p.data.len() as u64 / 512;
                    let keep = prng.below(sectors + 1) as usize * 512;
                    image.write(p.at, &p.data[..keep]);
                }
                3 => {
                    for (k, sector) in p.data.chunks(512).enumerate() {
                        if prng.one_in(2) {
                            image.write(p.at + k as u64 * 512, sector);
                        }
                    }
                }
                _ => image.write(p.at, &p.data),
            }
        }
        image
    }
}

#[derive(Clone)]
pub struct CrashDevice {
    memory: MemoryDevice,
    geometry: Geometry,
    state: Arc<Mutex<State>>,
}

impl CrashDevice {
    pub fn new(image: Image) -> CrashDevice {
        let state = State { durable: Some(image.clone()), ..State::default() };
        let memory = MemoryDevice::from_image(image);
        let geometry = Geometry { volatile_write_cache: true, ..memory.geometry().clone() };
        CrashDevice { memory, geometry, state: Arc::new(Mutex::new(state)) }
    }

    pub fn snapshot(&self) -> Image {
        self.memory.snapshot()
    }

    /// The device becomes larger while it is open.
    pub fn enlarge(&self, size_bytes: u64) {
        let mut state = self.state.lock().unwrap();
        self.memory.enlarge(size_bytes);
        state.durable.as_mut().unwrap().enlarge(size_bytes);
    }

    /// From now on remembers the instant of every `every`th write or flush.
    pub fn cut_every(&self, every: u64) {
        self.state.lock().unwrap().every = every;
    }

    /// Every flush from now on ends with an error.
    pub fn fail_flushes(&self) {
        self.state.lock().unwrap().fail_flushes = true;
    }

    pub fn note(&self, note: u64) {
        self.state.lock().unwrap().note = note;
    }

    pub fn take_cuts(&self) -> Vec<Cut> {
        let mut state = self.state.lock().unwrap();
        state.every = 0;
        std::mem::take(&mut state.cuts)
    }

    pub fn as_device(&self) -> Arc<dyn Device> {
        Arc::new(self.clone())
    }
}

impl Device for CrashDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn open_queue(&self, depth: u32) -> Result<Rc<dyn Queue>, DeviceError> {
        Ok(Rc::new(CrashQueue {
            inner: self.memory.open_queue(depth)?,
            geometry: self.geometry.clone(),
            state: self.state.clone(),
        }))
    }
}

struct CrashQueue {
    inner: Rc<dyn Queue>,
    geometry: Geometry,
    state: Arc<Mutex<State>>,
}

impl Queue for CrashQueue {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn look_at_size(&self) -> Result<u64, DeviceError> {
        self.inner.look_at_size()
    }

    fn submit(&self, op: IoOp) -> Ticket {
        let state = &mut *self.state.lock().unwrap();
        if state.fail_flushes && matches!(op, IoOp::Flush) {
            return self.inner.submit(IoOp::Discard { at_bytes: u64::MAX - 4095, len_bytes: 4096 }); // out of range
        }
        if !matches!(op, IoOp::Read { .. }) {
            state.ops += 1;
            let id = state.ops;
            match &op {
                IoOp::Write { at_bytes, data, .. } => {
                    state.pending.push(Pending { id, at: *at_bytes, data: data.clone(), completed: false });
                }
                IoOp::Flush => {
                    state.flushes.push(state.pending.iter().filter(|p| p.completed).map(|p| p.id).collect());
                }
                _ => {}
            }
            if state.every > 0 && id.is_multiple_of(state.every) {
                let (durable, pending) = (state.durable.clone().unwrap(), state.pending.clone());
                state.cuts.push(Cut { durable, pending, op: id, note: state.note });
            }
        }
        self.inner.submit(op)
    }

    fn poll_done(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<IoDone> {
        self.inner.poll_done(ticket, cx)
    }

    fn forget(&self, ticket: Ticket) {
        self.inner.forget(ticket);
    }

    fn process_completions(&self) -> usize {
        if self.inner.in_flight() == 0 {
            return 0;
        }
        {
            // Several queues share this; completing another queue's write a moment early is within the model, because
            // its owner has not been told.
            let state = &mut *self.state.lock().unwrap();
            let mut covered: Vec<u64> = std::mem::take(&mut state.flushes).concat();
            covered.sort_unstable();
            let image = state.durable.as_mut().unwrap();
            state.pending.retain(|p| {
                let keep = covered.binary_search(&p.id).is_err();
                if !keep {
                    image.write(p.at, &p.data);
                }
                keep
            });
            state.pending.iter_mut().for_each(|p| p.completed = true);
        }
        self.inner.process_completions()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
}
