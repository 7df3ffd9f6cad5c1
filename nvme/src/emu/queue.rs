//! Submission and completion queues as the controller sees them.

use std::sync::{MutexGuard, PoisonError};

use zerocopy::IntoBytes;

use super::faults::Fault;
use super::io::IoCounters;
use super::{Bus, BusFault, Controller};
use crate::spec::{Completion, Status, Submission};

/// Commands that one call executes at most, so that a host which submits without end cannot hold the caller.
const MAX_BURST: u32 = 1024;

#[derive(Default)]
pub(super) struct SubmissionQueue {
    pub at: u64,
    pub entries: u32,
    pub head: u32,
    pub cq: u16,
    pub counters: IoCounters,
    /// Commands whose turn has not come, by a fault.
    pub held: Vec<Held>,
}

#[derive(Default)]
pub(super) struct CompletionQueue {
    pub at: u64,
    pub entries: u32,
    pub tail: u32,
    pub phase: bool,
}

pub(super) struct Held {
    turns: u32,
    command: Submission,
}

/// What became of a command.
pub(super) enum Outcome {
    Done(Status, u32),
    /// Answered later, or never.
    Silent,
}

impl<B: Bus> Controller<B> {
    /// Does what the host has submitted to queue `qid`. Returns the number of commands taken.
    pub fn run_queue(&self, qid: u16) -> usize {
        let Some(place) = self.submission_queues().get(usize::from(qid)) else { return 0 };
        let mut guard = place.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sq) = guard.as_mut() else { return 0 };
        if self.has_faults() {
            return self.run_with_faults(qid, guard);
        }
        let tail = self.tail(qid);
        if tail == sq.head {
            return 0;
        }
        let mut taken = 0;
        if tail >= sq.entries {
            self.invalid_doorbell();
            return 0;
        }
        if qid == 0 {
            drop(guard);
            return self.run_admin(tail);
        }
        let Some(cq_place) = self.completion_queues().get(usize::from(sq.cq)) else { return 0 };
        let mut cq = cq_place.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(cq) = cq.as_mut() else { return 0 };
        while sq.head != tail && taken < MAX_BURST && self.has_room(sq.cq, cq) {
            let Ok(command) = self.fetch(sq) else {
                self.fatal();
                return taken as usize;
            };
            let status = self.execute_io(&command, &mut sq.counters);
            let done = Completion::new(command.cid.get(), qid, sq.head as u16, status, 0);
            if self.post(cq, done).is_err() {
                self.fatal();
            }
            taken += 1;
        }
        self.publish_event_indexes(qid, sq.head, sq.cq);
        taken as usize
    }

    fn run_admin(&self, tail: u32) -> usize {
        let mut taken = 0;
        while taken < MAX_BURST {
            // One at a time, unlocked while it is done: admin commands make and delete queues.
            let Some((command, head)) = self.next_command(0, tail) else { break };
            taken += 1;
            if let Outcome::Done(status, result) = self.execute_admin(&command, false) {
                self.complete(0, 0, Completion::new(command.cid.get(), 0, head, status, result));
            }
        }
        taken as usize
    }

    fn run_with_faults(&self, qid: u16, mut guard: MutexGuard<'_, Option<SubmissionQueue>>) -> usize {
        let Some(sq) = guard.as_mut() else { return 0 };
        let mut due = Vec::new();
        sq.held.retain_mut(|held| {
            held.turns = held.turns.saturating_sub(1);
            if held.turns == 0 {
                due.push(held.command);
            }
            held.turns > 0
        });
        drop(guard);
        for command in due {
            self.perform(qid, &command, None);
        }
        let mut taken = 0;
        let tail = self.tail(qid);
        while taken < MAX_BURST as usize && !self.is_fatal() {
            let Some((command, _)) = self.next_command(qid, tail) else { break };
            taken += 1;
            let fault = self.next_fault(qid == 0, command.opcode);
            self.perform(qid, &command, fault);
        }
        taken
    }

    /// Takes the next command off the queue, with the head after it.
    fn next_command(&self, qid: u16, tail: u32) -> Option<(Submission, u16)> {
        let place = self.submission_queues().get(usize::from(qid))?;
        let mut guard = place.lock().unwrap_or_else(PoisonError::into_inner);
        let sq = guard.as_mut()?;
        if sq.head == tail || tail >= sq.entries {
            return None;
        }
        match self.fetch(sq) {
            Ok(command) => {
                let (head, cq) = (sq.head, sq.cq);
                self.publish_event_indexes(qid, head, cq);
                Some((command, head as u16))
            }
            Err(BusFault) => {
                self.fatal();
                None
            }
        }
    }

    fn perform(&self, qid: u16, command: &Submission, fault: Option<Fault>) {
        let hold = |turns| {
            self.with_queue(qid, |sq| sq.held.push(Held { turns, command: *command }));
        };
        let outcome = match fault {
            Some(Fault::Lose) => return,
            Some(Fault::Late { turns }) => return hold(turns.max(1)),
            Some(Fault::Reorder { max_turns }) => {
                return hold(1 + self.random_below(u64::from(max_turns.max(1))) as u32);
            }
            Some(Fault::Fatal) => return self.fatal(),
            Some(Fault::Reset) => return self.function_reset(),
            Some(Fault::Vanish) => return self.vanish(),
            Some(Fault::Scribble) => {
                let mut random = Completion::default();
                self.random_fill(random.as_mut_bytes());
                return self.complete(qid, qid, random);
            }
            Some(Fault::Status(status)) => Outcome::Done(status, 0),
            _ if qid == 0 => self.execute_admin(command, fault == Some(Fault::Garble)),
            _ => {
                let mut counters = IoCounters::default();
                let status = self.execute_io(command, &mut counters);
                self.with_queue(qid, |sq| {
                    sq.counters.reads += counters.reads;
                    sq.counters.writes += counters.writes;
                });
                Outcome::Done(status, 0)
            }
        };
        let Outcome::Done(status, result) = outcome else { return };
        let (mut head, mut cq) = (0, qid);
        self.with_queue(qid, |sq| (head, cq) = (sq.head as u16, sq.cq));
        let done = Completion::new(command.cid.get(), qid, head, status, result);
        match fault {
            Some(Fault::LoseCompletion) => {}
            Some(Fault::WrongPhase) => self.with_completion_queue(cq, |cq| {
                let at = cq.at + u64::from(cq.tail) * size_of::<Completion>() as u64;
                let _ = self.bus().write(at, done.with_phase(!cq.phase).as_bytes());
            }),
            Some(Fault::UnknownCid) => {
                self.complete(qid, cq, done);
                let cid = self.random_below(1 << 16) as u16;
                self.complete(qid, cq, Completion { cid: cid.into(), ..done });
            }
            Some(Fault::Duplicate) => {
                self.complete(qid, cq, done);
                self.complete(qid, cq, done);
            }
            Some(Fault::WrongQueue) => self.complete(qid, cq, Completion { sq_id: (qid ^ 1).into(), ..done }),
            _ => self.complete(qid, cq, done),
        }
    }

    fn with_queue(&self, qid: u16, f: impl FnOnce(&mut SubmissionQueue)) {
        if let Some(place) = self.submission_queues().get(usize::from(qid))
            && let Some(sq) = place.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            f(sq);
        }
    }

    fn with_completion_queue(&self, cq: u16, f: impl FnOnce(&mut CompletionQueue)) {
        if let Some(place) = self.completion_queues().get(usize::from(cq))
            && let Some(cq) = place.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            f(cq);
        }
    }

    /// Posts a completion; dropped when its queue is gone or full.
    pub(super) fn complete(&self, _sq: u16, cq_id: u16, done: Completion) {
        self.with_completion_queue(cq_id, |cq| {
            if self.has_room(cq_id, cq) && self.post(cq, done).is_err() {
                self.fatal();
            }
        });
    }

    #[inline]
    fn fetch(&self, sq: &mut SubmissionQueue) -> Result<Submission, BusFault> {
        let mut command = Submission::default();
        self.bus().read(sq.at + u64::from(sq.head) * size_of::<Submission>() as u64, command.as_mut_bytes())?;
        sq.head = if sq.head + 1 == sq.entries { 0 } else { sq.head + 1 };
        Ok(command)
    }

    #[inline]
    fn post(&self, cq: &mut CompletionQueue, done: Completion) -> Result<(), BusFault> {
        let done = done.with_phase(cq.phase);
        let at = cq.at + u64::from(cq.tail) * size_of::<Completion>() as u64;
        let (body, last) = done.as_bytes().split_at(12);
        self.bus().write(at, body)?;
        let last = last.try_into().map_or(0, u32::from_le_bytes);
        self.bus().store32(at + 12, last)?; // the phase, after what it announces
        cq.tail += 1;
        if cq.tail == cq.entries {
            cq.tail = 0;
            cq.phase = !cq.phase;
        }
        Ok(())
    }

    /// Room for one more completion. The head is what the host says; an impossible one gives no room.
    #[inline]
    fn has_room(&self, cq_id: u16, cq: &CompletionQueue) -> bool {
        let next = if cq.tail + 1 == cq.entries { 0 } else { cq.tail + 1 };
        next != self.doorbell_value(cq_id, true)
    }

    #[inline]
    fn tail(&self, qid: u16) -> u32 {
        self.doorbell_value(qid, false)
    }

    /// From the shadow buffer where the host has given one, else from the register.
    #[inline]
    fn doorbell_value(&self, qid: u16, completion: bool) -> u32 {
        let index = 2 * usize::from(qid) + usize::from(completion);
        match self.shadow() {
            Some((shadow, _)) if qid != 0 => self.bus().load32(shadow + 4 * index as u64).unwrap_or(0),
            _ => self.bus().doorbell(index),
        }
    }

    /// Tells a host with shadow doorbells from which value on it must ring the register: never, as this model polls.
    fn publish_event_indexes(&self, qid: u16, head: u32, cq: u16) {
        if let Some((_, events)) = self.shadow()
            && qid != 0
        {
            // An index just behind the head is passed only after the whole queue went by.
            let _ = self.bus().store32(events + 8 * u64::from(qid), head.wrapping_sub(1) & 0xffff);
            let _ = self.bus().store32(events + 8 * u64::from(cq) + 4, 0);
        }
    }
}
