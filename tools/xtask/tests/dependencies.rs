//! Holds the crate graph against the house rules of docs/ARCHITECTURE.md ("Who may know whom"): an edge that is not in
//! the table fails, and so does a crate without a row.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// crate -> the workspace crates it may depend on (dev-dependencies are free, except that nothing but tools and
/// bench may ship `vellum-sim`).
const ALLOWED: &[(&str, &[&str])] = &[
    ("vellum-base", &[]),
    ("vellum-uring", &[]),
    ("vellum-rt", &["vellum-base", "vellum-uring"]),
    ("vellum-nvme", &["vellum-base", "vellum-uring"]),
    ("vellum-format", &["vellum-base"]),
    ("vellum-wire", &["vellum-base"]),
    ("vellum-proto", &["vellum-base", "vellum-format", "vellum-wire"]),
    ("vellum-keys", &["vellum-wire"]),
    ("vellum-link", &["vellum-base", "vellum-wire", "vellum-proto", "vellum-rt", "vellum-keys"]),
    ("vellum-store", &["vellum-base", "vellum-format", "vellum-nvme", "vellum-rt"]),
    (
        "vellum-server",
        &[
            "vellum-base",
            "vellum-format",
            "vellum-nvme",
            "vellum-rt",
            "vellum-store",
            "vellum-wire",
            "vellum-proto",
            "vellum-keys",
            "vellum-link",
        ],
    ),
    ("vellum-client", &["vellum-base", "vellum-format", "vellum-rt", "vellum-wire", "vellum-proto", "vellum-link"]),
    ("vellum-vfs", &["vellum-base", "vellum-format", "vellum-rt", "vellum-wire", "vellum-client"]),
    ("vellum-archive", &["vellum-base", "vellum-format", "vellum-rt", "vellum-wire", "vellum-client"]),
    ("vellum-fuse", &["vellum-base", "vellum-format", "vellum-rt", "vellum-client", "vellum-vfs"]),
];
/// May depend on anything.
const FREE: &[&str] = &["vellum-sim", "vellum-bench", "vellum", "vellum-fuzz", "xtask"];

#[test]
fn the_crate_graph_obeys_the_house_rules() {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .output()
        .expect("cargo metadata runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let meta: serde_json::Value = serde_json::from_slice(&out.stdout).expect("cargo prints JSON");
    let packages = meta["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().expect("name");
        let normal = package["dependencies"]
            .as_array()
            .expect("dependencies")
            .iter()
            .filter(|d| d["kind"].is_null())
            .filter_map(|d| d["name"].as_str())
            .filter(|d| ours.contains(d));
        for dependency in normal {
            let shipped_sim = dependency == "vellum-sim" && name != "xtask";
            let ok = match allowed.get(name) {
                Some(list) => list.contains(&dependency),
                None => FREE.contains(&name),
            };
            if !ok || shipped_sim {
                wrong.push(format!("{name} -> {dependency}"));
            }
        }
        if !allowed.contains_key(name) && !FREE.contains(&name) {
            wrong.push(format!("{name} has no row in the table"));
        }
    }
    assert!(wrong.is_empty(), "forbidden edges:\n{}", wrong.join("\n"));
}
