//! A failing run made smaller: things are taken away from its plan as long as it still fails the same invariant.
//!
//! Deterministic: the order of the attempts is fixed, and the answer is a list of edits that reproduces the small run.

use std::time::Duration;

use crate::plan::{Edits, Plan, Profile};
use crate::run::{Outcome, run};

/// Attempts at most.
const MAX_RUNS: usize = 200;

pub struct Shrunk {
    pub edits: Edits,
    pub outcome: Outcome,
    pub runs: usize,
}

struct Shrinking<'a> {
    seed: u64,
    profile: Profile,
    invariant: &'static str,
    runs: usize,
    said: &'a mut dyn FnMut(&Edits, bool),
}

impl Shrinking<'_> {
    fn attempt(&mut self, edits: &Edits) -> Option<Outcome> {
        if self.runs >= MAX_RUNS {
            return None;
        }
        self.runs += 1;
        let outcome = run(Plan::draw(self.seed, self.profile).edited(edits));
        let same = outcome.violations.first().is_some_and(|v| v.invariant == self.invariant);
        (self.said)(edits, same);
        same.then_some(outcome)
    }
}

/// `None` when the run does not fail at all. `said` hears of each attempt.
pub fn shrink(seed: u64, profile: Profile, said: &mut dyn FnMut(&Edits, bool)) -> Option<Shrunk> {
    let plan = Plan::draw(seed, profile);
    let mut outcome = run(plan.clone());
    let invariant = outcome.violations.first()?.invariant;
    let mut shrinking = Shrinking { seed, profile, invariant, runs: 1, said };
    let mut edits = Edits::default();
    loop {
        let before = edits.clone();
        for candidate in smaller(&plan, &edits, &outcome) {
            if let Some(found) = shrinking.attempt(&candidate) {
                (edits, outcome) = (candidate, found);
            }
        }
        if edits == before || shrinking.runs >= MAX_RUNS {
            return Some(Shrunk { edits, outcome, runs: shrinking.runs });
        }
    }
}

/// Plans with one thing less, the largest steps first.
fn smaller(plan: &Plan, edits: &Edits, outcome: &Outcome) -> Vec<Edits> {
    let mut candidates = Vec::new();
    let mut push = |change: &dyn Fn(&mut Edits)| {
        let mut candidate = edits.clone();
        change(&mut candidate);
        if candidate != *edits {
            candidates.push(candidate);
        }
    };
    // What came after the violation had no part in it.
    let until = outcome.virtual_time + Duration::from_millis(1);
    push(&|e| e.calm_at = Some(e.calm_at.map_or(until, |old| old.min(until))));
    push(&|e| e.calm_network = true);
    for client in 0..plan.clients.len() {
        if edits.without_clients.len() + 1 < plan.clients.len() {
            push(&|e| e.without_clients.extend([client]));
        }
    }
    let all = plan.faults.len();
    push(&|e| e.without_faults.extend(0..all / 2));
    push(&|e| e.without_faults.extend(all / 2..all));
    for fault in 0..all {
        push(&|e| e.without_faults.extend([fault]));
    }
    candidates
}
