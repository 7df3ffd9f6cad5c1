//! Every target for a bounded number of inputs, the same ones each time: what CI runs. A night's run is
//! `cargo xtask fuzz --seconds 3600`.

use vellum_fuzz::{TARGETS, Target, run};

fn holds(target: &Target) {
    let seen = run(target, 1, |n| n < target.gate_inputs);
    println!("{:<16} {} of {} accepted", target.name, seen.accepted, seen.inputs);
    assert!(seen.findings.is_empty(), "{} --seed 1: {:#?}", target.name, seen.findings);
    assert!(seen.inputs >= target.gate_inputs && seen.accepted > 0);
}

#[test]
fn every_decoder_holds() {
    TARGETS.iter().filter(|target| target.name != "image").for_each(holds);
}

#[test]
fn whole_images_hold() {
    TARGETS.iter().filter(|target| target.name == "image").for_each(holds);
}

/// Mutations reach behind the first check: where no checksum stands in the way, some are accepted besides the samples.
#[test]
fn mutations_are_neither_all_legal_nor_all_nonsense() {
    // Nothing but what was sealed is accepted of the first, and a frame's checksum is not put right; anything is a log page.
    let alone = ["frame", "sealed-datagram", "nvme-log", "image"];
    for target in TARGETS.iter().filter(|target| !alone.contains(&target.name)) {
        let samples = (target.samples)().len() as u64;
        let seen = run(target, 2, |n| n < samples + target.gate_inputs.min(5_000));
        assert!(seen.accepted > samples && seen.accepted < seen.inputs, "{}: {seen:?}", target.name);
    }
}
