//! When a scrub begins by itself: so long after the last one that saw everything, whoever began that.
//!
//! When that was is an item, so a restart of the engine, or another leader, goes on where the one before was. A filesystem
//! that was never scrubbed counts from its making. What an operator begins is not touched: there is one scrub at a time.

use std::rc::Rc;
use std::time::Duration;

use vellum_base::View;
use vellum_format::Record;
use vellum_format::system::{self, LastScrub};
use vellum_rt::{random_u64, timeout, wall_clock};

use super::{DEFAULT_SCRUB_RATE, ScrubCommand};
use crate::central::Central;
use crate::error::StoreError;
use crate::mesh::Request;
use crate::store::Store;

/// The clock is looked at so often: it may be set.
const LOOK: Duration = Duration::from_secs(3600);
/// A start of the engine has this for itself before a scrub that is overdue.
const AFTER_START: Duration = Duration::from_secs(600);
/// Filesystems that were made, or begin to be served, together are not scrubbed together.
const MOST_JITTER_AFTER_START: Duration = Duration::from_secs(3600);
/// Jitter, and the time until the next attempt after one that did not come to its end, are the interval over this.
const SHARE: u32 = 10;

fn now_s() -> u64 {
    u64::try_from(wall_clock().secs).unwrap_or(0)
}

/// Up to a share of the interval, by chance.
fn jitter_s(every: Duration, most: Duration) -> u64 {
    let most = (every / SHARE).min(most).as_secs();
    if most == 0 { 0 } else { random_u64() % (most + 1) }
}

impl Store {
    /// The coordinator's task, as long as the store may write.
    pub(crate) async fn scrub_in_time(self: Rc<Self>, central: Rc<Central>) {
        let Some(every) = self.options.scrub_every else { return };
        let last = self.last_scrub().await;
        {
            let mut status = central.scrub.borrow_mut();
            status.last = status.last.or(last);
            let from_s = status.last.map_or(self.superblock.created, |last| last.ended_at_s).min(now_s());
            let due_s = from_s.saturating_add(every.as_secs() + jitter_s(every, every));
            let overdue_s = now_s() + AFTER_START.as_secs() + jitter_s(every, MOST_JITTER_AFTER_START);
            status.next_at_s = Some(if due_s <= now_s() { overdue_s } else { due_s });
        }
        while self.check_writable().is_ok() {
            let (running, next_at_s) = {
                let status = central.scrub.borrow();
                (status.running, status.next_at_s)
            };
            // While one runs its end says when the next one begins.
            let wait = match next_at_s.filter(|_| !running).map(|at| at.saturating_sub(now_s())) {
                Some(0) => {
                    let start = ScrubCommand::Start { rate_bytes_per_s: DEFAULT_SCRUB_RATE };
                    if self.scrub_here(&central, start).is_err() {
                        return; // the store has just failed, or stops
                    }
                    tracing::info!("a scrub begins: it is due");
                    LOOK
                }
                Some(left_s) => Duration::from_secs(left_s).min(LOOK),
                None => LOOK,
            };
            let _ = timeout(wait, central.scrub_wake.notified()).await; // either way: look
        }
    }

    async fn last_scrub(self: &Rc<Self>) -> Option<LastScrub> {
        let found = self.get(&[system::scrub_key()], View::Applied).await;
        let read = found.map_err(|e| e.to_string()).map(|mut values| values.pop().flatten());
        let last = read.and_then(|value| value.map(|v| LastScrub::decode(&v).map_err(|e| e.to_string())).transpose());
        last.unwrap_or_else(|error| {
            tracing::warn!(%error, "when the last scrub ended cannot be read");
            None
        })
    }

    /// A scrub is over; `whole` when it saw everything.
    pub(crate) async fn scrub_ended(self: &Rc<Self>, central: &Rc<Central>, whole: bool) {
        let every = self.options.scrub_every;
        let last = {
            let mut status = central.scrub.borrow_mut();
            let last = LastScrub { ended_at_s: now_s(), problems: status.problems, repaired: status.repaired };
            if whole {
                status.last = Some(last);
            }
            status.next_at_s = every.map(|every| {
                let rest = if whole { every + Duration::from_secs(jitter_s(every, every)) } else { every / SHARE };
                now_s() + rest.as_secs()
            });
            last
        };
        if whole && let Err(error) = self.note_scrub(last).await {
            tracing::warn!(%error, "that a scrub has ended is forgotten with this run");
        }
    }

    async fn note_scrub(self: &Rc<Self>, last: LastScrub) -> Result<(), StoreError> {
        let owner = self.reactor_of(system::scrub_key().bucket());
        self.ask(owner, Request::NoteScrub { last }).await.map(|_| ())
    }

    /// On the reactor that owns the record. It becomes durable with what comes after it.
    pub(crate) async fn note_scrub_here(self: &Rc<Self>, last: LastScrub) -> Result<(), StoreError> {
        let record = Record::Put { key: system::scrub_key(), value: last.encode() };
        self.commit_own(&[record]).await.map(|_| ())
    }
}
