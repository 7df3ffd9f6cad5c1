//! Locks of the fake engine: requests of one lock are served in order, each holder that conflicts is asked once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use vellum_base::{Rid, Term};
use vellum_wire::{LockGrant, LockMode, LockName, LockWant, Response};

use super::port::FakePort;
use super::{FakeEngine, spawn};

#[derive(Default)]
pub(crate) struct FakeLocks {
    queues: RefCell<BTreeMap<LockName, VecDeque<(Rid, u64)>>>,
    /// Invalidations on their way.
    asked: RefCell<BTreeSet<(LockName, Rid)>>,
    /// Granted to requests that are not answered yet: the client cannot be asked for these (N3).
    untold: RefCell<BTreeSet<(LockName, Rid)>>,
    next: Cell<u64>,
}

impl FakeLocks {
    pub fn crash(&self) {
        self.queues.borrow_mut().clear();
        self.asked.borrow_mut().clear();
        self.untold.borrow_mut().clear();
    }

    pub fn forget(&self, rid: Rid) {
        self.queues.borrow_mut().values_mut().for_each(|queue| queue.retain(|(r, _)| *r != rid));
        self.asked.borrow_mut().retain(|(_, r)| *r != rid);
        self.untold.borrow_mut().retain(|(_, r)| *r != rid);
    }
}

impl FakeEngine {
    pub fn describe_locks(&self) -> String {
        let state = self.state.borrow();
        let locks: Vec<_> = state.locks.iter().filter(|(_, h)| h.values().any(|m| *m != LockMode::Null)).collect();
        let queues = self.locks.queues.borrow();
        let waiting: Vec<_> = queues.iter().filter(|(_, q)| !q.is_empty()).collect();
        let recovering = self.recovering.borrow();
        let (asked, untold) = (self.locks.asked.borrow(), self.locks.untold.borrow());
        format!("held {locks:?}\nqueues {waiting:?}\nasked {asked:?}\nuntold {untold:?}\nrecovering {recovering:?}")
    }

    pub(crate) fn lock(&self, port: Rc<FakePort>, seq: u64, wants: Vec<LockWant>) {
        assert!(wants.windows(2).all(|w| w[0].name < w[1].name), "locks are asked for in ascending order");
        let (engine, term) = (self.rc(), self.state.borrow().term);
        // All stand in line from now on, in the order of arrival.
        let mut places = Vec::new();
        for want in &wants {
            let ticket = self.locks.next.replace(self.locks.next.get() + 1);
            places.push(ticket);
            if want == &wants[0] {
                self.locks.queues.borrow_mut().entry(want.name).or_default().push_back((port.rid(), ticket));
            }
        }
        spawn("fake lock", async move {
            let mut grants = Vec::new();
            for (i, (want, ticket)) in wants.iter().zip(places).enumerate() {
                if i > 0 {
                    let mut queues = engine.locks.queues.borrow_mut();
                    queues.entry(want.name).or_default().push_back((port.rid(), ticket));
                }
                match engine.grant(term, port.rid(), want, ticket).await {
                    Some(grant) => grants.push(grant),
                    None => return,
                }
            }
            for want in &wants {
                engine.locks.untold.borrow_mut().remove(&(want.name, port.rid()));
            }
            port.reply(seq, Response::Granted { grants, opens: vec![] }, None);
            engine.changed.wake_all();
        });
    }

    async fn grant(&self, term: Term, rid: Rid, want: &LockWant, ticket: u64) -> Option<LockGrant> {
        let gone = || self.state.borrow().term != term || self.fenced.borrow().contains(&rid);
        loop {
            let first = || {
                let queues = self.locks.queues.borrow();
                queues.get(&want.name).and_then(|q| q.front()).is_some_and(|(_, t)| *t == ticket)
            };
            let conflicts = || -> Vec<Rid> {
                let state = self.state.borrow();
                let holders = state.locks.get(&want.name).into_iter().flatten();
                holders.filter(|(r, m)| **r != rid && !m.compatible(want.mode)).map(|(r, _)| *r).collect()
            };
            let unasked = |r: &Rid| {
                let place = (want.name, *r);
                !self.locks.asked.borrow().contains(&place) && !self.locks.untold.borrow().contains(&place)
            };
            // An answer that is outstanding must not weaken what is granted now.
            let answered = || !self.locks.asked.borrow().contains(&(want.name, rid));
            self.changed
                .until(|| {
                    let clear = self.recovering.borrow().is_empty() && first() && answered();
                    let act = clear && (conflicts().is_empty() || conflicts().iter().any(unasked));
                    (act || gone()).then_some(())
                })
                .await;
            if gone() {
                return None;
            }
            let conflicts = conflicts();
            if conflicts.is_empty() {
                let mut state = self.state.borrow_mut();
                state.write_seq += 1;
                let write_seq = state.write_seq;
                let mode = state.locks.entry(want.name).or_default().entry(rid).or_default();
                *mode = want.mode.max(*mode);
                let grant = LockGrant { name: want.name, mode: *mode, write_seq };
                drop(state);
                self.locks.untold.borrow_mut().insert((want.name, rid));
                if let Some(queue) = self.locks.queues.borrow_mut().get_mut(&want.name) {
                    queue.pop_front();
                }
                self.changed.wake_all();
                return Some(grant);
            }
            let to = if want.mode == LockMode::Write { LockMode::Null } else { LockMode::Read };
            for holder in conflicts.into_iter().filter(unasked) {
                self.locks.asked.borrow_mut().insert((want.name, holder));
                if let Some(port) = self.ports.borrow().get(&holder) {
                    port.invalidate(want.name, to);
                }
            }
        }
    }

    pub(crate) fn invalidated(&self, rid: Rid, name: LockName, to: LockMode) {
        self.locks.asked.borrow_mut().remove(&(name, rid));
        self.weaken(rid, name, to);
    }

    pub(crate) fn weaken(&self, rid: Rid, name: LockName, to: LockMode) {
        if let Some(mode) = self.state.borrow_mut().locks.get_mut(&name).and_then(|holders| holders.get_mut(&rid)) {
            *mode = to.min(*mode);
        }
        self.changed.wake_all();
    }

    pub(crate) fn reassert(&self, rid: Rid, held: &[LockGrant]) {
        let mut state = self.state.borrow_mut();
        for grant in held {
            let holders = state.locks.entry(grant.name).or_default();
            let clash = holders.iter().find(|(r, m)| **r != rid && !m.compatible(grant.mode));
            assert!(clash.is_none(), "L1: {rid} and {clash:?} both hold {:?}", grant.name);
            holders.insert(rid, grant.mode);
            state.write_seq = state.write_seq.max(grant.write_seq);
        }
    }
}
