//! Jobs of one reactor's store, to workers wherever their sessions are.

use std::rc::{Rc, Weak};

use bytes::Bytes;
use vellum_base::Rid;
use vellum_store::lsm::{CompactionJob, LocalFuture, Outcome};
use vellum_store::{Helped, Helpers};

use super::{Hand, JobEnd};
use crate::mesh::{Answer, Ask};
use crate::reactor::Reactor;

/// What the store sees of the crew.
pub(crate) struct CrewHelpers(pub Weak<Reactor>);

impl Helpers for CrewHelpers {
    fn slots(&self) -> usize {
        self.0.upgrade().map_or(0, |reactor| reactor.crew.slots())
    }

    fn take(&self, job: Rc<CompactionJob>) -> Option<LocalFuture<'static, Helped>> {
        let reactor = self.0.upgrade()?;
        if reactor.stopping.get() || reactor.crew.slots() == 0 {
            return None;
        }
        let bytes = Bytes::from(job.encode()?);
        let hands = reactor.crew.in_turn();
        Some(Box::pin(async move { reactor.hand_over(hands, bytes, job.input_bytes()).await }))
    }

    fn distrust(&self, helper: u64, why: &str) -> LocalFuture<'static, ()> {
        let (reactor, why) = (self.0.clone(), why.to_owned());
        Box::pin(async move {
            let Some(reactor) = reactor.upgrade() else { return std::future::pending().await };
            let rid = Rid(helper);
            reactor.ask(reactor.backend.home_of(rid), Ask::Distrust { rid, why }).await;
            reactor.quiet(rid, None).await;
        })
    }
}

impl Reactor {
    async fn hand_over(self: &Rc<Self>, hands: Vec<Hand>, job: Bytes, input_bytes: u64) -> Helped {
        for hand in hands {
            let ask = Ask::Job { rid: hand.rid, job: job.clone(), input_bytes };
            match self.ask(hand.home, ask).await {
                Answer::Job(JobEnd::Busy) => {}
                Answer::Job(JobEnd::Done { outcome, number }) => {
                    return match Outcome::decode(&outcome) {
                        Ok(outcome) => Helped::Done { helper: hand.rid.0, outcome },
                        // It has answered, for what that is worth.
                        Err(error) => {
                            let ask = Ask::Distrust { rid: hand.rid, why: error.to_string() };
                            self.ask(hand.home, ask).await;
                            self.lost(hand.rid, None, format!("job {number} of worker {}: {error}", hand.rid))
                        }
                    };
                }
                Answer::Job(JobEnd::Failed { reason }) => return Helped::Failed { reason },
                Answer::Job(JobEnd::Lost { reason, number }) => return self.lost(hand.rid, Some(number), reason),
                // The reactor has stopped, and with it the engine: nobody uses the space any more.
                _ => return self.lost(hand.rid, None, "the engine stops".into()),
            }
        }
        Helped::Declined
    }

    fn lost(self: &Rc<Self>, rid: Rid, job: Option<u64>, reason: String) -> Helped {
        self.crew.lost.set(self.crew.lost.get() + 1);
        let reactor = self.clone();
        let quiet = Box::pin(async move {
            reactor.quiet(rid, job).await;
            reactor.crew.lost.set(reactor.crew.lost.get() - 1);
        });
        Helped::Lost { reason, quiet }
    }

    /// Ends when a worker (or only that job of it) writes nothing any more; never, when that cannot be known.
    async fn quiet(self: &Rc<Self>, rid: Rid, job: Option<u64>) {
        match self.ask(self.backend.home_of(rid), Ask::Quiet { rid, job }).await {
            Answer::Done => {}
            _ => std::future::pending().await,
        }
    }
}
