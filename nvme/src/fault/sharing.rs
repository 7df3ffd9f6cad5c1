//! A device that several processes have open.
//!
//! Each opens it under a number of its own ([`FaultDevice::opened_by`]). A process that is killed leaves writes behind
//! which land later, at any time, or never: the device has them and nobody waits ([`FaultDevice::process_killed`]). A fence
//! ends that: when [`FaultDevice::fence`] returns, nothing of that process will land any more, and what it still submits
//! is refused, as with a reservation that was preempted and aborted.
//!
//! Each write that is taken is told to [`vellum_base::probe`]: a checker sees who writes where.

use std::collections::{BTreeMap, BTreeSet};

use vellum_base::{DmaSlice, probe};

use super::cache::Event;
use super::{FaultDevice, State};

/// A process that has the device open. Numbers are not used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct ProcessId(pub u64);

/// What happens at a shared device.
#[derive(Clone, Debug)]
pub enum Fact {
    /// A write is submitted; discards are not told.
    Writes {
        process: ProcessId,
        id: u64,
        at_bytes: u64,
        data: DmaSlice,
    },
    /// Its process hears of its end.
    Written {
        process: ProcessId,
        id: u64,
        landed: bool,
    },
    Fenced {
        process: ProcessId,
    },
}

/// One of so many operations of others makes a write of a dead process land.
const LANDS_ONE_IN: u64 = 24;

#[derive(Default)]
pub(super) struct Sharing {
    /// Writes in flight, by who submitted them.
    writers: BTreeMap<u64, ProcessId>,
    /// Their processes are dead, and nobody waits for these.
    left_behind: BTreeSet<u64>,
    fenced: BTreeSet<ProcessId>,
}

impl Sharing {
    pub fn is_fenced(&self, process: ProcessId) -> bool {
        self.fenced.contains(&process)
    }

    pub fn submitted(&mut self, id: u64, process: ProcessId) {
        self.writers.insert(id, process);
    }

    pub fn ended(&mut self, id: u64) {
        self.writers.remove(&id);
        self.left_behind.remove(&id);
    }

    fn of(&self, process: ProcessId) -> BTreeSet<u64> {
        self.writers.iter().filter(|(_, by)| **by == process).map(|(id, _)| *id).collect()
    }
}

impl State {
    /// Something of a dead process may land at any moment: between any two operations of the living.
    pub(super) fn land_some(&mut self) {
        if self.sharing.left_behind.is_empty() || !self.prng.one_in(LANDS_ONE_IN) {
            return;
        }
        let nth = self.prng.below(self.sharing.left_behind.len() as u64) as usize;
        if let Some(id) = self.sharing.left_behind.iter().nth(nth).copied() {
            self.end_write(id);
        }
    }

    /// The write lands whole, in part, or not at all.
    fn end_write(&mut self, id: u64) {
        self.sharing.ended(id);
        let Some((_, sectors)) = self.cache.in_flight().into_iter().find(|(flying, _)| *flying == id) else { return };
        let event = match self.prng.below(3) {
            0 => Event::Written { id },
            1 => Event::WriteFailed { id, sectors: 0 },
            _ => Event::WriteFailed { id, sectors: self.prng.below(sectors as u64 + 1) as usize },
        };
        self.happen(event);
    }
}

impl FaultDevice {
    /// The same device, as `process` has it open.
    pub fn opened_by(&self, process: ProcessId) -> FaultDevice {
        FaultDevice { shared: self.shared.clone(), process }
    }

    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// The process that used the device is gone, and nothing of it will land later: each write that was in flight is
    /// done, in part or not at all. Its queues must not be used any more.
    pub fn process_died(&self) {
        let state = &mut *self.shared.state();
        for id in state.sharing.of(self.process) {
            state.end_write(id);
        }
    }

    /// The process is gone, and what it had in flight may land later. Its queues must not be used any more.
    pub fn process_killed(&self) {
        let state = &mut *self.shared.state();
        let left = state.sharing.of(self.process);
        state.sharing.left_behind.extend(left);
    }

    /// Nothing of the process lands from now on, and what it submits is refused, whether it lives or not.
    pub fn fence(&self, process: ProcessId) {
        let state = &mut *self.shared.state();
        for id in state.sharing.of(process) {
            state.end_write(id);
        }
        state.sharing.fenced.insert(process);
        probe::tell(|| Fact::Fenced { process });
    }
}
