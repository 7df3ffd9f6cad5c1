//! A node on native reactors: what `vellum serve` and an embedding process start.

use std::sync::{Arc, mpsc};

use vellum_link::InProcessDialer;
use vellum_nvme::Device;
use vellum_rt::native;

use crate::options::NodeOptions;
use crate::plan::{NodeError, Plan, Progress, StopHandle, Up};

/// Dropping it kills the node: nothing is flushed, as after a crash. [`Node::shutdown`] is the clean end.
pub struct Node {
    up: Up,
    dialer: InProcessDialer,
    stop: StopHandle,
    progress: mpsc::Receiver<Progress>,
    threads: native::Reactors,
}

impl Node {
    /// Opens the filesystem on `device` and serves it. Blocks until it does; not for use on a reactor that the node's
    /// start depends on.
    pub fn start(device: Arc<dyn Device>, options: NodeOptions) -> Result<Node, NodeError> {
        let (sender, progress) = mpsc::channel();
        let cores = options.cores.clone();
        let config = native::Config { poll: options.poll, ..native::Config::default() };
        let (plan, dialer, stop) = Plan::new(device, options, move |step| {
            let _ = sender.send(step); // who started it may have gone
        })?;
        let threads = native::start(&cores, config, move |id| plan.clone().run(usize::from(id.0)))
            .map_err(|e| NodeError::Reactors(e.to_string()))?;
        match progress.recv() {
            Ok(Progress::Up(up)) => Ok(Node { up, dialer, stop, progress, threads }),
            Ok(Progress::Failed(error) | Progress::Stopped(Err(error))) => Err(error),
            Ok(Progress::Stopped(Ok(()))) | Err(_) => Err(NodeError::Stopped),
        }
    }

    /// Filesystem, term, recovery, endpoints.
    pub fn up(&self) -> &Up {
        &self.up
    }

    /// For clients in this process.
    pub fn dialer(&self) -> InProcessDialer {
        self.dialer.clone()
    }

    /// Ends every session (clients find the next leader), makes everything durable, closes the store, joins the
    /// reactors. The next start replays nothing.
    pub fn shutdown(self) -> Result<(), NodeError> {
        self.stop.stop();
        let stopped = match self.progress.recv() {
            Ok(Progress::Stopped(result)) => result,
            Ok(Progress::Failed(error)) => Err(error),
            Ok(Progress::Up(_)) | Err(_) => Err(NodeError::Stopped),
        };
        let joined = self.threads.join().map_err(|e| NodeError::Reactors(e.to_string()));
        stopped.and(joined)
    }

    /// Ends the reactors at once, as a crash would. For tests.
    pub fn kill(self) -> Result<(), NodeError> {
        drop(self.stop);
        self.threads.join().map_err(|e| NodeError::Reactors(e.to_string()))
    }
}
