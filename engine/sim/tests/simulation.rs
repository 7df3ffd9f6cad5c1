//! The simulated cluster, under the same seeds each time, or fresh ones.
//!
//! Without asking for more, the gate runs the seeds from 1 on for a time: what lands does not depend on luck.
//! `VELLUM_SIM_SEED=N` runs exactly that seed (`cargo xtask sim --seed N`); `VELLUM_SIM_SECONDS` is how long fresh
//! seeds are tried after those (`cargo xtask sim --seconds N`).

use std::time::{Duration, Instant, SystemTime};

use vellum_sim::run;

/// Seeds of the gate, at most, and how long it takes for them.
const GATE_SEEDS: u64 = 24;
const GATE_TIME: Duration = Duration::from_secs(20);

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Runs a seed; true when it went well.
fn try_seed(seed: u64) -> bool {
    println!("seed {seed} begins"); // what panics in a destructor aborts, and says no more
    let outcome = run(seed);
    println!("{outcome}");
    if outcome.violations.is_empty() {
        return true;
    }
    println!("faults:");
    outcome.faults.iter().for_each(|fault| println!("  {fault}"));
    println!("last steps:");
    outcome.trace.iter().for_each(|step| println!("  {step}"));
    println!("violations:");
    outcome.violations.iter().take(10).for_each(|what| println!("  {what}"));
    println!("\nseed {seed} failed. Again: cargo xtask sim --seed {seed}\n");
    false
}

#[test]
fn simulation() {
    if let Some(seed) = number("VELLUM_SIM_SEED") {
        assert!(try_seed(seed), "seed {seed} failed");
        return;
    }
    let start = Instant::now();
    let mut runs = 0;
    for seed in (1..=GATE_SEEDS).take_while(|_| start.elapsed() < GATE_TIME) {
        assert!(try_seed(seed), "seed {seed} failed: cargo xtask sim --seed {seed}");
        runs += 1;
    }
    let until = Instant::now() + Duration::from_secs(number("VELLUM_SIM_SECONDS").unwrap_or(0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let fresh = (0..).map(|n| (now >> 10).wrapping_add(n) % 1_000_000_000);
    for seed in fresh.take_while(|_| Instant::now() < until) {
        assert!(try_seed(seed), "seed {seed} failed: cargo xtask sim --seed {seed}");
        runs += 1;
    }
    println!("{runs} runs");
}

/// Two runs in one process differ if anything depends on the order of a hash map: each map has its own.
#[test]
fn a_seed_gives_one_run() {
    for seed in number("VELLUM_SIM_SEED").map_or(vec![1, 2, 7], |seed| vec![seed]) {
        let (a, b) = (run(seed), run(seed));
        assert_eq!((a.trace_hash, a.steps, a.txns), (b.trace_hash, b.steps, b.txns), "seed {seed} has a hidden input");
    }
}
