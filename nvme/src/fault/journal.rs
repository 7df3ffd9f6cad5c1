//! Everything that changed a device, so that a test can cut its power at every point of a run.

use super::cache::{Cache, Event};
use crate::Image;

/// Events between two remembered states.
const CHECKPOINT: usize = 64;

/// A run of a device. Memory: all data ever written, so it is kept only when asked for.
#[derive(Clone)]
pub struct Journal {
    events: Vec<Event>,
    /// State before events `0`, `CHECKPOINT`, `2 * CHECKPOINT`...
    checkpoints: Vec<Cache>,
}

impl Journal {
    pub(super) fn new(start: Cache) -> Journal {
        Journal { events: Vec::new(), checkpoints: vec![start] }
    }

    pub(super) fn add(&mut self, event: Event, after: &Cache) {
        self.events.push(event);
        if self.events.len().is_multiple_of(CHECKPOINT) {
            self.checkpoints.push(after.clone());
        }
    }

    /// A cut is a number of events in `0..=len()`.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    fn state_after(&self, cut: usize) -> Cache {
        let checkpoint = cut / CHECKPOINT;
        let mut cache = self.checkpoints[checkpoint].clone();
        for event in &self.events[checkpoint * CHECKPOINT..cut] {
            cache.apply(event);
        }
        cache
    }

    /// One of the images that a loss of power after `cut` events may leave.
    ///
    /// # Panics
    /// When there are fewer events.
    pub fn image_after(&self, cut: usize, seed: u64) -> Image {
        self.state_after(cut).crash(seed)
    }

    /// The last [`super::FaultDevice::note`] before the cut.
    pub fn note_at(&self, cut: usize) -> u64 {
        self.state_after(cut).note()
    }
}
