//! A queue pair's memory: the submission ring, the completion ring, their doorbells (NVMe base 3.3.1, 3.3.3).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vellum_base::dma::SharedPages;

use super::{ControllerError, Transport};
use crate::spec::{COMPLETION_SHIFT, Completion, PAGE_BYTES, PHASE, SUBMISSION_SHIFT, Submission, doorbell_offset};

/// Shadow doorbells of a controller (5.8, annex B.5): two pages that all of its queues share.
pub(super) struct DoorbellBuffers {
    pub shadow: SharedPages,
    pub events: SharedPages,
}

impl DoorbellBuffers {
    pub fn new() -> Result<DoorbellBuffers, ControllerError> {
        let page = || SharedPages::new(PAGE_BYTES).ok_or(ControllerError::NoMemory);
        Ok(DoorbellBuffers { shadow: page()?, events: page()? })
    }
}

/// One doorbell, and what the controller was last told.
struct Doorbell {
    /// In BAR0.
    register: u32,
    /// In the doorbell buffers.
    buffer_at: usize,
    told: u32,
}

pub(super) struct Rings {
    pub qid: u16,
    /// Of the submission ring; at most one less may be at the device.
    pub entries: u32,
    /// Of the completion ring.
    pub completion_entries: u32,
    tail: u32,
    head: u32,
    /// The phase tag of new completions in this pass.
    phase: bool,
    tail_bell: Doorbell,
    head_bell: Doorbell,
    submissions: Arc<SharedPages>,
    completions: Arc<SharedPages>,
    buffers: Option<Arc<DoorbellBuffers>>,
}

impl Rings {
    /// At most `entries - 1` commands may be at the device. What the completion ring has beyond `entries` is how many
    /// reaped completions may be kept from the controller, so that it is told of many at once.
    pub fn new(qid: u16, entries: u32, completion_entries: u32, stride_shift: u32) -> Result<Rings, ControllerError> {
        let pages = |entries: u32, shift: u32| {
            let bytes = (entries as usize) << shift;
            SharedPages::new(bytes.next_multiple_of(PAGE_BYTES)).map(Arc::new).ok_or(ControllerError::NoMemory)
        };
        let bell = |completion: bool| {
            let register = doorbell_offset(qid, completion, stride_shift);
            let buffer_at = (8 * usize::from(qid) + 4 * usize::from(completion)) << stride_shift;
            Doorbell { register, buffer_at, told: 0 }
        };
        Ok(Rings {
            qid,
            entries,
            completion_entries,
            tail: 0,
            head: 0,
            phase: true,
            tail_bell: bell(false),
            head_bell: bell(true),
            submissions: pages(entries, SUBMISSION_SHIFT)?,
            completions: pages(completion_entries, COMPLETION_SHIFT)?,
            buffers: None,
        })
    }

    /// Device addresses of the submission and the completion ring.
    pub fn addresses<T: Transport>(&self, transport: &T) -> Result<(u64, u64), ControllerError> {
        let address = |pages: &SharedPages| {
            transport.address_of(pages.arena_offset(), pages.len()).ok_or(ControllerError::NoMemory)
        };
        Ok((address(&self.submissions)?, address(&self.completions)?))
    }

    /// What the controller may read and write as long as it has the queue.
    pub fn memory(&self) -> [Arc<SharedPages>; 2] {
        [self.submissions.clone(), self.completions.clone()]
    }

    /// As new: for a controller that has forgotten the queue. `buffers` when it uses shadow doorbells.
    pub fn restart(&mut self, buffers: Option<Arc<DoorbellBuffers>>) {
        self.submissions.clear();
        self.completions.clear();
        (self.tail, self.head, self.phase) = (0, 0, true);
        (self.tail_bell.told, self.head_bell.told) = (0, 0);
        self.buffers = buffers.filter(|_| self.qid != 0 && self.tail_bell.buffer_at + 8 <= PAGE_BYTES);
        if let Some(buffers) = &self.buffers {
            for at in [self.tail_bell.buffer_at, self.head_bell.buffer_at] {
                buffers.shadow.store32(at, 0);
                buffers.events.store32(at, 0);
            }
        }
    }

    /// Puts a command into the ring, and its id (field `cid`, which is 0) with it. The caller keeps fewer than `entries` at
    /// the device, so there is room.
    #[inline]
    pub fn push(&mut self, command: &Submission, cid: u16) {
        let mut words = command.to_words();
        // In a register: a field that is stored and then read as a part of its word waits for the store.
        words[0] |= (u64::from(cid) << 16).to_le();
        self.submissions.store_words((self.tail as usize) << SUBMISSION_SHIFT, words);
        self.tail = if self.tail + 1 == self.entries { 0 } else { self.tail + 1 };
    }

    /// Tells the controller of new commands: at most once per poll. True when a register was written.
    #[inline]
    pub fn ring_tail<T: Transport>(&mut self, transport: &T) -> bool {
        let tail = self.tail;
        self.tail_bell.ring(tail, self.buffers.as_deref(), transport)
    }

    /// The next completion, when there is one.
    #[inline]
    pub fn pop(&mut self) -> Option<Completion> {
        let at = (self.head as usize) << COMPLETION_SHIFT;
        let last = self.completions.load32(at + 12);
        if ((last >> 16) as u16 & PHASE != 0) != self.phase {
            return None;
        }
        let done = Completion::from_words(self.completions.load_words(at));
        self.head += 1;
        if self.head == self.completion_entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(done)
    }

    /// Gives the room of reaped completions back, when the controller could need it: what is at the device and what is
    /// kept from it fit into the ring together. A doorbell is a write across the bus, and out of a virtual machine an exit.
    #[inline]
    pub fn ring_head<T: Transport>(&mut self, transport: &T) -> bool {
        let head = self.head;
        let told = self.head_bell.told;
        let kept = if head < told { head + self.completion_entries - told } else { head - told };
        if kept <= self.completion_entries - self.entries {
            return false;
        }
        self.head_bell.ring(head, self.buffers.as_deref(), transport)
    }
}

impl Doorbell {
    #[inline]
    fn ring<T: Transport>(&mut self, value: u32, buffers: Option<&DoorbellBuffers>, transport: &T) -> bool {
        if value == self.told {
            return false;
        }
        let old = std::mem::replace(&mut self.told, value);
        if let Some(buffers) = buffers {
            buffers.shadow.store32(self.buffer_at, value);
            // The controller writes the event index and then looks at the shadow; here it is the other way round. One of
            // the two must see the other's value, or both would wait.
            fence(Ordering::SeqCst);
            if !passes_event(buffers.events.load32(self.buffer_at), value, old) {
                return false;
            }
        }
        transport.write32(self.register, value);
        true
    }
}

/// Annex B.5: the register is written when the value moves past the event index, in 16-bit arithmetic.
fn passes_event(event: u32, new: u32, old: u32) -> bool {
    let (event, new, old) = (event as u16, new as u16, old as u16);
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_index_within_the_step_is_passed() {
        assert!(passes_event(5, 6, 5));
        assert!(passes_event(5, 9, 4));
        assert!(!passes_event(6, 6, 5));
        assert!(!passes_event(4, 6, 5));
        assert!(passes_event(0xffff, 1, 0xfffe));
        assert!(!passes_event(0xfffd, 1, 0xfffe));
    }
}
