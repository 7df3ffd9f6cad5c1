//! A follower lends a reactor: it runs compactions for whoever leads, until this node is to lead itself.
//!
//! Invariant: when [`Member::lend`] returns, nothing that it did is on its way to the device. So a member that leads next
//! knows that its own slot is quiet ([`super::gone`]).

use std::time::Duration;

use vellum_link::Address;
use vellum_rt::channel::{Receiver, Sender, bounded};
use vellum_rt::net::Endpoint;
use vellum_rt::{Class, spawn};
use vellum_store::{PolledQueue, StoreError};

use super::blocks::Membership;
use super::leadership::Job;
use super::member::Member;
use crate::plan::NodeError;
use crate::worker::{self, WorkerOptions};

/// Operations in flight of the worker.
const QUEUE_DEPTH: u32 = 64;
/// A leadership does not wait longer for the farewell to a leader that may be dead.
const FAREWELL: Duration = Duration::from_millis(100);

impl Member {
    /// Works until there is a job of an own leadership (or none will come any more); gives that.
    pub(super) async fn lend(&self, jobs: &mut Receiver<Job>) -> Option<Job> {
        let (stop, stopped): (Sender<()>, _) = bounded(1);
        vellum_rt::scope(async {
            let device = self.device.clone();
            let options = WorkerOptions {
                slot: Some(self.options.slot.0),
                timers: self.options.node.timers,
                keys: self.options.node.keys.clone(),
                insecure_network: self.options.node.insecure_network,
                queue_depth: QUEUE_DEPTH,
                farewell: FAREWELL,
                ..WorkerOptions::default()
            };
            let others = self.others().await;
            let work = async move {
                match others {
                    Ok(others) if others.is_empty() => {}
                    Ok(others) => {
                        if let Err(error) = worker::run(device, Address::from(others), options, stopped).await {
                            tracing::warn!(%error, "this member does not compact for the leader");
                        }
                    }
                    Err(error) => tracing::warn!(%error, "this member does not compact for the leader"),
                }
            };
            let working = spawn(Class::Compaction, "lend", work);
            let job = jobs.recv().await;
            drop(stop);
            let _ = working.await; // with its last write
            job
        })
        .await
    }

    /// Where the other members serve when they lead.
    async fn others(&self) -> Result<Vec<Endpoint>, NodeError> {
        let queue = PolledQueue::open(&*self.device, QUEUE_DEPTH, "member device").map_err(StoreError::from)?;
        let members = Membership::of(&vellum_store::read_superblock(&queue).await?);
        let others = members.slots().filter(|(slot, _)| *slot != self.options.slot);
        Ok(others.map(|(_, address)| Endpoint::Tcp(address)).collect())
    }
}
