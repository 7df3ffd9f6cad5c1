//! Developer commands. `ci` is what decides whether work lands; it changes nothing in the tree.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Vellum")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// What decides whether work lands: format, clippy, cargo-deny, every test, the runtime's also on glommio. Read-only.
    Ci,
    /// Formats the tree and applies what clippy can mend by itself.
    Fix,
    /// Runs the simulation: `--seed S` reproduces, `--shrink` makes a failing seed smaller, `--mutants` hunts deliberate
    /// bugs; without any, fresh seeds for `--seconds`. `cargo xtask sim --help` has all of it.
    #[command(disable_help_flag = true)]
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Fuzzes every decoder (or the named targets), for so many seconds each.
    Fuzz {
        targets: Vec<String>,
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Runs the tests of what threads share under Miri, for so many orders of events. By hand: it needs a
    /// nightly toolchain (`rustup toolchain install nightly --component miri,rust-src`).
    Miri {
        #[arg(long, default_value_t = 64)]
        seeds: u32,
    },
    /// Runs jobs of tools/vmlab in a virtual machine with NVMe controllers: all tests of it, or the named jobs. `perf`
    /// measures (in a release build) and is not among all.
    Vm {
        jobs: Vec<String>,
        /// With a kernel that is built for it (tools/vmlab/kernel.sh) instead of Debian's: cdev, both or compat.
        #[arg(long)]
        kernel: Option<String>,
    },
    /// Runs benchmarks in a release build: `cargo xtask bench mount --json out.json`.
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Ci => ci(),
        Task::Fix => {
            cargo(&["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"])?;
            cargo(&["fmt", "--all"])
        }
        Task::Sim { args } => {
            let mut all = vec!["run", "--quiet", "-p", "vellum-sim", "--"];
            all.extend(args.iter().map(String::as_str));
            cargo(&all)
        }
        Task::Fuzz { targets, seconds } => {
            let seconds = seconds.to_string();
            // Not a release build: what overflows is a finding, and a panic is caught.
            let mut all = vec!["run", "--quiet", "-p", "vellum-fuzz", "--", "--seconds", &seconds];
            all.extend(targets.iter().map(String::as_str));
            cargo(&all)
        }
        Task::Miri { seeds } => miri(seeds),
        Task::Vm { jobs, kernel } => vm(&jobs, kernel.as_deref()),
        Task::Bench { args } => {
            let mut all = vec!["run", "--release", "--quiet", "-p", "vellum", "--", "bench"];
            all.extend(args.iter().map(String::as_str));
            cargo(&all)
        }
    }
}

fn ci() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    if have("cargo-deny") {
        cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"])?;
    } else if std::env::var_os("CI").is_some() {
        bail!("cargo-deny is missing; `cargo install --locked cargo-deny` brings it");
    } else {
        println!("SKIPPED cargo-deny: not installed (`cargo install --locked cargo-deny`)");
    }
    cargo(&["nextest", "run", "--workspace", "--locked"])?;
    // Features with optional dependencies and tests of their own; no SPDK and no RocksDB is needed.
    feature("vellum-nvme", "spdk", &["--test", "spdk"])?;
    feature("vellum-bench", "rocksdb", &["-E", "test(rocksdb)"])?;
    feature("vellum-rt", "glommio", &["-E", "test(glommio) | binary(glommio)"])?;
    cargo(&["test", "--workspace", "--locked", "--doc", "--quiet"])
}

/// Clippy and the named tests of a package with a feature that the default build is without.
fn feature(package: &str, name: &str, tests: &[&str]) -> Result<()> {
    let of = ["-p", package, "--features", name, "--locked"];
    cargo(&[&["clippy"][..], &of, &["--all-targets", "--", "-D", "warnings"]].concat())?;
    cargo(&[&["nextest", "run"][..], &of, tests].concat())
}

fn miri(seeds: u32) -> Result<()> {
    let mut run = Command::new("cargo");
    run.args(["+nightly", "miri", "test", "--locked", "-p", "vellum-rt", "--test", "interleavings"]);
    // Isolation would hide the clock, which nothing here asks for.
    run.env("MIRIFLAGS", format!("-Zmiri-many-seeds=0..{seeds}"));
    checked(run)
}

fn vm(jobs: &[String], kernel: Option<&str>) -> Result<()> {
    let mut setup = Command::new(if kernel.is_some() { "tools/vmlab/kernel.sh" } else { "tools/vmlab/setup.sh" });
    setup.arg("target/vmlab").args(kernel);
    checked(setup)?;
    let lab = kernel.map_or("target/vmlab".to_owned(), |variant| format!("target/vmlab/{variant}"));
    let all = ["basic", "variants", "ways"].map(String::from);
    for job in if jobs.is_empty() { &all[..] } else { jobs } {
        let measures = job == "perf";
        let build = ["build", "--quiet", "-p", "vellum", "--release"];
        cargo(if measures { &build } else { &build[..4] })?;
        let binary = if measures { "target/release/vellum" } else { "target/debug/vellum" };
        let mut run = Command::new("tools/vmlab/run.sh");
        run.args([&lab, binary]).arg(format!("tools/vmlab/jobs/{job}.sh"));
        run.arg(format!("{lab}/{job}"));
        checked(run)?;
    }
    Ok(())
}

fn have(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
}

fn cargo(args: &[&str]) -> Result<()> {
    let mut cmd = Command::new("cargo");
    cmd.args(args);
    checked(cmd)
}

fn checked(mut cmd: Command) -> Result<()> {
    println!("==> {cmd:?}");
    let status = cmd.status().with_context(|| format!("cannot start {cmd:?}"))?;
    if !status.success() {
        bail!("{cmd:?} ended with {status}");
    }
    Ok(())
}
