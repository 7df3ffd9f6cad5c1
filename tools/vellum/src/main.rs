//! The `vellum` binary: parses the command line, sets up logging, runs one command, and turns errors into exit codes.

mod cli;
mod commands;
mod device;
mod duration;
mod endpoint;
mod engine;
mod exit;
mod figures;
mod keys;
mod library;
mod processes;
mod session;
mod size;
mod slots;

use std::process::ExitCode;

use clap::Parser;

use cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logging(cli.verbose);
    match commands::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vellum: {e:#}");
            exit::code_of(&e).into()
        }
    }
}

/// Logs go to stderr, results to stdout.
fn init_logging(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
