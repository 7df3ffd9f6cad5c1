//! A member on native reactors: what `vellum serve --slot` starts.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use vellum_format::quorum::ProcessIdentity;
use vellum_nvme::Device;
use vellum_rt::native;

use super::gate::AgentHandle;
use super::member::{Member, MemberProgress, MemberStop};
use super::options::MemberOptions;
use crate::plan::NodeError;
use crate::process;

/// Dropping it ends the member as a crash would; [`MemberNode::leave`] is the clean end.
pub struct MemberNode {
    stop: MemberStop,
    progress: mpsc::Receiver<MemberProgress>,
    agent: native::ReactorThread<()>,
    engine: native::Reactors,
    handle: AgentHandle,
}

/// Who this process is, as members write it into their blocks.
pub fn own_process() -> ProcessIdentity {
    let pid = std::process::id();
    match (process::boot_id(), process::start_of(pid)) {
        (Some(boot_id), Some(start_ticks)) => ProcessIdentity { pid, boot_id, start_ticks },
        _ => ProcessIdentity::default(), // no /proc: fenced by other means
    }
}

impl MemberNode {
    /// Starts the reactors; what becomes of the member is told by [`Self::next`].
    pub fn start(device: Arc<dyn Device>, options: MemberOptions) -> Result<MemberNode, NodeError> {
        let (sender, progress) = mpsc::channel();
        let cores = options.node.cores.clone();
        let config = native::Config { poll: options.node.poll, ..native::Config::default() };
        let (member, stop) = Member::with_process(device, options, own_process(), move |step| {
            let _ = sender.send(step); // who started it may have gone
        })?;
        let handle = member.handle();
        let reactors = |e: std::io::Error| NodeError::Reactors(e.to_string());
        let engine = {
            let member = member.clone();
            native::start(&cores, config, move |id| member.clone().run(1 + usize::from(id.0))).map_err(reactors)?
        };
        let agent = native::spawn_thread("quorum", None, move || member.run(0)).map_err(reactors)?;
        Ok(MemberNode { stop, progress, agent, engine, handle })
    }

    /// What happened next; none when it was not within the limit.
    pub fn next(&self, limit: Duration) -> Option<MemberProgress> {
        match self.progress.recv_timeout(limit) {
            Ok(step) => Some(step),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => Some(MemberProgress::Ended(Err(NodeError::Stopped))),
        }
    }

    pub fn handle(&self) -> AgentHandle {
        self.handle.clone()
    }

    /// Asks it to give up a leadership and to leave the quorum; [`MemberProgress::Ended`] follows.
    pub fn leave(&self) {
        self.stop.stop();
    }

    /// After [`MemberProgress::Ended`], or instead of leaving: ends it at once.
    pub fn join(self) -> Result<(), NodeError> {
        drop(self.stop);
        let agent = self.agent.join();
        agent.and(self.engine.join()).map_err(|e| NodeError::Reactors(e.to_string()))
    }
}
