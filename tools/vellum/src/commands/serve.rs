//! serve: the engine alone, until SIGTERM or SIGINT.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vellum_rt::net::Endpoint;
use vellum_server::NodeOptions;

use crate::cli::Serve;
use crate::engine;
use crate::exit::{Exit, WithExit};

pub fn serve(args: &Serve) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot wait for signals")?;
    let mut listen = engine::parse_listen(&args.listen)?;
    if listen.is_empty() {
        listen.push(Endpoint::Unix(engine::own_socket()?));
    }
    let options = NodeOptions { keys: args.keys.load()?, ..args.engine.options(listen) };
    let node = engine::start(&args.device, options)?;
    for endpoint in &node.up().endpoints {
        println!("serving {} at {endpoint}: {}", args.device, engine::describe(&node));
    }
    let sockets: Vec<_> = node.up().endpoints.clone();
    signals.forever().next();
    tracing::info!("stopping");
    let stopped = node.shutdown().context("the engine did not stop cleanly").exit(Exit::Device);
    for endpoint in sockets {
        if let Endpoint::Unix(path) = endpoint {
            let _ = std::fs::remove_file(path); // the next start removes it too
        }
    }
    stopped
}
