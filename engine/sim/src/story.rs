//! The run in sentences: who did what, when. What happens often is kept for a short while only.

use std::collections::{BTreeMap, VecDeque};

use vellum_base::Rid;
use vellum_rt::sim::WorldClock;

/// Sentences kept of what matters, and of the rest.
const KEPT: usize = 400;
const KEPT_DETAILS: usize = 250;

pub struct Story {
    clock: WorldClock,
    began: u64,
    names: BTreeMap<Rid, String>,
    lines: VecDeque<(u64, u64, String)>,
    details: VecDeque<(u64, u64, String)>,
    next: u64,
}

impl Story {
    pub fn new(clock: WorldClock) -> Story {
        let began = clock.now().0;
        Story { clock, began, names: BTreeMap::new(), lines: VecDeque::new(), details: VecDeque::new(), next: 0 }
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        self.clock.now().0 - self.began
    }

    pub fn call(&mut self, rid: Rid, name: String) {
        self.names.insert(rid, name);
    }

    pub fn name(&self, rid: Rid) -> String {
        self.names.get(&rid).cloned().unwrap_or_else(|| format!("rid {rid}"))
    }

    pub fn say(&mut self, sentence: String) {
        let line = (self.now(), self.next, sentence);
        self.next += 1;
        self.lines.push_back(line);
        if self.lines.len() > KEPT {
            self.lines.pop_front();
        }
    }

    /// Something that happens all the time.
    pub fn detail(&mut self, sentence: impl FnOnce(&Story) -> String) {
        let line = (self.now(), self.next, sentence(self));
        self.next += 1;
        self.details.push_back(line);
        if self.details.len() > KEPT_DETAILS {
            self.details.pop_front();
        }
    }

    /// Everything that is kept, in order.
    pub fn lines(&self) -> Vec<String> {
        let mut all: Vec<&(u64, u64, String)> = self.lines.iter().chain(&self.details).collect();
        all.sort_by_key(|(_, n, _)| *n);
        all.iter().map(|(at, _, sentence)| format!("{} {sentence}", time(*at))).collect()
    }
}

/// As the story writes it: seconds and microseconds.
pub fn time(ns: u64) -> String {
    format!("{:>4}.{:06}", ns / 1_000_000_000, ns / 1000 % 1_000_000)
}
