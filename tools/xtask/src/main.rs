//! Developer commands. `ci` is what decides whether work lands; it changes nothing in the tree.
use std::process::{Command, ExitCode};

fn cargo(args: &[&str]) -> bool {
    println!("==> cargo {}", args.join(" "));
    Command::new("cargo").args(args).status().is_ok_and(|s| s.success())
}

fn main() -> ExitCode {
    let ok = match std::env::args().nth(1).as_deref() {
        Some("ci") => {
            cargo(&["fmt", "--all", "--check"])
                && cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
                && cargo(&["nextest", "run", "--workspace", "--locked", "--no-tests", "pass"])
        }
        Some("fix") => cargo(&["fmt", "--all"]),
        _ => {
            eprintln!("usage: cargo xtask ci|fix");
            false
        }
    };
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
