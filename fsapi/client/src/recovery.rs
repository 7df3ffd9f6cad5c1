//! A new leader: it knows what was durable, and nothing of us but our record.
//!
//! Order: locks (as they are in our own view), data, batches. Until that is done no request of ours is served, so that
//! no read can see the state before our own changes. What locks cover stays valid: nobody else could change it.

use std::rc::Rc;

use vellum_base::{DmaBuf, DmaSlice, Mutant, mutant, probe};
use vellum_wire::{ErrorCode, Greeted, MAX_WANTS, Request, Response};

use crate::data::written;
use crate::fact::Fact;
use crate::stats::count;
use crate::{Client, ClientError, env};

const BUSY_DELAY: std::time::Duration = std::time::Duration::from_millis(5);

impl Client {
    /// Brings a new leader to where we are. Cancelled and begun anew when that leader is lost too.
    pub(crate) async fn recover(self: &Rc<Self>, greeted: Greeted) -> Result<(), ClientError> {
        self.check_alive()?;
        count(&self.counters.recoveries, 1);
        self.recovering.set(true);
        // Grants that the old leader gave are part of our view: note them before we tell it.
        self.recovery_reports.set(true);
        self.take_lock_answers();
        self.recovery_reports.set(false);
        let result = self.recover_steps(greeted).await;
        match &result {
            Ok(()) => {
                probe::tell(|| Fact::Recovered { rid: self.rid(), term: self.term() });
                self.recovering.set(false);
                self.send_batches();
                self.ask_again_for_file_locks();
                self.note_durable();
                self.batches.progress.wake_all();
            }
            // The connection comes back with another greeting.
            Err(ClientError::Connection(_)) => {}
            Err(error) => self.fail(error.clone()),
        }
        result
    }

    async fn recover_steps(self: &Rc<Self>, greeted: Greeted) -> Result<(), ClientError> {
        if greeted.root != self.root() {
            // Others need not wait for what was held here.
            let _ = self.port.call_recovering(Request::Farewell, None).await;
            return Err(ClientError::RootMoved);
        }
        let b = &self.batches;
        let newest = b.retained.borrow().back().map_or(b.durable.get(), |r| r.number);
        if greeted.last_batch < b.durable.get() || greeted.last_batch > newest {
            // It lost what it had called durable, or it takes us for somebody else.
            return Err(ClientError::Protocol { request: "Greeting" });
        }
        // What it kept is durable: it comes from its recovered log.
        self.batches_durable(greeted.last_batch);
        b.retained.borrow_mut().iter_mut().for_each(|r| r.applied = None);
        self.recover_files().await?;
        let held = self.locks.held();
        probe::tell(|| Fact::Reports { rid: self.rid(), term: greeted.term, held: held.clone() });
        self.port.recover_locks(held).await?;
        if !mutant::active(Mutant::ForgetData) {
            self.resend_data().await?;
        }
        self.resend_batches().await
    }

    /// File locks and open inodes, before the last page of the locks.
    async fn recover_files(self: &Rc<Self>) -> Result<(), ClientError> {
        let (mut locks, mut opens) = (self.file_locks_to_report(), self.opens.reported());
        if mutant::active(Mutant::ForgetFileLocks) {
            locks.clear();
        }
        while !locks.is_empty() || !opens.is_empty() {
            let rest = (locks.split_off(locks.len().min(MAX_WANTS)), opens.split_off(opens.len().min(MAX_WANTS)));
            match self.port.call_recovering(Request::ReassertFiles { locks, opens }, None).await?.body {
                Response::Reasserted => (locks, opens) = rest,
                Response::Error(e) => return Err(ClientError::Engine(e)),
                _ => return Err(ClientError::Protocol { request: "ReassertFiles" }),
            }
        }
        Ok(())
    }

    async fn resend_data(self: &Rc<Self>) -> Result<(), ClientError> {
        let runs = self.data.runs.borrow().to_resend();
        for run in runs {
            let data = join(&run.slices);
            count(&self.counters.data_runs_resent, 1);
            let places = loop {
                let reply = self.port.call_recovering(Request::WriteData, Some(data.clone())).await?;
                match written(reply, data.len()) {
                    Err(e) if e.code() == Some(ErrorCode::Busy) => env::sleep(BUSY_DELAY).await,
                    other => break other?,
                }
            };
            if places.len() > 1 {
                self.data.splits.borrow_mut().any = true;
            }
            self.data.runs.borrow_mut().moved(run.start, &places);
        }
        self.split_torn_extents();
        Ok(())
    }

    /// All retained batches, in order, several on their way at a time.
    async fn resend_batches(self: &Rc<Self>) -> Result<(), ClientError> {
        let numbers: Vec<_> = self.batches.retained.borrow().iter().map(|r| r.number).collect();
        for window in numbers.chunks(self.options.max_batches_in_flight.max(1)) {
            let calls: Vec<_> = {
                let mut retained = self.batches.retained.borrow_mut();
                let mut calls = Vec::new();
                for batch in retained.iter_mut().filter(|r| window.contains(&r.number)) {
                    batch.sent = true;
                    calls.push((batch.number, self.port.call_recovering(self.commit_request(batch), None)));
                }
                calls
            };
            count(&self.counters.batches_resent, calls.len() as u64);
            for (number, call) in calls {
                let mut result = call.await;
                while !self.batch_answered(number, result)? {
                    env::sleep(BUSY_DELAY).await;
                    let request = {
                        let retained = self.batches.retained.borrow();
                        retained.iter().find(|r| r.number == number).map(|batch| self.commit_request(batch))
                    };
                    let Some(request) = request else { break };
                    result = self.port.call_recovering(request, None).await;
                }
            }
        }
        Ok(())
    }
}

fn join(slices: &[DmaSlice]) -> DmaSlice {
    if let [one] = slices {
        return one.clone();
    }
    let mut whole = DmaBuf::new(slices.iter().map(|s| s.len()).sum());
    let mut at = 0;
    for slice in slices {
        whole[at..at + slice.len()].copy_from_slice(slice);
        at += slice.len();
    }
    whole.freeze()
}
