//! From the engine's reactors to the agent: may this be acknowledged, and what is the quorum's state?

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;
use vellum_rt::channel::{Sender, bounded};
use vellum_rt::{now, sleep};
use vellum_store::{Deposed, Gate, GateFuture};

use super::change::{NotNow, SlotEdit};

/// Questions that wait for the agent at most; who asks then waits for room.
pub(super) const QUESTIONS: usize = 256;

pub(super) enum Question {
    /// Answered when a heartbeat round that is begun now was answered by a majority in this term.
    Leads {
        answer: Sender<Result<(), Deposed>>,
    },
    Status {
        answer: Sender<Value>,
    },
    /// May this slot be changed now? Answered with the slots as they are to be written.
    Judge {
        edit: SlotEdit,
        answer: Sender<Result<Vec<String>, NotNow>>,
    },
    /// They were written: answered when this member goes by them.
    Changed {
        answer: Sender<Value>,
    },
}

/// A way to the agent from any reactor of the process.
#[derive(Clone)]
pub struct AgentHandle {
    pub(super) questions: Sender<Question>,
    /// When the last write of our own block was begun that the device has taken, in nanoseconds; `u64::MAX` when there is
    /// no other member.
    pub(super) wrote: Arc<AtomicU64>,
}

impl fmt::Debug for AgentHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentHandle")
    }
}

/// How often it is looked whether our block was written.
const LOOK: Duration = Duration::from_millis(5);

impl AgentHandle {
    /// No other leader had the device so long ago: it took a write of our block that was begun since.
    pub(crate) fn had_device(&self, ago: Duration) -> bool {
        let ago = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
        now().0 <= self.wrote.load(Relaxed).saturating_add(ago)
    }

    /// Until [`Self::had_device`]; for ever when this node was fenced.
    pub(crate) async fn until_had_device(&self, ago: Duration) {
        while !self.had_device(ago) {
            sleep(LOOK).await;
        }
    }

    /// The device has taken our block; the write was begun at that time.
    pub(super) fn note_written(&self, begun_ns: u64, alone: bool) {
        self.wrote.store(if alone { u64::MAX } else { begun_ns }, Relaxed);
    }

    /// Whether a slot may be changed, as the leader judges; the whole table to be written then.
    pub(crate) async fn judge(&self, edit: SlotEdit) -> Result<Vec<String>, NotNow> {
        let gone = || NotNow::Later("this member ends: ask the next leader".into());
        let (answer, mut answered) = bounded(1);
        self.questions.send(Question::Judge { edit, answer }).await.map_err(|_| gone())?;
        answered.recv().await.unwrap_or_else(|| Err(gone()))
    }

    /// The superblock was written as judged. The slots as they are now.
    pub(crate) async fn changed(&self) -> Option<Value> {
        let (answer, mut answered) = bounded(1);
        self.questions.send(Question::Changed { answer }).await.ok()?;
        answered.recv().await
    }

    /// The quorum as this member sees it; none when the agent is gone.
    pub async fn status(&self) -> Option<Value> {
        let (answer, mut answered) = bounded(1);
        self.questions.send(Question::Status { answer }).await.ok()?;
        answered.recv().await
    }
}

impl Gate for AgentHandle {
    fn confirm(&self) -> GateFuture {
        let questions = self.questions.clone();
        Box::pin(async move {
            let gone = || Deposed("its quorum agent has ended".into());
            let (answer, mut answered) = bounded(1);
            questions.send(Question::Leads { answer }).await.map_err(|_| gone())?;
            answered.recv().await.unwrap_or_else(|| Err(gone()))
        })
    }
}
