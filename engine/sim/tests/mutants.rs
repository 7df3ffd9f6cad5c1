//! A few of the deliberate bugs, each with so many seeds from 1 on that find it: the checkers still bite. All of them:
//! `cargo xtask sim --mutants`, and the table in docs/TESTING.md.

use vellum_base::Mutant;
use vellum_sim::mutants::{hunt, profile_of};

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
