//! Making changes durable: many who wait share few requests.

use std::rc::Rc;

use vellum_base::BatchNo;
use vellum_wire::{Request, Response};

use super::TxnId;
use crate::stats::count;
use crate::{Client, ClientError, env};

/// With this many sync requests on their way a further sync waits, and shares the next request with all who come
/// meanwhile; with fewer it goes at once.
const MAX_SYNCS_IN_FLIGHT: usize = 2;

impl Client {
    /// Returns when every change committed before the call is durable.
    ///
    /// Errors: [`ClientError::BatchFailed`] or [`ClientError::Fenced`] when any change, of this or of an earlier time,
    /// was lost; again at every call.
    pub async fn sync(self: &Rc<Self>) -> Result<(), ClientError> {
        let next = self.batches.next.get().0;
        let last = if self.batches.open.borrow().is_empty() { next - 1 } else { next };
        self.sync_txn(TxnId(BatchNo(last))).await
    }

    /// Returns when the transaction, and all before it, is durable.
    pub async fn sync_txn(self: &Rc<Self>, txn: TxnId) -> Result<(), ClientError> {
        count(&self.counters.syncs, 1);
        let (b, goal) = (&self.batches, txn.0);
        loop {
            self.check_alive()?;
            if b.durable.get() >= goal {
                return Ok(());
            }
            let free = || b.syncs_in_flight.get() < MAX_SYNCS_IN_FLIGHT;
            if free() && b.sync_asked.get() < goal {
                let through = if b.next.get() <= goal { self.close_batch() } else { BatchNo(b.next.get().0 - 1) };
                self.ask_sync(through);
            }
            b.progress
                .until(|| {
                    let ask = free() && b.sync_asked.get() < goal;
                    (b.durable.get() >= goal || ask || self.is_dead()).then_some(())
                })
                .await;
        }
    }

    /// Makes everything durable that was changed in a lock group.
    pub(crate) async fn sync_group(self: &Rc<Self>, group: u64) -> Result<(), ClientError> {
        let last = self.cache.borrow().last_batch(group);
        self.sync_txn(TxnId(last)).await
    }

    fn ask_sync(self: &Rc<Self>, through: BatchNo) {
        let b = &self.batches;
        count(&self.counters.sync_requests, 1);
        b.sync_asked.set(through);
        b.syncs_in_flight.set(b.syncs_in_flight.get() + 1);
        let client = self.clone();
        env::spawn("sync", async move {
            client.run_sync(through).await;
            client.batches.syncs_in_flight.set(client.batches.syncs_in_flight.get() - 1);
            client.batches.progress.wake_all();
        });
    }

    async fn run_sync(self: &Rc<Self>, through: BatchNo) {
        let b = &self.batches;
        // The window may hold some of the batches back: the engine must know them before it is asked.
        let sent = || b.retained.borrow().iter().all(|r| r.sent || r.number > through);
        b.progress.until(|| (sent() || self.is_dead()).then_some(())).await;
        if self.is_dead() || b.durable.get() >= through {
            return;
        }
        match self.port.call(Request::Sync { through }, None).await.map(|r| r.body) {
            Ok(Response::Synced { .. }) => self.batches_durable(through),
            Ok(Response::Error(error)) => {
                // A batch's own answer says more, and comes first when that is the cause.
                tracing::warn!(%error, "a sync was refused");
                b.sync_asked.set(b.durable.get().min(b.sync_asked.get()));
                env::sleep(std::time::Duration::from_millis(5)).await;
            }
            Ok(_) => self.fail(ClientError::Protocol { request: "Sync" }),
            Err(error) => self.fail(error),
        }
    }
}
