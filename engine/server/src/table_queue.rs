//! Work on a reactor's lock tables, in pieces: however much one client gives back, recovers or leaves behind, others wait for
//! a piece of it and not for all.
//!
//! Invariants
//! - what one client asks for is done in the order in which it came; clients take turns, a piece each;
//! - a piece touches at most [`PIECE`] locks, files or inodes.
//!
//! Bound: each entry belongs to an unanswered request of a client, to a lock that it holds, or to its reclaim.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use vellum_base::{ReactorId, Rid};
use vellum_rt::{Class, spawn, yield_now};
use vellum_wire::{LockGrant, LockName, LockWant};

use crate::mesh::{Answer, Message};
use crate::reactor::Reactor;

/// Locks of one piece: a quarter of a millisecond.
pub(crate) const PIECE: usize = 256;

/// Who waits for the end of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Caller {
    pub token: u64,
    pub from: ReactorId,
}

#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Lock {
        request: u64,
        want: LockWant,
    },
    Invalidated {
        name: LockName,
    },
    Unlock {
        to: Vec<LockWant>,
        caller: Caller,
    },
    Reassert {
        grants: Vec<LockGrant>,
        caller: Caller,
    },
    /// Everything of the client goes.
    Release {
        caller: Caller,
    },
    /// Of no client: grants flow from now on.
    Recovered,
}

impl Step {
    /// How many locks it may touch; of what is not known in advance, one more than a piece.
    fn cost(&self) -> usize {
        match self {
            Step::Lock { .. } | Step::Invalidated { .. } => 1,
            Step::Unlock { to, .. } => to.len(),
            Step::Reassert { grants, .. } => grants.len(),
            Step::Release { .. } | Step::Recovered => PIECE + 1,
        }
    }

    /// Takes a piece off; none when the whole of it is one.
    fn split(&mut self) -> Option<Split> {
        match self {
            Step::Unlock { to, .. } if to.len() > PIECE => Some(Split::Unlock(to.drain(..PIECE).collect())),
            Step::Reassert { grants, .. } if grants.len() > PIECE => {
                Some(Split::Reassert(grants.drain(..PIECE).collect()))
            }
            _ => None,
        }
    }
}

/// The first piece of a step that has more.
enum Split {
    Unlock(Vec<LockWant>),
    Reassert(Vec<LockGrant>),
}

/// What waits, by client; `None` is the engine itself.
#[derive(Default)]
pub(crate) struct TableQueue {
    waiting: BTreeMap<Option<Rid>, VecDeque<Step>>,
    turns: VecDeque<Option<Rid>>,
    running: bool,
}

impl TableQueue {
    fn push(&mut self, of: Option<Rid>, step: Step) {
        // Who has an entry has a turn, also while its last step is being carried out.
        let steps = self.waiting.entry(of).or_insert_with(|| {
            self.turns.push_back(of);
            VecDeque::new()
        });
        steps.push_back(step);
    }

    /// The step at the head of the client whose turn it is. It stays its turn until [`Self::done`].
    fn take(&mut self) -> Option<(Option<Rid>, Step)> {
        let of = *self.turns.front()?;
        let step = self.waiting.get_mut(&of)?.pop_front()?;
        Some((of, step))
    }

    /// The next one's turn; `rest` is what is left of the step.
    fn done(&mut self, rest: Option<Step>) {
        let Some(of) = self.turns.pop_front() else { return };
        let Some(steps) = self.waiting.get_mut(&of) else { return };
        if let Some(rest) = rest {
            steps.push_front(rest);
        }
        if steps.is_empty() {
            self.waiting.remove(&of);
        } else {
            self.turns.push_back(of);
        }
    }

    /// Something waits, or is being done.
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    fn has_of(&self, of: Option<Rid>) -> bool {
        self.waiting.contains_key(&of)
    }
}

impl Reactor {
    /// Does a step at once when it is a small one and nothing of its client is before it; else when its turn comes.
    pub(crate) fn on_tables(self: &Rc<Self>, of: Option<Rid>, step: Step) {
        if step.cost() <= PIECE && !self.table_queue.borrow().has_of(of) {
            self.carry_out(of, step);
            return;
        }
        let mut queue = self.table_queue.borrow_mut();
        queue.push(of, step);
        if !std::mem::replace(&mut queue.running, true) {
            spawn(Class::Request, "lock tables", self.clone().work_off()).detach();
        }
    }

    async fn work_off(self: Rc<Self>) {
        loop {
            let next = self.table_queue.borrow_mut().take();
            let Some((of, step)) = next else { break };
            self.table.borrow_mut().at(vellum_proto::Time(vellum_rt::now().0));
            let rest = self.carry_out(of, step);
            self.table_queue.borrow_mut().done(rest);
            yield_now().await;
        }
        self.table_queue.borrow_mut().running = false;
    }

