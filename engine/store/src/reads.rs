//! Which reads are running: data reads, before whose end no freed block is used again, and reads of a past epoch.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use vellum_base::Epoch;
use vellum_rt::local::Event;

struct Era {
    running: Cell<usize>,
    ended: Cell<bool>,
    done: Event,
}

/// Data reads in eras: a quiescence ends the current era and waits for its reads alone, so later ones don't delay it.
pub(crate) struct ReadTracker {
    era: RefCell<Rc<Era>>,
    /// Ended eras with reads that still run.
    older: RefCell<Vec<Rc<Era>>>,
}

fn new_era() -> Rc<Era> {
    Rc::new(Era { running: Cell::new(0), ended: Cell::new(false), done: Event::new() })
}

impl Default for ReadTracker {
    fn default() -> Self {
        ReadTracker { era: RefCell::new(new_era()), older: RefCell::default() }
    }
}

pub(crate) struct Reading(Rc<Era>);

/// While it lives, no block that is freed is used again.
pub struct HeldBlocks(#[expect(dead_code, reason = "it acts when it is dropped")] Reading);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        if self.0.running.get() == 0 && self.0.ended.get() {
            self.0.done.set();
        }
    }
}

impl ReadTracker {
    pub fn hold(&self) -> HeldBlocks {
        HeldBlocks(self.begin())
    }

    pub fn begin(&self) -> Reading {
        let era = self.era.borrow().clone();
        era.running.set(era.running.get() + 1);
        Reading(era)
    }

    /// Ends when every read that runs now has ended.
    pub async fn quiesce(&self) {
        let ended = self.era.replace(new_era());
        ended.ended.set(true);
        let all = {
            let mut older = self.older.borrow_mut();
            older.push(ended);
            older.retain(|era| era.running.get() > 0);
            older.clone()
        };
        for era in all {
            era.done.wait().await;
        }
    }
}

/// Epochs at which somebody reads.
#[derive(Default)]
pub(crate) struct Pins(RefCell<BTreeMap<Epoch, usize>>);

pub(crate) struct Pin {
    pins: Rc<Pins>,
    pub epoch: Epoch,
}

impl Pins {
    pub fn pin(self: &Rc<Self>, epoch: Epoch) -> Pin {
        *self.0.borrow_mut().entry(epoch).or_insert(0) += 1;
        Pin { pins: self.clone(), epoch }
    }

    pub fn oldest(&self) -> Option<Epoch> {
        self.0.borrow().first_key_value().map(|(epoch, _)| *epoch)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.0.borrow_mut();
        if let Some(n) = pins.get_mut(&self.epoch) {
            *n -= 1;
            if *n == 0 {
                pins.remove(&self.epoch);
            }
        }
    }
}
