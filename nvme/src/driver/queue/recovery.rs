//! What a queue does when commands take too long, and while the controller is reset or dead.

use std::sync::atomic::Ordering;

use super::super::admin::AdminTicket;
use super::super::controller::{Controller, DEAD, LIVE, RESETTING, state_of};
use super::super::device::Shared;
use super::super::{ControllerError, Transport};
use super::command::fail;
use super::{GENERATION_MASK, INDEX_BITS, Inner, MAX_ATTEMPTS};
use crate::IoOp;
use crate::spec::Submission;

/// The unit of time in which commands age.
const TICK_MS: u64 = 10;
/// A command older than this makes the queue look at CSTS, each time it has aged as much again.
const LOOK_TICKS: u32 = 10;

/// How a queue comes back after a reset.
pub(super) enum Attach {
    No,
    CompletionQueue(AdminTicket, u32),
    SubmissionQueue(AdminTicket, u32),
}

impl Inner {
    /// Looks at the clock now and then: commands that take too long, events.
    pub(super) fn tick<T: Transport>(&mut self, shared: &Shared<T>) {
        let controller = &*shared.controller;
        self.polls_to_tick = controller.options.polls_per_tick;
        let now_ms = (controller.options.clock)();
        if now_ms.saturating_sub(self.last_tick_ms) < TICK_MS {
            return;
        }
        self.last_tick_ms = now_ms;
        self.tick = self.tick.wrapping_add(1);
        if self.at_device() {
            self.age(controller);
        }
        controller.tend(std::mem::take(&mut self.progress));
    }

