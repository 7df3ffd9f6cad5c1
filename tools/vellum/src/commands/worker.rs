//! compact: merge everything now. compact-worker: run compactions for an engine, on a device that both have open.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vellum_base::Rid;
use vellum_link::{Address, Connection, Identity};
use vellum_nvme::OpenMode;
use vellum_rt::{channel, native};
use vellum_server::worker::{self, WorkerOptions};
use vellum_wire::Request;

use crate::cli::{Compact, CompactWorker};
use crate::endpoint::Target;
use crate::exit::{Exit, WithExit};
use crate::session::connect_options;

fn served(text: &str) -> Result<Address> {
    match Target::parse(text)? {
        Target::Served(endpoints) => Ok(Address::from(endpoints)),
        Target::Embedded(_) => {
            Err(anyhow::anyhow!("{text}: an engine that serves is needed: unix:PATH or tcp:ADDR:PORT"))
                .exit(Exit::Usage)
        }
    }
}

/// Until SIGTERM or SIGINT: then nothing is on its way to the device any more.
pub fn compact_worker(args: &CompactWorker) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot wait for signals")?;
    let address = served(&args.on)?;
    // Shared with the engine, which must have opened it so.
    let device = vellum_nvme::open(&args.device, OpenMode::default()).exit(Exit::Device)?;
    let keys = args.keys.load()?;
    let options = WorkerOptions { slot: args.slot, jobs: args.jobs, keys, ..WorkerOptions::default() };
    let (stop, stopped) = channel::bounded(1);
    std::thread::spawn(move || {
        signals.forever().next();
        drop(stop);
    });
    if let Some(core) = args.core {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("core {core}")).exit(Exit::Usage)?;
    }
    native::block_on(worker::run(device, address, options, stopped)).exit(Exit::Endpoint)
}

pub fn compact(args: &Compact) -> Result<()> {
    let address = served(&args.on)?;
    let connect = connect_options(args.keys.load()?, false);
    native::block_on(async {
        let identity = Identity { rid: Rid(vellum_rt::random_u64()), fsid: None };
        let connection = Connection::open(address, identity, connect)
            .await
            .with_context(|| format!("cannot reach {}", args.on))
            .exit(Exit::Endpoint)?;
        connection.call(Request::CompactAll, None).await.context("compacting").exit(Exit::Device)?;
        connection.farewell().await.context("leaving")
    })
}
