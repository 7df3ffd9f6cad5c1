//! One module per group of commands.

mod admin;
mod bench;
mod grow;
mod keys;
mod mount;
mod move_shard;
mod nvme;
mod operate;
mod query;
mod quickstart;
mod quorum;
mod quorum_change;
mod scrub;
mod serve;
mod worker;

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::{Cli, Command};

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Mkfs(args) => admin::mkfs(&args),
        Command::Grow(args) => grow::grow(&args),
        Command::MoveShard(args) => move_shard::move_shard(&args),
        Command::Scrub(args) => scrub::scrub(&args),
        Command::Check(args) => admin::check(&args),
        Command::Dump(args) => admin::dump(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Mount(args) => mount::mount(&args),
        Command::Walk(args) => query::walk(&args),
        Command::Stat(args) => query::stat(&args),
        Command::InoPath(args) => query::ino_path(&args),
        Command::Quorum(what) => quorum::quorum(&what),
        Command::Df(args) => query::df(&args),
        Command::Status(args) => operate::status(&args),
        Command::Locks(args) => operate::locks(&args),
        Command::Clients(args) => operate::clients(&args),
        Command::Compact(args) => worker::compact(&args),
        Command::CompactWorker(args) => worker::compact_worker(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Nvme(command) => nvme::run(&command),
        Command::Quickstart(args) => quickstart::quickstart(&args),
        Command::Keys(args) => keys::keys(&args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "vellum", &mut std::io::stdout());
            Ok(())
        }
    }
}
