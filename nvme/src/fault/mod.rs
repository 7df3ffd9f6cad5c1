//! A device in memory that misbehaves, by a seed and by rules: it has a volatile write cache that loses, tears and
//! reorders at [`FaultDevice::crash`]; it delays, stalls, fails, flips bits, misdirects and loses writes.
//!
//! - [`cache`]: what is on the medium and what is not; [`journal`]: the same at every point of a run;
//! - [`rules`]: faults and delays; [`queue`]: operations on their way;
//! - [`sharing`]: several processes that have it open, their deaths, and the fence between them.
//!
//! Time: without a [`DelayHook`] an operation completes at a later `process_completions`; with one it completes that
//! much later, in the hook's time. Deterministic as long as one thread uses it.

mod cache;
mod journal;
mod queue;
mod rules;
mod sharing;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use vellum_base::prng::Prng;
use vellum_base::units::BLOCK_SIZE;

pub use cache::{Event, Payload, SECTOR_BYTES};
pub use journal::Journal;
pub use rules::{Delays, Fault, On, Rule};
pub use sharing::{Fact, ProcessId};

use crate::health::Health;
use crate::{Device, DeviceError, Geometry, Image, Queue};
use cache::Cache;
use sharing::Sharing;

const MAX_TRANSFER_BYTES: usize = 1 << 20;

/// Wakes the waker when the time has passed. It is called on the thread that submits, and the queue's pollers must run
/// after the wake: `Arc::new(vellum_rt::wake_after)`.
pub type DelayHook = Arc<dyn Fn(Duration, Waker) + Send + Sync>;

#[derive(Default)]
pub struct FaultConfig {
    pub delays: Delays,
    pub hook: Option<DelayHook>,
    /// Keep a journal.
    pub journal: bool,
    pub rules: Vec<Rule>,
}

struct State {
    cache: Cache,
    journal: Option<Journal>,
    rules: Vec<Rule>,
    delays: Delays,
    prng: Prng,
    next_id: u64,
    sharing: Sharing,
}

impl State {
    fn happen(&mut self, event: Event) {
        self.cache.apply(&event);
        if let Some(journal) = &mut self.journal {
            journal.add(event, &self.cache);
        }
    }
}

struct Shared {
    geometry: Geometry,
    hook: Option<DelayHook>,
    health: Health,
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clones are the same device, opened by the same process.
#[derive(Clone)]
pub struct FaultDevice {
    shared: Arc<Shared>,
    process: ProcessId,
}

impl FaultDevice {
    /// A device that holds `image`, all of it on the medium. Panics when the image is not made of whole blocks.
    pub fn new(image: Image, seed: u64, config: FaultConfig) -> FaultDevice {
        let geometry = Geometry {
            size_bytes: image.len_bytes(),
            lba_bytes: SECTOR_BYTES as u32,
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            volatile_write_cache: true,
            name: format!("fault:{}", image.len_bytes()),
        };
        assert!(geometry.size_bytes.is_multiple_of(BLOCK_SIZE as u64), "an image is made of whole blocks");
        let cache = Cache::new(image);
        let journal = config.journal.then(|| Journal::new(cache.clone()));
        let (rules, delays, prng) = (config.rules, config.delays, Prng::new(seed));
        let state = Mutex::new(State { cache, journal, rules, delays, prng, next_id: 0, sharing: Sharing::default() });
        let shared = Shared { geometry, hook: config.hook, health: Health::default(), state };
        FaultDevice { shared: Arc::new(shared), process: ProcessId::default() }
    }

    pub fn as_device(&self) -> Arc<dyn Device> {
        Arc::new(self.clone())
    }

    /// What a power loss now may leave; the device itself goes on. Open another device with it.
    pub fn crash(&self, seed: u64) -> Image {
        self.shared.state().cache.crash(seed)
    }

    /// What reads see now: what a device that loses nothing would hold.
    pub fn snapshot(&self) -> Image {
        self.shared.state().cache.visible().clone()
    }

    pub fn add_rule(&self, rule: Rule) {
        self.shared.state().rules.push(rule);
    }

    pub fn clear_rules(&self) {
        self.shared.state().rules.clear();
    }

    /// For operations that are submitted from now on.
    pub fn set_delays(&self, delays: Delays) {
        self.shared.state().delays = delays;
    }

    /// Bit rot: one bit of the medium flips, and reads see it.
    pub fn flip_bit(&self, at_bytes: u64, bit: u8) {
        self.shared.state().cache.flip_bit(at_bytes, bit);
    }

    /// A word that [`Journal::note_at`] gives back for cuts after this.
    pub fn note(&self, value: u64) {
        self.shared.state().happen(Event::Note { value });
    }

    /// The run so far; empty unless the configuration asked for a journal.
    pub fn journal(&self) -> Journal {
        let state = self.shared.state();
        state.journal.clone().unwrap_or_else(|| Journal::new(state.cache.clone()))
    }

    /// As [`Journal::image_after`], of the run so far.
    pub fn image_after(&self, cut: usize, seed: u64) -> Image {
        let state = self.shared.state();
        state.journal.as_ref().expect("the configuration asks for a journal").image_after(cut, seed)
    }
}

impl Device for FaultDevice {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    fn open_queue(&self, depth: u32) -> Result<Rc<dyn Queue>, DeviceError> {
        self.shared.health.check()?;
        Ok(queue::FaultQueue::open(self.shared.clone(), self.process, depth))
    }
}