    fn age<T: Transport>(&mut self, controller: &Controller<T>) {
        let (tick, qid) = (self.tick, self.rings.qid);
        let abort_ticks = (controller.options.io_timeout_ms / TICK_MS).clamp(2, 1 << 30) as u32;
        let mut oldest = 0;
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.running) {
            let age = tick.wrapping_sub(slot.tick);
            oldest = oldest.max(age);
            if age >= abort_ticks && !slot.aborting {
                slot.aborting = true;
                let cid = index as u16 | slot.generation << INDEX_BITS;
                controller.counters.aborts.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(device = controller.name(), qid, cid, "a command takes too long and is aborted");
                // Without a free admin slot the reset below is what is left.
                if let Ok(ticket) = controller.submit_admin(Submission::abort(qid, cid)) {
                    controller.admin().queue.abandon(ticket);
                }
            }
        }
        if oldest >= LOOK_TICKS && tick.wrapping_sub(self.looked_at_tick) >= LOOK_TICKS {
            self.looked_at_tick = tick;
            if let Err(reason) = controller.look() {
                return controller.begin_reset(self.life, &reason);
            }
        }
        if oldest >= abort_ticks + abort_ticks / 2 {
            let waited_ms = u64::from(oldest) * TICK_MS;
            controller.begin_reset(self.life, &ControllerError::Timeout { what: "a command", waited_ms });
        }
    }

    /// The controller is in another life than this queue. True when the owner should poll again.
    pub(super) fn out_of_service<T: Transport>(&mut self, shared: &Shared<T>) -> bool {
        let life = shared.controller.life();
        match state_of(life) {
            DEAD => {
                self.fail_all(shared);
                self.life = life;
                return false;
            }
            RESETTING => shared.controller.recover(),
            _ => {
                debug_assert_eq!(state_of(life), LIVE);
                if let Err(reason) = self.reattach(life, shared) {
                    self.attach = Attach::No;
                    shared.controller.begin_reset(life, &reason);
                }
            }
        }
        // An idle queue need not keep its reactor awake for this; it goes on at its next operation.
        self.at_device() || !self.waiting.is_empty()
    }

    fn reattach<T: Transport>(&mut self, life: u32, shared: &Shared<T>) -> Result<(), ControllerError> {
        let controller = &*shared.controller;
        let now_ms = (controller.options.clock)();
        let (ticket, for_life) = match self.attach {
            Attach::No => {
                self.requeue(shared);
                self.rings.restart(controller.buffers());
                let (_, completions) = self.rings.addresses(controller.transport())?;
                let create =
                    Submission::create_completion_queue(self.rings.qid, self.rings.completion_entries, completions);
                self.attach = Attach::CompletionQueue(controller.submit_admin(create)?, life);
                self.attach_deadline_ms = now_ms + controller.options.admin_timeout_ms;
                return Ok(());
            }
            Attach::CompletionQueue(ticket, for_life) | Attach::SubmissionQueue(ticket, for_life) => (ticket, for_life),
        };
        if for_life != life {
            self.attach = Attach::No; // reset again meanwhile
            return Ok(());
        }
        let what = "create IO queue after a reset";
        match controller.poll_admin(ticket)? {
            None if now_ms > self.attach_deadline_ms => {
                return Err(ControllerError::Timeout { what, waited_ms: controller.options.admin_timeout_ms });
            }
            None => {}
            Some(done) if !done.status().is_success() => {
                return Err(ControllerError::Command { what, status: done.status() });
            }
            Some(_) if matches!(self.attach, Attach::CompletionQueue(..)) => {
                let (submissions, _) = self.rings.addresses(controller.transport())?;
                let create = Submission::create_submission_queue(self.rings.qid, self.rings.entries, submissions);
                self.attach = Attach::SubmissionQueue(controller.submit_admin(create)?, life);
            }
            Some(_) => {
                self.attach = Attach::No;
                self.life = life;
            }
        }
        Ok(())
    }

    /// The controller was reset, so it has none of our commands any more: each is given again, or failed.
    fn requeue<T: Transport>(&mut self, shared: &Shared<T>) {
        let mut running: Vec<_> = self.slots.iter().filter(|slot| slot.running).map(|slot| slot.tracker).collect();
        self.release_slots();
        running.retain(|tracker| {
            let Some(command) = self.trackers.op(*tracker) else { return false };
            if command.attempts < MAX_ATTEMPTS {
                return true;
            }
            let err = match command.op {
                IoOp::Flush => shared.controller.give_up(format!("flush of {}: no answer", shared.geometry.name)),
                _ => command.op.error(libc::ETIMEDOUT),
            };
            self.trackers.finish(*tracker, |command| fail(command, err, shared));
            false
        });
        shared.controller.counters.retried.fetch_add(running.len() as u64, Ordering::Relaxed);
        for tracker in running.into_iter().rev() {
            self.waiting.push_front(tracker);
        }
    }

    fn release_slots(&mut self) {
        self.free.clear();
        for (index, slot) in self.slots.iter_mut().enumerate().rev() {
            slot.generation = (slot.generation + u16::from(slot.running)) & GENERATION_MASK;
            slot.running = false;
            self.free.push(index as u16);
        }
    }

    /// The controller is dead. What it may still write is kept from everybody.
    pub(super) fn fail_all<T: Transport>(&mut self, shared: &Shared<T>) {
        let controller = &*shared.controller;
        let quiet = controller.is_quiet();
        let err = controller.health.check().err().unwrap_or_else(|| controller.device_error(ControllerError::Gone));
        let lent: Vec<u32> = self.slots.iter().filter(|slot| slot.running).map(|slot| slot.tracker).collect();
        if !quiet {
            controller.keep(self.rings.memory());
            self.pages.memory().for_each(|pages| controller.keep(pages));
        }
        for tracker in lent {
            self.trackers.finish(tracker, |command| {
                if quiet {
                    fail(command, err.clone(), shared)
                } else {
                    controller.keep(command.take_memory());
                    Err(err.clone())
                }
            });
        }
        self.release_slots();
        self.waiting.clear();
        let rest: Vec<u32> = self.trackers.running().collect();
        for tracker in rest {
            self.trackers.finish(tracker, |command| fail(command, err.clone(), shared));
        }
    }
}
