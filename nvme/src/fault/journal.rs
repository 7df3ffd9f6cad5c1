//! Everything that happened to a device, and the crash image at any point of it.

use super::cache::{Event, WriteCache};
use crate::Image;

/// A recorded run. A *cut* is a number of events: cut 0 is the device as it was made, cut `len()` is now.
#[derive(Clone)]
pub struct Journal {
    start: WriteCache,
    events: Vec<Event>,
}

impl Journal {
    pub(super) fn new(start: WriteCache, events: Vec<Event>) -> Journal {
        Journal { start, events }
    }

    /// The last cut.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// One image that a power loss at `cut` may leave. For many cuts in ascending order use [`Journal::replay`].
    pub fn crash_image(&self, cut: usize, seed: u64) -> Image {
        let mut replay = self.replay();
        while replay.cut() < cut && replay.step().is_some() {}
        replay.crash(seed)
    }

    /// A walk over all cuts, each in time that depends on what is in the cache alone.
    pub fn replay(&self) -> Replay<'_> {
        Replay { events: &self.events, cut: 0, cache: self.start.clone() }
    }
}

/// A position within a [`Journal`].
pub struct Replay<'a> {
    events: &'a [Event],
    cut: usize,
    cache: WriteCache,
}

impl<'a> Replay<'a> {
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Applies the next event and gives it, or `None` at the end.
    pub fn step(&mut self) -> Option<&'a Event> {
        let event = self.events.get(self.cut)?;
        self.cache.apply(event);
        self.cut += 1;
        Some(event)
    }

    /// One image that a power loss here may leave.
    pub fn crash(&self, seed: u64) -> Image {
        self.cache.crash(seed)
    }

    /// What a reader saw here.
    pub fn visible(&self) -> &Image {
        self.cache.visible()
    }
}
