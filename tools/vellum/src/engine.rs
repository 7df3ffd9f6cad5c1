//! Starting an engine in this process: for `serve`, for `mount file:...`, and for queries of an unserved device.

use std::path::PathBuf;

use anyhow::{Context, Result};
use vellum_rt::native::PollMode;
use vellum_rt::net::Endpoint;
use vellum_server::{Limits, Node, NodeError, NodeOptions, Up};

use crate::cli::{EngineArgs, Poll};
use crate::exit::{Exit, WithExit};
use crate::{device, endpoint};

/// What the engine's start has to say to a person.
pub fn describe(up: &Up) -> String {
    let r = &up.report;
    let how = if r.clean {
        "clean".to_owned()
    } else {
        format!("replayed {} epochs, {} bytes in {:.1} ms", r.epochs, r.bytes, r.time.as_secs_f64() * 1e3)
    };
    format!("fsid {} term {}: {how}", up.fsid, up.term)
}

impl EngineArgs {
    /// `others`: reactors that this process has beside the engine's. By default there are as many of both as cores.
    pub fn options(&self, listen: Vec<Endpoint>, others: usize) -> NodeOptions {
        let mut options = NodeOptions { listen, ..NodeOptions::default() };
        options.cores = match &self.cores {
            Some(cores) => cores.0.iter().map(|core| Some(*core)).collect(),
            None => {
                let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
                vec![None; cores.saturating_sub(others).clamp(1, 64)]
            }
        };
        options.poll = match self.poll {
            Poll::Adaptive => PollMode::Adaptive,
            Poll::Always => PollMode::Always,
        };
        if let Some(bytes) = self.cache {
            options.store.cache_bytes = bytes as usize;
        }
        options
    }
}

pub fn start(spec: &str, options: NodeOptions) -> Result<Node> {
    raise_descriptor_limit();
    if let Some(refused) = options.refused_endpoint() {
        return Err(anyhow::anyhow!(refused)).exit(Exit::Usage);
    }
    let target = device::open_alone(spec)?;
    refuse_cluster(spec, &target)?;
    let listens = options.listen.clone();
    remove_stale_sockets(&listens);
    let pinned = options.cores.iter().any(Option::is_some);
    let node = Node::start(target, options).map_err(|error| {
        let code = match &error {
            NodeError::Listen { .. } => Exit::Endpoint,
            NodeError::Options(_) => Exit::Usage,
            NodeError::Reactors(_) if pinned => Exit::Usage, // a core that is not there
            _ => Exit::Device,
        };
        let error = anyhow::Error::new(error).context(format!("cannot serve {spec}"));
        anyhow::Error::from(crate::exit::Coded { code, error })
    })?;
    tell_repaired(spec, node.up());
    Ok(node)
}

/// Every client is a descriptor, and so is every stranger: a limit below their bounds would turn clients away for the
/// sake of strangers.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const OTHERS: u64 = 256;
    let needed = u64::from(Limits::default().clients) + vellum_link::MAX_SILENT as u64 + OTHERS;
    let limit = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if !enough(limit.current) {
        let current = if enough(limit.maximum) { Some(needed) } else { limit.maximum };
        if setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum }).is_err() || !enough(current) {
            tracing::warn!("{current:?} open files allowed; {needed} would hold all clients (ulimit -n)");
        }
    }
}

pub fn tell_repaired(spec: &str, up: &Up) {
    for place in &up.report.repaired {
        tracing::warn!("{spec}: repaired from the other copy: {place}");
    }
}

/// A device with a quorum is served by its members alone, who know of each other's terms.
fn refuse_cluster(spec: &str, target: &std::sync::Arc<dyn vellum_nvme::Device>) -> Result<()> {
    let superblock = device::with_queue(target, async |queue| Ok(vellum_store::read_superblock(&queue).await?));
    // What is wrong with a superblock is said by whoever opens it.
    if superblock.is_ok_and(|sb| sb.slots.iter().any(|slot| !slot.is_empty())) {
        let error =
            anyhow::anyhow!("{spec} belongs to a cluster: serve it with --slot N, and mount its members' endpoints");
        return Err(error).exit(Exit::Usage);
    }
    Ok(())
}

/// A socket file whose server is gone refuses connections; only then it is removed.
pub fn remove_stale_sockets(listen: &[Endpoint]) {
    for endpoint in listen {
        if let Endpoint::Unix(path) = endpoint
            && let Err(e) = std::os::unix::net::UnixStream::connect(path)
            && e.kind() == std::io::ErrorKind::ConnectionRefused
        {
            let _ = std::fs::remove_file(path); // binding says what is wrong when it stays
        }
    }
}

/// A socket of this process in the runtime directory.
pub fn own_socket() -> Result<PathBuf> {
    let dir = endpoint::runtime_dir().exit(Exit::Endpoint)?;
    Ok(dir.join(format!("{}.sock", std::process::id())))
}

pub fn parse_listen(listen: &[String]) -> Result<Vec<Endpoint>> {
    listen
        .iter()
        .map(|text| {
            text.parse::<Endpoint>().with_context(|| format!("--listen {text}: use unix:PATH or tcp:ADDR:PORT"))
        })
        .collect::<Result<_>>()
        .exit(Exit::Usage)
}
