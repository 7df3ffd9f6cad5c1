//! Fences by a program of the operator's: IPMI, a hypervisor, ssh, a storage's own fencing.
//!
//! The program gets what it needs in its environment, and its exit status is believed: 0 says that the target writes
//! nothing any more, anything else (a signal, a timeout) that it may.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vellum_rt::{now, sleep};

use super::fencer::{FenceError, FenceFuture, FenceOrder, Fencer};

const LOOK: Duration = Duration::from_millis(10);

#[derive(Clone, Debug)]
pub struct ScriptFencer {
    path: PathBuf,
    limit: Duration,
}

impl ScriptFencer {
    /// Gives up (and kills the program) after this.
    pub const LIMIT: Duration = Duration::from_secs(50);

    pub fn new(path: impl Into<PathBuf>) -> ScriptFencer {
        ScriptFencer { path: path.into(), limit: Self::LIMIT }
    }

    pub fn within(self, limit: Duration) -> ScriptFencer {
        ScriptFencer { limit, ..self }
    }

    fn start(&self, order: &FenceOrder) -> std::io::Result<Child> {
        let target = &order.target;
        let text = |value: Option<String>| value.unwrap_or_default();
        Command::new(&self.path)
            .env("VELLUM_FENCE_SLOT", target.slot.to_string())
            .env("VELLUM_FENCE_ADDRESS", text(order.address.map(|a| a.to_string())))
            .env("VELLUM_FENCE_RID", text(target.rid.map(|rid| rid.to_string())))
            .env("VELLUM_FENCE_TERM", text(target.term.map(|term| term.to_string())))
            .env("VELLUM_FENCE_PID", text(order.process().map(|process| process.pid.to_string())))
            .env("VELLUM_FENCE_REASON", target.reason.to_string())
            .env("VELLUM_FENCE_BY_SLOT", order.by.to_string())
            .env("VELLUM_FENCE_FOR_TERM", order.for_term.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
    }
}

/// Killed when nobody waits for it any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill(); // it may have ended meanwhile
            let _ = self.0.wait();
        }
    }
}

impl Fencer for ScriptFencer {
    fn fence(&self, order: FenceOrder) -> FenceFuture {
        let fencer = self.clone();
        Box::pin(async move {
            let failed = |what: String| FenceError::Failed(format!("{}: {what}", fencer.path.display()));
            let mut child = Running(fencer.start(&order).map_err(|e| failed(e.to_string()))?);
            let give_up = now() + fencer.limit;
            loop {
                match child.0.try_wait().map_err(|e| failed(e.to_string()))? {
                    Some(status) if status.success() => {
                        tracing::info!(%order, script = %fencer.path.display(), "fenced");
                        return Ok(());
                    }
                    Some(status) => return Err(failed(format!("ended with {status}"))),
                    None if now() >= give_up => return Err(FenceError::TimedOut(fencer.limit)),
                    None => sleep(LOOK).await,
                }
            }
        })
    }
}
