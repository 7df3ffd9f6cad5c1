//! A few of the deliberate bugs, each with a seed that finds it at once: the checkers still bite. All of them:
//! `cargo xtask sim --mutants`, and the table in docs/TESTING.md.

use vellum_base::Mutant;
use vellum_sim::mutants::run_with;
use vellum_sim::{Plan, Profile};

/// Which bug, where, and which invariant it violates.
const QUICK: &[(Mutant, Profile, u64, &str)] = &[
QUICKLIST
];

#[test]
#[cfg(debug_assertions)]
fn deliberate_bugs_are_found() {
    for (bug, profile, seed, invariant) in QUICK {
        let found = run_with(*bug, Plan::draw(*seed, *profile));
        let (by, what) = found.unwrap_or_else(|| panic!("{} is not found by seed {seed}", bug.name()));
        println!("{}: [{by}] {what}", bug.name());
        assert_eq!(by, *invariant, "{}: {what}", bug.name());
    }
}
