//! A few of the deliberate bugs, each with so many seeds from 1 on that find it: the checkers still bite. All of them:
//! `cargo xtask sim --mutants`, and the table in docs/TESTING.md.

use vellum_base::mutant::{self, Mutant};
use vellum_sim::mutants::{hunt, profile_of};
use vellum_sim::shrink::shrink;
use vellum_sim::{Plan, Profile, run};

/// Bugs that few runs find.
const QUICK: &[Mutant] = &[Mutant::AcknowledgeBeforeDurable, Mutant::SkipFlush];
/// Runs that each may survive.
const BOUND: usize = 8;

#[test]
#[cfg(debug_assertions)]
fn deliberate_bugs_are_found() {
    for bug in QUICK {
        let found = hunt(*bug, profile_of(*bug), 1.., BOUND);
        let found = found.unwrap_or_else(|| panic!("{} survives {BOUND} runs", bug.name()));
        println!("{}: seed {}: [{}] {}", bug.name(), found.seed, found.by, found.what);
    }
}

/// What --shrink says reproduces the failure, with less.
#[test]
#[cfg(debug_assertions)]
fn a_failing_run_is_made_smaller() {
    mutant::replace(Some(Mutant::AcknowledgeBeforeDurable));
    let plan = Plan::draw(1, Profile::Single);
    let found = shrink(1, Profile::Single, &mut |_, _| {}).expect("it fails");
    let again = run(Plan::draw(1, Profile::Single).edited(&found.edits.to_string().parse().expect("edits are words")));
    mutant::replace(None);
    let small = plan.clone().edited(&found.edits);
    assert!(small.faults.len() < plan.faults.len(), "{}", found.edits);
    assert_eq!(again.trace_hash, found.outcome.trace_hash);
    assert_eq!(again.violations.first(), found.outcome.violations.first());
}
