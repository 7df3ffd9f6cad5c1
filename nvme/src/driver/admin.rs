//! The admin queue: few commands, each with its own slot and data page.

use vellum_base::dma::SharedPages;

use super::rings::Rings;
use super::{ControllerError, Transport};
use crate::spec::{AdminQueueAttributes, Completion, PAGE_BYTES, Submission};

/// Entries of both admin rings.
pub(super) const ADMIN_ENTRIES: u32 = 32;
/// Commands at the controller at most.
const SLOTS: usize = ADMIN_ENTRIES as usize - 1;

enum Slot {
    Free,
    /// The page stays here until the controller has answered, whoever still waits.
    Running {
        page: Option<SharedPages>,
        abandoned: bool,
    },
    Done {
        done: Completion,
        page: Option<SharedPages>,
    },
}

/// Names an admin command. Stale after a reset of the controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AdminTicket {
    index: u16,
    generation: u16,
}

/// An answer: its completion, and the page that the command was given.
pub(super) type Answer = (Completion, Option<SharedPages>);

pub(super) struct AdminQueue {
    rings: Rings,
    slots: Vec<Slot>,
    generations: [u16; SLOTS],
}

impl AdminQueue {
    pub fn new(stride_shift: u32) -> Result<AdminQueue, ControllerError> {
        let rings = Rings::new(0, ADMIN_ENTRIES, ADMIN_ENTRIES, stride_shift)?;
        Ok(AdminQueue { rings, slots: (0..SLOTS).map(|_| Slot::Free).collect(), generations: [0; SLOTS] })
    }

    pub fn attributes(&self) -> AdminQueueAttributes {
        AdminQueueAttributes::new(ADMIN_ENTRIES as u16, ADMIN_ENTRIES as u16)
    }

    pub fn addresses<T: Transport>(&self, transport: &T) -> Result<(u64, u64), ControllerError> {
        self.rings.addresses(transport)
    }

    /// For a controller that is disabled: it has forgotten every command, and every ticket is stale.
    pub fn restart(&mut self) {
        self.rings.restart(None);
        for (slot, generation) in self.slots.iter_mut().zip(&mut self.generations) {
            *slot = Slot::Free;
            *generation = generation.wrapping_add(1);
        }
    }

    /// None: all slots are in use. With a page, the command's data pointer is set to it.
    pub fn submit<T: Transport>(
        &mut self,
        mut command: Submission,
        page: Option<SharedPages>,
        transport: &T,
    ) -> Result<AdminTicket, ControllerError> {
        let full = ControllerError::Unsupported { what: "it does not answer admin commands, and all slots are in use" };
        let index = self.slots.iter().position(|slot| matches!(slot, Slot::Free)).ok_or(full)?;
        if let Some(page) = &page {
            let address = transport.address_of(page.arena_offset(), page.len()).ok_or(ControllerError::NoMemory)?;
            command = command.with_prp(address, 0);
        }
        let generation = self.generations[index].wrapping_add(1);
        self.generations[index] = generation;
        let ticket = AdminTicket { index: index as u16, generation };
        self.slots[index] = Slot::Running { page, abandoned: false };
        self.rings.push(&command, ticket.index | generation << 8);
        self.rings.ring_tail(transport);
        Ok(ticket)
    }

    /// Reaps. Answers to nothing that runs are counted and otherwise ignored.
    pub fn poll<T: Transport>(&mut self, transport: &T) -> u64 {
        transport.turn(0);
        let mut nonsense = 0;
        for _ in 0..ADMIN_ENTRIES {
            let Some(done) = self.rings.pop() else { break };
            let cid = done.cid.get();
            let index = usize::from(cid & 0xff);
            let running = self.slots.get_mut(index).filter(|_| self.generations[index] << 8 == cid & 0xff00);
            match running {
                Some(slot) if matches!(slot, Slot::Running { .. }) => {
                    if let Slot::Running { page, abandoned: false } = std::mem::replace(slot, Slot::Free) {
                        *slot = Slot::Done { done, page };
                    }
                }
                _ => nonsense += 1,
            }
        }
        self.rings.ring_head(transport);
        nonsense
    }

    /// The answer, once. An error when a reset has made the ticket stale.
    pub fn take(&mut self, ticket: AdminTicket) -> Result<Option<Answer>, ControllerError> {
        let index = usize::from(ticket.index);
        if self.generations[index] != ticket.generation {
            return Err(ControllerError::NotReady { what: "done with a command before it was reset", waited_ms: 0 });
        }
        match std::mem::replace(&mut self.slots[index], Slot::Free) {
            Slot::Done { done, page } => Ok(Some((done, page))),
            other => {
                self.slots[index] = other;
                Ok(None)
            }
        }
    }

    /// Nobody waits any more; page and slot stay taken until the controller has answered.
    pub fn abandon(&mut self, ticket: AdminTicket) {
        let index = usize::from(ticket.index);
        if self.generations[index] != ticket.generation {
            return;
        }
        match &mut self.slots[index] {
            Slot::Running { abandoned, .. } => *abandoned = true,
            done => *done = Slot::Free,
        }
    }
}

/// A page for an admin command.
pub(super) fn page() -> Result<SharedPages, ControllerError> {
    SharedPages::new(PAGE_BYTES).ok_or(ControllerError::NoMemory)
}
