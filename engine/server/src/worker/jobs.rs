//! The jobs that a worker runs at the moment.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use vellum_nvme::Queue;
use vellum_rt::local::Notify;
use vellum_rt::{Class, spawn};
use vellum_store::lsm::{Cancel, CompactionJob, execute};
use vellum_wire::{ErrorCode, Response};

pub(super) struct Jobs {
    queue: Rc<dyn Queue>,
    most: usize,
    running: Cell<usize>,
    /// Of those that were begun since the last [`Jobs::drain`].
    cancel: RefCell<Cancel>,
    ended: Notify,
}

impl Jobs {
    pub(super) fn new(queue: Rc<dyn Queue>, most: usize) -> Rc<Jobs> {
        Rc::new(Jobs { queue, most, running: Cell::new(0), cancel: RefCell::default(), ended: Notify::new() })
    }

    /// Runs one; the response is sent when the device has answered its last write.
    pub(super) async fn run(self: Rc<Self>, job: Bytes) -> Response {
        if self.running.get() >= self.most {
            return Response::error(ErrorCode::Busy, format!("{} jobs run already", self.running.get()));
        }
        let job = match CompactionJob::decode(&job) {
            Ok(job) => job,
            Err(error) => return Response::error(ErrorCode::Malformed, format!("job: {error}")),
        };
        self.running.set(self.running.get() + 1);
        let cancel = self.cancel.borrow().clone();
        let jobs = self.clone();
        // A task of its own: whoever asked may go away, its writes have an owner all the same.
        let task = spawn(Class::Compaction, "job", async move {
            let began = vellum_rt::now();
            let _ = jobs.queue.look_at_size(); // it may have grown since; what it cannot do the job's own IO says
            let done = execute(&jobs.queue, &job, &cancel).await;
            jobs.running.set(jobs.running.get() - 1);
            jobs.ended.notify_all();
            let (shard, bytes, took) = (job.shard.0, job.input_bytes(), began.elapsed());
            match &done {
                Ok(outcome) => tracing::info!(shard, bytes, segments = outcome.segments.len(), ?took, "job done"),
                Err(error) => tracing::warn!(shard, bytes, %error, "job failed"),
            }
            done
        });
        match task.await {
            Ok(Ok(outcome)) => match outcome.encode() {
                Some(bytes) => Response::Compacted { outcome: bytes.into() },
                None => Response::error(ErrorCode::Malformed, "the outcome does not fit a message"),
            },
            Ok(Err(error)) => Response::error(ErrorCode::Io, error.to_string()),
            Err(_) => Response::error(ErrorCode::Interrupted, "the worker ends"),
        }
    }

    /// Ends all that run; returns when the device has answered their last writes.
    pub(super) async fn drain(&self) {
        self.cancel.replace(Cancel::default()).cancel();
        loop {
            let ended = self.ended.notified();
            if self.running.get() == 0 {
                return;
            }
            ended.await;
        }
    }
}
