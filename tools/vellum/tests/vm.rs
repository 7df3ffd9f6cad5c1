//! The NVMe driver on controllers that are not our model: QEMU's, behind an IOMMU, in a virtual machine (tools/vmlab).
//! Identify, perf, mkfs, a FUSE mount, a workload that is verified, SIGKILL in mid-IO, recovery, check; LBAs of 4 KiB, two
//! namespaces, one queue, a bad sector, two controllers on one namespace; a controller in use is taken from nobody. Skipped,
//! loudly, where there is no QEMU or no package index; not in CI, which installs both.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The lab, set up. None: cannot be had here.
fn lab() -> Option<(PathBuf, PathBuf)> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmlab");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../vmlab");
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output().is_ok_and(|out| out.status.success());
    let setup = qemu.then(|| Command::new(scripts.join("setup.sh")).arg(&dir).output().expect("setup.sh starts"));
    match setup {
        Some(out) if out.status.success() => Some((scripts, dir)),
        failed => {
            let why =
                failed.map_or("no qemu-system-x86_64".into(), |out| String::from_utf8_lossy(&out.stderr).into_owned());
            assert!(std::env::var_os("CI").is_none(), "the virtual machine cannot be set up: {why}");
            eprintln!("SKIPPED: {why}");
            None
        }
    }
}

fn run(job: &str) {
    let Some((scripts, dir)) = lab() else { return };
    let out = Command::new(scripts.join("run.sh"))
        .args([&dir, Path::new(env!("CARGO_BIN_EXE_vellum")), &scripts.join(format!("jobs/{job}.sh")), &dir.join(job)])
        .output()
        .expect("run.sh starts");
    let text = [out.stdout, out.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(out.status.success() && text.contains("PASS"), "{}: {text}", out.status);
}

#[test]
fn controllers_that_differ_serve_all_the_same() {
    run("variants");
}

#[test]
fn a_filesystem_lives_on_a_controller_and_survives_a_kill() {
    run("basic");
}

#[test]
fn a_controller_is_given_to_a_user_and_taken_from_nobody() {
    run("ways");
}
