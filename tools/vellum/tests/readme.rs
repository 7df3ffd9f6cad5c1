//! The README's first command does what the README says, and both commands exist as they are written there.

mod common;

use std::path::Path;
use std::process::Command;

use common::{VELLUM, can_mount};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).expect("the README")
}

/// Runs quickstart on this repository's own sources, as JSON.
fn quickstart(more: &[&str]) -> serde_json::Value {
    let from = root().join("engine");
    let out = Command::new(VELLUM)
        .args(["quickstart", "--json", "--from"])
        .arg(from)
        .args(more)
        .output()
        .expect("quickstart starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("one JSON object")
}

fn assert_story(told: &serde_json::Value) {
    assert!(told["ingested"]["files"].as_u64().is_some_and(|n| n > 50), "{told}");
    assert_eq!(told["ingested"], told["verified"], "{told}");
    assert!(told["restart_ms"].as_f64().is_some_and(|ms| ms > 0.0), "the engine was killed: {told}");
    assert!(told["changed"].as_array().is_some_and(|c| c.len() >= 5 && c.len() < 20), "{told}");
}

#[test]
fn the_first_command_works_through_a_mount() {
    assert!(readme().contains("cargo run --release -p vellum -- quickstart"));
    if !can_mount("readme quickstart") {
        return;
    }
    let told = quickstart(&[]);
    assert!(told["way"].as_str().is_some_and(|way| way.contains("mount")), "{told}");
    assert_story(&told);
}

#[test]
fn the_first_command_works_through_the_library() {
    let told = quickstart(&["--no-mount"]);
    assert!(told["way"].as_str().is_some_and(|way| way.contains("library")), "{told}");
    assert_story(&told);
}

#[test]
fn the_test_command_is_what_the_gate_runs() {
    assert!(readme().contains("cargo xtask ci"));
    let gate = std::fs::read_to_string(root().join(".ci/run")).expect("the gate");
    assert!(gate.contains("cargo xtask ci"));
}
