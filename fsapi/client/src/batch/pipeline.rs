//! Closing, sending and keeping batches.

use std::rc::Rc;

use vellum_base::{Batch, BatchNo, Mutant, mutant, probe};
use vellum_wire::{ErrorCode, Request, Response, WireError};

use super::Retained;
use crate::fact::Fact;
use crate::port::{CallFuture, Reply};
use crate::stats::count;
use crate::{Client, ClientError, env};

/// Wait before a batch that the engine was too busy for is sent again.
const BUSY_DELAY: std::time::Duration = std::time::Duration::from_millis(5);

impl Client {
    /// Back-pressure: waits until there is room for `ops` more changes. Call it before taking locks, so that nobody
    /// waits for a lock whose user waits for the device.
    pub async fn reserve(self: &Rc<Self>, ops: usize) -> Result<(), ClientError> {
        assert!(ops <= crate::MAX_TXN_OPS, "{ops} operations do not fit one transaction");
        let b = &self.batches;
        b.progress
            .until(|| {
                let room = b.retained_bytes.get() < self.options.max_retained_bytes
                    && b.retained.borrow().len() < self.options.max_retained_batches;
                (room || self.is_dead()).then_some(())
            })
            .await;
        self.check_alive()
    }

    /// Closes the open batch, if there is anything in it, and returns the number of the last closed one.
    pub(crate) fn close_batch(self: &Rc<Self>) -> BatchNo {
        let b = &self.batches;
        let mut number = b.next.get();
        if b.open.borrow().is_empty() || self.is_dead() {
            return BatchNo(number.0 - 1);
        }
        let bytes = b.open.borrow().bytes();
        let mut ops = b.open.borrow_mut().take();
        count(&self.counters.batches, 1);
        count(&self.counters.batch_ops, ops.len() as u64);
        if mutant::active(Mutant::SplitBatch) && ops.len() > 1 {
            let rest = ops.split_off(ops.len() / 2);
            let first = Rc::new(std::mem::replace(&mut ops, rest));
            b.retained.borrow_mut().push_back(Retained { number, ops: first, bytes: 0, sent: false, applied: None });
            number = number.next();
        }
        b.retained_bytes.set(b.retained_bytes.get() + bytes);
        b.retained.borrow_mut().push_back(Retained { number, ops: Rc::new(ops), bytes, sent: false, applied: None });
        b.next.set(number.next());
        self.send_batches();
        number
    }

    /// Sends what the window allows, in order.
    pub(crate) fn send_batches(self: &Rc<Self>) {
        let b = &self.batches;
        while b.in_flight.get() < self.options.max_batches_in_flight && !self.recovering.get() && !self.is_dead() {
            let Some((number, call)) = self.next_to_send() else { return };
            b.in_flight.set(b.in_flight.get() + 1);
            let client = self.clone();
            env::spawn("batch", async move { client.batch_sent(number, call).await });
        }
    }

    fn next_to_send(self: &Rc<Self>) -> Option<(BatchNo, CallFuture)> {
        let mut retained = self.batches.retained.borrow_mut();
        // The unsent ones are the last ones.
        let at = retained.partition_point(|r| r.sent);
        let batch = retained.get_mut(at)?;
        batch.sent = true;
        Some((batch.number, self.port.call(self.commit_request(batch), None)))
    }

    /// The batch as the engine shall see it: with the places where its data is now.
    pub(crate) fn commit_request(&self, batch: &Retained) -> Request {
        let ops = self.data.settle_ops(&batch.ops);
        Request::Commit { batch: Batch { number: batch.number, ops } }
    }

    async fn batch_sent(self: &Rc<Self>, number: BatchNo, call: CallFuture) {
        let mut result = call.await;
        loop {
            match self.batch_answered(number, result) {
                Ok(true) => break,
                Ok(false) => {
                    env::sleep(BUSY_DELAY).await;
                    let again = {
                        let retained = self.batches.retained.borrow();
                        let batch = retained.iter().find(|r| r.number == number && r.applied.is_none());
                        batch.map(|batch| self.port.call(self.commit_request(batch), None))
                    };
                    match again {
                        Some(call) => result = call.await,
                        None => break, // a recovery has brought it home meanwhile
                    }
                }
                Err(error) => {
                    self.fail(error);
                    break;
                }
            }
        }
        self.batches.in_flight.set(self.batches.in_flight.get() - 1);
        self.batches.progress.wake_all();
        self.send_batches();
    }

