//! serve: the engine alone, or as a member of a cluster, until SIGTERM or SIGINT.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vellum_base::Slot;
use vellum_nvme::{Device, OpenMode};
use vellum_proto::QuorumTimers;
use vellum_rt::net::Endpoint;
use vellum_server::cluster::{
    FenceWith, Fencer, HostFencer, MemberNode, MemberOptions, MemberProgress, ReservationFencer, ScriptFencer,
    own_process,
};
use vellum_server::{NodeError, NodeOptions};

use crate::cli::Serve;
use crate::engine;
use crate::exit::{Coded, Exit, WithExit};

/// How often a member looks for a signal while nothing happens in the quorum.
const LOOK: Duration = Duration::from_millis(100);
/// A member that was told to leave has so long; then it ends as in a crash, and is fenced by its successor.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);

/// What became of a member, a line each. It serves on when nobody reads that any more.
macro_rules! say {
    ($($what:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($what)*);
    }};
}

pub fn serve(args: &Serve) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot wait for signals")?;
    let mut listen = engine::parse_listen(&args.listen)?;
    if let Some(slot) = args.slot {
        return member(args, Slot(slot), listen, signals);
    }
    if listen.is_empty() {
        listen.push(Endpoint::Unix(engine::own_socket()?));
    }
    let node = engine::start(&args.device, args.node_options(listen)?)?;
    for endpoint in &node.up().endpoints {
        println!("serving {} at {endpoint}: {}", args.device, engine::describe(node.up()));
    }
    let sockets: Vec<_> = node.up().endpoints.clone();
    signals.forever().next();
    tracing::info!("stopping");
    let stopped = node.shutdown().context("the engine did not stop cleanly").exit(Exit::Device);
    remove_sockets(&sockets);
    stopped
}

impl Serve {
    fn node_options(&self, listen: Vec<Endpoint>) -> Result<NodeOptions> {
        let metrics = self.metrics.as_ref().map(|text| {
            let named = text.starts_with("unix:") || text.starts_with("tcp:");
            let text = if named { text.clone() } else { format!("tcp:{text}") };
            text.parse::<Endpoint>()
                .with_context(|| format!("--metrics {text}: use ADDR:PORT or unix:PATH"))
                .exit(Exit::Usage)
        });
        let metrics = metrics.transpose()?;
        engine::remove_stale_sockets(metrics.as_slice());
        let mut options = self.engine.options(listen, 0);
        options.store.scrub_every = self.scrub_every.0;
        Ok(NodeOptions { keys: self.keys.load()?, metrics, ..options })
    }
}

fn remove_sockets(endpoints: &[Endpoint]) {
    for endpoint in endpoints {
        if let Endpoint::Unix(path) = endpoint {
            let _ = std::fs::remove_file(path); // the next start removes it too
        }
    }
}

/// A `--fence`, understood.
enum Fence {
    Host,
    Reservation,
    Script(PathBuf),
}

fn parse_fence(text: &str) -> Result<Fence> {
    match text.split_once(':') {
        None if text == "host" => Ok(Fence::Host),
        None if text == "reservation" => Ok(Fence::Reservation),
        Some(("script", path)) if Path::new(path).is_file() => Ok(Fence::Script(path.into())),
        Some(("script", path)) => Err(anyhow::anyhow!("--fence: there is no script {path:?}")),
        _ => Err(anyhow::anyhow!("--fence {text}: use host, reservation or script:PATH")),
    }
    .exit(Exit::Usage)
}

fn fencer(
    fences: Vec<Fence>,
    device: &Arc<dyn Device>,
    slot: Slot,
    reservation: Option<&ReservationFencer>,
) -> FenceWith {
    let fencers = fences.into_iter().filter_map(|fence| -> Option<Arc<dyn Fencer>> {
        Some(match fence {
            Fence::Host => Arc::new(HostFencer::new(device.clone(), slot)),
            Fence::Reservation => Arc::new(reservation?.clone()),
            Fence::Script(path) => Arc::new(ScriptFencer::new(path)),
        })
    });
    FenceWith(fencers.collect())
}

fn code_of(error: &NodeError) -> Exit {
    match error {
        NodeError::Listen { .. } => Exit::Endpoint,
        NodeError::Options(_) | NodeError::Member(_) => Exit::Usage,
        _ => Exit::Device,
    }
}

fn member(args: &Serve, slot: Slot, listen: Vec<Endpoint>, mut signals: Signals) -> Result<()> {
    let fences = args.fence.iter().map(|text| parse_fence(text)).collect::<Result<Vec<_>>>()?;
    engine::remove_stale_sockets(&listen);
    engine::raise_descriptor_limit();
    let mode = OpenMode { slot: Some(slot.0), ..OpenMode::default() };
    let device = vellum_nvme::open(&args.device, mode).with_context(|| format!("slot {slot}")).exit(Exit::Device)?;
    let mut options = MemberOptions::new(slot, args.node_options(listen.clone())?);
    options.timers = QuorumTimers::with_heartbeat_timeout(Duration::from_millis(args.heartbeat_timeout));
    let failed = |error: NodeError| {
        let code = code_of(&error);
        let error = anyhow::Error::new(error).context(format!("cannot serve {} in slot {slot}", args.device));
        anyhow::Error::from(Coded { code, error })
    };
    let reservation = match fences.iter().any(|fence| matches!(fence, Fence::Reservation)) {
        true => Some(ReservationFencer::register(device.clone(), slot, &own_process()).map_err(failed)?),
        false => None,
    };
    options.fencer = Arc::new(fencer(fences, &device, slot, reservation.as_ref()));
    let node = MemberNode::start(device, options).map_err(failed)?;
    let mut leaving: Option<Instant> = None;
    let ended = loop {
        match node.next(LOOK) {
            Some(MemberProgress::Following { term }) => {
                say!("slot {slot} of {}: follows, term {term}", args.device)
            }
            Some(MemberProgress::Leading(up)) => {
                say!("slot {slot} of {}: leads, {}", args.device, engine::describe(&up));
                up.endpoints.iter().for_each(|endpoint| say!("serving {} at {endpoint}", args.device));
                engine::tell_repaired(&args.device, &up);
            }
            Some(MemberProgress::EngineFailed { term, error }) => {
                say!("slot {slot} of {}: resigns in term {term}: {error}", args.device);
            }
            Some(MemberProgress::Ended(ended)) => break ended,
            None => {}
        }
        if signals.pending().next().is_some() {
            tracing::info!(%slot, "leaving");
            node.leave();
            leaving.get_or_insert_with(Instant::now);
        }
        if leaving.is_some_and(|since| since.elapsed() > LEAVE_WITHIN) {
            break Err(NodeError::Member(format!("it could not leave within {LEAVE_WITHIN:?}")));
        }
    };
    remove_sockets(&listen);
    match ended {
        Ok(()) => {
            node.join().map_err(failed)?;
            let left = reservation.map_or(Ok(()), |reservation| reservation.unregister());
            left.context("its key is registered still").exit(Exit::Device)
        }
        // Its reactors may wait for a device that never answers: the process's end ends them.
        Err(error) => Err(failed(error)),
    }
}
