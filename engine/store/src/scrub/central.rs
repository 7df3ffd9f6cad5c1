//! What the coordinator verifies itself: superblock, manifest, live log. Memory has all of it, so all of it is repaired.

use std::rc::Rc;
use std::time::Duration;

use vellum_base::Epoch;
use vellum_format::{ManifestEdit, Run};
use vellum_rt::sleep;

use super::Finding;
use crate::central::Central;
use crate::error::StoreError;
use crate::mesh::Message;
use crate::recovery::verify_run;
use crate::store::Store;

const WATCH: &str = "nothing is lost; watch the device";
const NOT_REPAIRED: &str =
    "stop nothing: while the node runs nothing is lost. Copy what matters, then replace the device";
/// Times that the log may move on under the eyes of a scrub before it is left to the next one.
const LOG_TRIES: usize = 5;
/// How long a flush of all memtables may take, in waits of 5 ms.
const FLUSH_WAITS: usize = 12_000;

fn finding(place: String, detail: String, repaired: bool) -> Finding {
    let advice = if repaired { WATCH } else { NOT_REPAIRED };
    Finding { place, detail, affects: String::new(), repaired, advice }
}

impl Store {
    pub(crate) async fn scrub_superblock(&self, central: &Central) -> Result<(), StoreError> {
        for (at, error) in central.manifest.verify_superblocks().await? {
            central.scrub.borrow_mut().add(finding(format!("superblock at {at}"), error, true));
        }
        Ok(())
    }

    pub(crate) async fn scrub_manifest(&self, central: &Central) -> Result<(), StoreError> {
        let bad = central.manifest.verify().await?;
        if bad.is_empty() {
            return Ok(());
        }
        // Written anew in the other area, both copies.
        let repaired = central.manifest.verify().await?.is_empty();
        bad.into_iter().for_each(|error| {
            central.scrub.borrow_mut().add(finding("manifest".into(), error, repaired));
        });
        Ok(())
    }

    pub(crate) async fn scrub_log(self: &Rc<Self>, central: &Rc<Central>) -> Result<(), StoreError> {
        let Some(bad) = self.bad_log(central).await? else { return Ok(()) };
        // Its epochs are in memtables: in segments nobody needs the log for them.
        let epoch = self.durable.get();
        for other in self.mesh.others() {
            self.mesh.post(other, Message::FlushThrough { epoch });
        }
        self.handle(Message::FlushThrough { epoch });
        self.leave_log_behind(central, epoch).await?;
        let repaired = self.bad_log(central).await?.is_none();
        central.scrub.borrow_mut().add(finding("log".into(), bad, repaired));
        Ok(())
    }

    /// What is wrong with the log of this run, up to the last durable seal.
    async fn bad_log(&self, central: &Central) -> Result<Option<String>, StoreError> {
        let current = || central.manifest.state().runs.last().cloned();
        for _ in 0..LOG_TRIES {
            let durable = central.machine.borrow().durable_seal().0;
            let Some(run) = current().filter(|run| run.term == self.term) else { return Ok(None) };
            let run = Run { durable_number: run.durable_number.max(durable), ..run };
            let ended = verify_run(&self.queue, &central.manifest.superblock(), &run).await;
            let bad = match ended {
                Ok(end) => {
                    central.scrub.borrow_mut().read_bytes += end.bytes;
                    return Ok(None);
                }
                Err(e) => e.to_string(),
            };
            // The floor may have passed what was read meanwhile, and the ring gone on over it.
            let same = current().is_some_and(|now| now.floor_number == run.floor_number && now.logs == run.logs);
            if same {
                return Ok(Some(bad));
            }
        }
        Ok(None)
    }

    /// Moves the floor of seals past `epoch`, when everything up to there is in segments.
    async fn leave_log_behind(self: &Rc<Self>, central: &Rc<Central>, epoch: Epoch) -> Result<(), StoreError> {
        for _ in 0..FLUSH_WAITS {
            self.check_writable()?;
            if central.manifest.state().flushed_through() >= epoch {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
        let flushed = central.manifest.state().flushed_through();
        let floor = central.machine.borrow().new_floor(flushed, 1);
        let Some((number, hash)) = floor else { return Ok(()) };
        let durable_number = central.machine.borrow().durable_seal().0;
        self.edit_manifest(vec![ManifestEdit::SealFloor { term: self.term, number, hash, durable_number }]).await?;
        central.machine.borrow_mut().set_floor(number);
        self.drive();
        Ok(())
    }
}