    /// One piece of a step; what is left of it.
    fn carry_out(self: &Rc<Self>, of: Option<Rid>, mut step: Step) -> Option<Step> {
        let rid = of.unwrap_or_default();
        if let Some(piece) = step.split() {
            let answer = match piece {
                Split::Unlock(to) => self.unlock_here(rid, &to),
                Split::Reassert(grants) => self.reassert_here(rid, grants),
            };
            // What is refused is refused as a whole: the client is given up.
            if let (Answer::Refused(why), Step::Reassert { caller, .. }) = (answer, &step) {
                self.answer_to(*caller, Answer::Refused(why));
                return None;
            }
            return Some(step);
        }
        match step {
            Step::Lock { request, want } => self.lock(rid, request, want),
            Step::Invalidated { name } => {
                self.table.borrow_mut().invalidated(rid, name);
                self.drive_table();
            }
            Step::Unlock { to, caller } => {
                let answer = self.unlock_here(rid, &to);
                self.answer_to(caller, answer);
            }
            Step::Reassert { grants, caller } => {
                let answer = self.reassert_here(rid, grants);
                self.answer_to(caller, answer);
            }
            Step::Release { caller } if self.release_some(rid) => self.answer_to(caller, Answer::Done),
            Step::Recovered if self.recovered_some() => {}
            unfinished => return Some(unfinished),
        }
        None
    }

    fn answer_to(self: &Rc<Self>, Caller { token, from }: Caller, answer: Answer) {
        self.send(from, Message::Answer { token, answer });
    }

    /// Opens before leases: their next holder is told who has what open. True when nothing is left.
    fn release_some(self: &Rc<Self>, rid: Rid) -> bool {
        if !self.opens.borrow_mut().reclaim_some(rid, PIECE) {
            return false;
        }
        let files_done = self.files.borrow_mut().reclaim_some(rid, PIECE);
        self.drive_files();
        if !files_done {
            return false;
        }
        let done = self.table.borrow_mut().reclaim_some(rid, PIECE);
        self.drive_table();
        done
    }

    fn recovered_some(self: &Rc<Self>) -> bool {
        self.opens.borrow_mut().recovered();
        let table_done = self.table.borrow_mut().recovered_some(PIECE);
        self.drive_table();
        if !table_done {
            return false;
        }
        let done = self.files.borrow_mut().recovered_some(PIECE);
        self.drive_files();
        done
    }
}

#[cfg(test)]
mod tests {
    use vellum_wire::LockMode;

    use super::*;

    const CALLER: Caller = Caller { token: 1, from: ReactorId(0) };

    fn unlock(names: std::ops::Range<u64>) -> Step {
        let to = names.map(|n| LockWant { name: LockName::Group(n), mode: LockMode::Null }).collect();
        Step::Unlock { to, caller: CALLER }
    }

    /// What one turn does: the client, and how many locks it touches.
    fn turn(queue: &mut TableQueue) -> Option<(u64, usize)> {
        let (of, mut step) = queue.take()?;
        let rid = of.map_or(0, |rid| rid.0);
        let touched = match step.split() {
            Some(Split::Unlock(to)) => to.len(),
            Some(Split::Reassert(grants)) => grants.len(),
            None => {
                queue.done(None);
                return Some((rid, step.cost()));
            }
        };
        queue.done(Some(step));
        Some((rid, touched))
    }

    /// A client gives 10^5 locks back, another one asks for one lock at a time: no turn is longer than a piece, and the
    /// other one waits for one turn of the first. [L8]
    #[test]
    fn l8_clients_take_turns_of_bounded_length() {
        let mut queue = TableQueue::default();
        for page in 0..25 {
            queue.push(Some(Rid(1)), unlock(page * 4096..(page + 1) * 4096));
        }
        let (mut given_back, mut others) = (0, 0);
        loop {
            if others < 50 && !queue.has_of(Some(Rid(2))) {
                queue.push(Some(Rid(2)), unlock(0..1));
            }
            match turn(&mut queue) {
                Some((1, touched)) => {
                    assert!(touched <= PIECE, "{touched}");
                    given_back += touched;
                    let next = queue.turns.front().copied();
                    assert!(others >= 50 || next == Some(Some(Rid(2))), "the other one is next");
                }
                Some((_, _)) => others += 1,
                None => break,
            }
        }
        assert_eq!((given_back, others), (25 * 4096, 50));
    }

    /// A lock that is asked for behind a long `Unlock` of the same client comes after all of it. [N3]
    #[test]
    fn n3_the_order_of_one_client_stays() {
        let mut queue = TableQueue::default();
        let want = LockWant { name: LockName::Group(9_999), mode: LockMode::Write };
        queue.push(Some(Rid(1)), unlock(0..10_000));
        queue.push(Some(Rid(1)), Step::Lock { request: 7, want });
        let mut turns = Vec::new();
        while let Some((_, touched)) = turn(&mut queue) {
            turns.push(touched);
        }
        assert_eq!(turns.len(), 10_000usize.div_ceil(PIECE) + 1);
        assert_eq!((turns.iter().sum::<usize>(), turns.last()), (10_001, Some(&1)));
        assert!(queue.waiting.is_empty() && queue.turns.is_empty());
    }
}
