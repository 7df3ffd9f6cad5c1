//! A scrub of the whole node, driven by the coordinator.

use std::rc::Rc;
use std::time::Duration;

use vellum_base::BLOCK_SIZE;
use vellum_format::ChunkUse;
use vellum_rt::{Class, now, sleep, spawn};

use super::{Cursor, ScrubStatus};
use crate::central::Central;
use crate::env::COORDINATOR;
use crate::error::StoreError;
use crate::mesh::{Answer, Request};
use crate::store::Store;

/// How often a pause is looked up from.
const LOOK_UP: Duration = Duration::from_millis(100);

/// What is asked of the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubCommand {
    /// Begins one, unless one runs: then that one takes the rate.
    Start {
        rate_bytes_per_s: u64,
    },
    Stop,
    Status,
}

impl Store {
    /// Begins to verify everything in the background, or changes the rate of the scrub that runs. `rate_bytes_per_s` of 0
    /// stands for no bound.
    pub async fn start_scrub(self: &Rc<Self>, rate_bytes_per_s: u64) -> Result<ScrubStatus, StoreError> {
        self.scrub(ScrubCommand::Start { rate_bytes_per_s }).await
    }

    /// Ends the scrub that runs, if any, after its step; what it has found stays.
    pub async fn stop_scrub(self: &Rc<Self>) -> Result<ScrubStatus, StoreError> {
        self.scrub(ScrubCommand::Stop).await
    }

    pub async fn scrub_status(self: &Rc<Self>) -> Result<ScrubStatus, StoreError> {
        self.scrub(ScrubCommand::Status).await
    }

    async fn scrub(self: &Rc<Self>, command: ScrubCommand) -> Result<ScrubStatus, StoreError> {
        match self.ask(COORDINATOR, Request::Scrub(command)).await? {
            Answer::Scrub(status) => Ok(*status),
            _ => Err(StoreError::Closed),
        }
    }

    pub(crate) fn scrub_here(self: &Rc<Self>, central: &Rc<Central>, command: ScrubCommand) -> Result<(), StoreError> {
        match command {
            ScrubCommand::Status => {}
            ScrubCommand::Stop => central.stop_scrub.set(true),
            ScrubCommand::Start { rate_bytes_per_s } => {
                self.check_writable()?;
                central.stop_scrub.set(false);
                let mut status = central.scrub.borrow_mut();
                if status.running {
                    status.rate_bytes_per_s = rate_bytes_per_s;
                    return Ok(());
                }
                *status = ScrubStatus {
                    running: true,
                    rate_bytes_per_s,
                    expected_bytes: self.bytes_in_use(central),
                    completed: status.completed,
                    last: status.last,
                    ..Default::default()
                };
                let (store, central) = (self.clone(), central.clone());
                spawn(Class::Scrub, "scrub", async move { store.scrub_until_the_end(&central).await }).detach();
            }
        }
        Ok(())
    }

    /// Chunks that are not free, about: how much of them is in use, only their owners know.
    fn bytes_in_use(&self, central: &Central) -> u64 {
        let state = central.manifest.state();
        let segments: u64 = state.shards.values().flat_map(|s| s.segments()).map(|meta| meta.len_bytes).sum();
        let data = state.chunks.iter().filter(|used| matches!(used, ChunkUse::Data(_))).count() as u64;
        segments * u64::from(self.superblock.metadata_copies.max(1))
            + data * u64::from(self.superblock.chunk_blocks) * BLOCK_SIZE as u64
    }

    async fn scrub_until_the_end(self: Rc<Self>, central: &Rc<Central>) {
        let ended = self.scrub_everything(central).await;
        self.scrub_ended(central, ended.is_ok()).await;
        let mut status = central.scrub.borrow_mut();
        status.running = false;
        match ended {
            Ok(()) => status.completed += 1,
            Err(why) => status.ended_early = Some(why),
        }
        central.scrub_wake.notify_one();
    }

    /// So long that `bytes` are within the rate, which may change meanwhile.
    async fn pause_scrub(&self, central: &Central, bytes: u64) {
        let began = now();
        while !central.stop_scrub.get() && self.check_failed().is_ok() {
            let rate = central.scrub.borrow().rate_bytes_per_s;
            if rate == 0 {
                return;
            }
            let pause = Duration::from_secs_f64(bytes as f64 / rate as f64);
            match pause.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
                Some(left) => sleep(left.min(LOOK_UP)).await,
                None => return,
            }
        }
    }

    async fn scrub_everything(self: &Rc<Self>, central: &Rc<Central>) -> Result<(), String> {
        let phase = |name| central.scrub.borrow_mut().phase = name;
        let said = |e: StoreError| e.to_string();
        phase("superblock");
        self.scrub_superblock(central).await.map_err(said)?;
        phase("manifest");
        self.scrub_manifest(central).await.map_err(said)?;
        phase("log");
        self.scrub_log(central).await.map_err(said)?;
        // A shard that is on its way arrives; no other moves while this runs.
        while central.balance.moving.get() {
            sleep(LOOK_UP).await;
        }
        for reactor in self.mesh.all() {
            let mut cursor = Some(Cursor::Shard { shard: 0 });
            while let Some(at) = cursor {
                if central.stop_scrub.get() {
                    return Err("it was stopped".into());
                }
                phase(at.phase());
                let step = match self.ask(reactor, Request::ScrubStep { cursor: at }).await.map_err(said)? {
                    Answer::Scrubbed(step) => *step,
                    _ => return Err(said(StoreError::Closed)),
                };
                {
                    let mut status = central.scrub.borrow_mut();
                    status.read_bytes += step.bytes;
                    step.findings.into_iter().for_each(|finding| status.add(finding));
                }
                cursor = step.next;
                self.pause_scrub(central, step.bytes).await;
            }
        }
        phase("done");
        Ok(())
    }
}
