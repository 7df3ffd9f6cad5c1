//! Every target for a bounded number of inputs, the same ones each time: what CI runs. A night's run is
//! `cargo run --release -p vellum-fuzz -- --seconds 3600`.

use vellum_fuzz::{TARGETS, run};

const INPUTS: u64 = 20_000;

#[test]
fn every_target_holds() {
    for target in TARGETS {
        let seen = run(target, 1, |n| n < INPUTS);
        println!("{:<16} {} of {} accepted", target.name, seen.accepted, seen.inputs);
        assert!(seen.inputs >= INPUTS && seen.accepted > 0);
    }
}

/// Mutations reach behind the first check: where no checksum stands in the way, some are accepted besides the samples.
#[test]
fn mutations_are_neither_all_legal_nor_all_nonsense() {
    for target in TARGETS.iter().filter(|target| !["frame", "sealed-datagram"].contains(&target.name)) {
        let samples = (target.samples)().len() as u64;
        let seen = run(target, 2, |n| n < 5_000);
        assert!(seen.accepted > samples && seen.accepted < seen.inputs, "{}: {seen:?}", target.name);
    }
}