    /// `Ok(false)`: send it again.
    pub(crate) fn batch_answered(
        self: &Rc<Self>,
        number: BatchNo,
        result: Result<Reply, ClientError>,
    ) -> Result<bool, ClientError> {
        let reply = result?;
        match reply.body {
            Response::Committed { number: answered, epoch } if answered == number => {
                if reply.term == self.port.durable().0
                    && let Some(batch) = self.batches.retained.borrow_mut().iter_mut().find(|r| r.number == number)
                {
                    batch.applied = Some((reply.term, epoch));
                }
                self.note_durable();
                Ok(true)
            }
            Response::Error(e) if e.code == ErrorCode::Busy => Ok(false),
            Response::Error(cause) => {
                Err(ClientError::BatchFailed { number: number.0, unsynced: self.unsynced_batches(), cause })
            }
            _ => Err(ClientError::BatchFailed {
                number: number.0,
                unsynced: self.unsynced_batches(),
                cause: WireError {
                    code: ErrorCode::Malformed,
                    message: "a batch was answered with another kind of message".into(),
                },
            }),
        }
    }

    pub(crate) fn unsynced_batches(&self) -> usize {
        self.batches.retained.borrow().len() + usize::from(!self.batches.open.borrow().is_empty())
    }

    /// Looks which batches the durable epoch covers.
    pub(crate) fn note_durable(self: &Rc<Self>) {
        let (term, durable) = self.port.durable();
        let through = {
            let retained = self.batches.retained.borrow();
            let covered = retained.iter().take_while(|r| r.applied.is_some_and(|(t, e)| t == term && e <= durable));
            covered.last().map(|r| r.number)
        };
        if let Some(through) = through {
            self.batches_durable(through);
        }
    }

    /// All batches up to `through` are durable: forgets them and the data that only they kept.
    pub(crate) fn batches_durable(self: &Rc<Self>, through: BatchNo) {
        let b = &self.batches;
        if through <= b.durable.get() {
            return;
        }
        b.durable.set(through);
        probe::tell(|| Fact::Durable { rid: self.rid(), through });
        loop {
            let first = {
                let mut retained = b.retained.borrow_mut();
                let covered = retained.front().is_some_and(|r| r.number <= through);
                if covered { retained.pop_front() } else { None }
            };
            let Some(batch) = first else { break };
            b.retained_bytes.set(b.retained_bytes.get() - batch.bytes);
            self.settle_cached(&batch.ops);
        }
        self.data.release(through);
        b.progress.wake_all();
    }

    /// Puts device addresses in the place of provisional ones in what is cached of these operations.
    fn settle_cached(&self, ops: &[vellum_base::ItemOp]) {
        for op in ops {
            if let vellum_base::ItemOp::Put { key, value } = op
                && let Some((place, _)) = crate::data::provisional_extent(key, value)
                && let Some(settled) = self.data.settle_value(value, place)
            {
                self.cache.borrow_mut().replace(*key, value, settled);
            }
        }
    }

    /// Closes the open batch when it is old: soon when nothing else is on its way, else when that has come home.
    pub(crate) async fn close_by_age(self: Rc<Self>) {
        let b = &self.batches;
        loop {
            b.opened.until(|| (!b.open.borrow().is_empty() || self.is_dead()).then_some(())).await;
            if self.is_dead() {
                return;
            }
            let number = b.next.get();
            env::sleep(self.options.batch_delay).await;
            if b.in_flight.get() > 0 {
                let max = self.options.batch_delay_max.saturating_sub(self.options.batch_delay);
                let over = || (b.in_flight.get() == 0 || b.next.get() != number || self.is_dead()).then_some(());
                env::or_timeout(max, b.progress.until(over)).await;
            }
            if b.next.get() == number {
                self.close_batch();
            }
        }
    }
}
