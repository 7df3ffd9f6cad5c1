//! The simulated cluster under the same seeds each time: what lands does not depend on luck. Fresh seeds, and exactly one,
//! are `cargo xtask sim`'s.

use std::time::{Duration, Instant};

use vellum_sim::{Plan, Profile, run};

/// Seeds of the gate, at most, and how long it takes for them.
const GATE_SEEDS: u64 = 24;
const GATE_TIME: Duration = Duration::from_secs(20);

fn gate(profile: Profile) {
    let start = Instant::now();
    for seed in (1..=GATE_SEEDS).take_while(|_| start.elapsed() < GATE_TIME) {
        let outcome = run(Plan::draw(seed, profile));
        println!("{outcome}");
        let violations: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        let tail: Vec<&String> = outcome.story.iter().rev().take(60).rev().collect();
        assert!(violations.is_empty(), "seed {seed} failed: {violations:#?}\n{tail:#?}\ncargo xtask sim --seed {seed}");
    }
}

#[test]
fn single_node() {
    gate(Profile::Single);
}

/// Two runs in one process differ if anything depends on the order of a hash map: each map has its own.
#[test]
fn a_seed_gives_one_run() {
    for seed in [1, 2, 7, 8] {
        let [a, b] = [0, 1].map(|_| run(Plan::draw(seed, Profile::Single)));
        assert_eq!((a.trace_hash, a.steps, a.txns), (b.trace_hash, b.steps, b.txns), "seed {seed} has a hidden input");
    }
}
