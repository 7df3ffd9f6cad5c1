//! The device: state shared by its queues, and the controls of a test.

use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vellum_base::prng::Prng;
use vellum_base::units::BLOCK_SIZE;

use super::cache::{Event, WriteCache};
use super::config::{Delay, Fault, FaultConfig, Rule};
use super::journal::Journal;
use super::queue::FaultQueue;
use crate::health::Health;
use crate::{Device, DeviceError, Geometry, Image, IoOp, Queue};

/// What a device did so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FaultStats {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub discards: u64,
    /// Operations that something was done wrong to.
    pub faults: u64,
}

pub(super) struct State {
    pub cache: WriteCache,
    pub prng: Prng,
    pub rules: Vec<Rule>,
    pub old: Image,
    pub stats: FaultStats,
    pub next_id: u64,
    /// Calls of `process_completions` so far.
    pub polls: u64,
    /// Nothing completes before (polls or nanoseconds).
    pub stalled_until: u64,
    start: Option<WriteCache>,
    events: Vec<Event>,
    cut: usize,
}

impl State {
    pub fn event(&mut self, event: Event) {
        self.cache.apply(&event);
        self.cut += 1;
        if self.start.is_some() {
            self.events.push(event);
        }
    }

    /// What goes wrong with this operation: a rule's fault, or one by the configured rates.
    pub fn choose_fault(&mut self, op: &IoOp, config: &FaultConfig, size_bytes: u64) -> Option<Fault> {
        if let Some(fault) = self.rules.iter_mut().find_map(|rule| rule.hits(op)) {
            return Some(fault);
        }
        let prng = &mut self.prng;
        let mut one_in = |n: u64| n > 0 && prng.one_in(n);
        match op {
            IoOp::Read { .. } if one_in(config.read_error_one_in) => Some(Fault::Error),
            IoOp::Read { .. } if one_in(config.flip_read_one_in) => Some(Fault::FlipBit),
            IoOp::Write { .. } if one_in(config.write_error_one_in) => Some(Fault::Error),
            IoOp::Write { .. } if one_in(config.lose_write_one_in) => Some(Fault::Lose),
            IoOp::Write { data, .. } if one_in(config.misdirect_write_one_in) => {
                let places = (size_bytes - data.len() as u64) / BLOCK_SIZE as u64 + 1;
                Some(Fault::Misdirect(prng.below(places) * BLOCK_SIZE as u64))
            }
            IoOp::Flush if one_in(config.flush_error_one_in) => Some(Fault::Error),
            _ => None,
        }
    }
}

pub(super) struct Shared {
    pub geometry: Geometry,
    pub config: FaultConfig,
    pub health: Health,
    state: Mutex<State>,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module. Cheap to clone: clones are the same device.
#[derive(Clone)]
pub struct FaultDevice {
    shared: Arc<Shared>,
}

impl FaultDevice {
    /// `size_bytes` of zeros, rounded down to whole blocks.
    pub fn new(size_bytes: u64, seed: u64, config: FaultConfig) -> FaultDevice {
        FaultDevice::from_image(Image::zeroed(size_bytes - size_bytes % BLOCK_SIZE as u64), seed, config)
    }

    /// A device that was switched on with this content, all of it durable.
    pub fn from_image(image: Image, seed: u64, config: FaultConfig) -> FaultDevice {
        assert!(image.len_bytes().is_multiple_of(BLOCK_SIZE as u64), "an image is made of whole blocks");
        let geometry = Geometry {
            size_bytes: image.len_bytes(),
            lba_bytes: config.lba_bytes,
            max_transfer_bytes: config.max_transfer_bytes,
            volatile_write_cache: true,
            name: format!("fault:{} (seed {seed})", image.len_bytes()),
        };
        let cache = WriteCache::new(image.clone(), config.lba_bytes as usize);
        let state = State {
            start: config.record_journal.then(|| cache.clone()),
            cache,
            prng: Prng::new(seed),
            rules: Vec::new(),
            old: image,
            stats: FaultStats::default(),
            next_id: 0,
            polls: 0,
            stalled_until: 0,
            events: Vec::new(),
            cut: 0,
        };
        let shared = Shared { geometry, config, health: Health::default(), state: Mutex::new(state) };
        FaultDevice { shared: Arc::new(shared) }
    }

    /// One content that a power loss now may leave. The device itself goes on.
    pub fn crash(&self, seed: u64) -> Image {
        self.shared.state().cache.crash(seed)
    }

    /// What reads see now.
    pub fn visible(&self) -> Image {
        self.shared.state().cache.visible().clone()
    }

    /// Events so far: the cut of this moment.
    pub fn cut(&self) -> usize {
        self.shared.state().cut
    }

    /// What was recorded. Panics without `record_journal`.
    pub fn journal(&self) -> Journal {
        let state = self.shared.state();
        let start = state.start.clone().expect("the device was made with record_journal");
        Journal::new(start, state.events.clone())
    }

    /// One content that a power loss at `cut` may have left.
    pub fn image_after(&self, cut: usize, seed: u64) -> Image {
        self.journal().crash_image(cut, seed)
    }

    /// The first rule that hits an operation, in order of injection, decides.
    pub fn inject(&self, rule: Rule) {
        self.shared.state().rules.push(rule);
    }

    pub fn clear_rules(&self) {
        self.shared.state().rules.clear();
    }

    /// Inverts a bit of the medium (and of what reads see) for good.
    pub fn flip_bit(&self, at_bytes: u64, bit: u8) {
        assert!(at_bytes < self.shared.geometry.size_bytes);
        self.shared.state().event(Event::Flip { at_bytes, bit });
    }

    /// `Fault::ReadOld` returns what is visible now.
    pub fn mark_old(&self) {
        let mut state = self.shared.state();
        state.old = state.cache.visible().clone();
    }

    /// Nothing completes for this long (polls or nanoseconds, as `Delay` counts); then everything does.
    pub fn stall_for(&self, polls_or_ns: u64) {
        let mut state = self.shared.state();
        let now = match &self.shared.config.delay {
            Delay::Polls { .. } => state.polls,
            Delay::Time { hook, .. } => hook.now_ns(),
        };
        state.stalled_until = now.saturating_add(polls_or_ns);
    }

    pub fn stats(&self) -> FaultStats {
        self.shared.state().stats
    }
}

impl Device for FaultDevice {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    fn open_queue(&self, depth: u32) -> Result<Rc<dyn Queue>, DeviceError> {
        Ok(FaultQueue::open(self.shared.clone(), depth))
    }
}
