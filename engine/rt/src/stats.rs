//! Counters of one reactor.

use std::collections::VecDeque;
use std::time::Duration;

use crate::Class;
use crate::reactor;
use crate::time::Instant;

/// Stalls remembered, the newest last.
const STALLS_KEPT: usize = 64;

/// A task poll that held the reactor for too long.
#[derive(Clone, Debug)]
pub struct Stall {
    pub task: &'static str,
    pub class: Option<Class>,
    /// When the poll ended.
    pub at: Instant,
    pub took: Duration,
}

#[derive(Clone, Copy, Default, Debug)]
pub struct ClassStats {
    pub polls: u64,
    pub time: Duration,
}

/// A copy of a reactor's counters, by [`stats`].
#[derive(Clone, Default, Debug)]
pub struct Stats {
    /// Turns of the reactor's loop.
    pub turns: u64,
    /// Times it slept in the kernel.
    pub sleeps: u64,
    /// Turns that found nothing to do, while it still spun.
    pub idle_turns: u64,
    /// Wakes that came from other threads.
    pub remote_wakes: u64,
    /// Completions of the ring.
    pub completions: u64,
    /// Events that pollers handled.
    pub poller_events: u64,
    pub tasks: usize,
    pub pollers: usize,
    /// Indexed by [`Class`].
    pub classes: [ClassStats; Class::COUNT],
    pub stalls: u64,
    pub recent_stalls: VecDeque<Stall>,
}

impl Stats {
    pub(crate) fn add_stall(&mut self, stall: Stall) {
        tracing::warn!(task = stall.task, took_us = stall.took.as_micros() as u64, "a task held its reactor");
        self.stalls += 1;
        if self.recent_stalls.len() == STALLS_KEPT {
            self.recent_stalls.pop_front();
        }
        self.recent_stalls.push_back(stall);
    }
}

/// Counters of the current reactor.
pub fn stats() -> Stats {
    reactor::with(|reactor| {
        let mut stats = reactor.stats.borrow().clone();
        stats.tasks = reactor.tasks.live();
        stats.pollers = reactor.pollers.len();
        stats
    })
}
