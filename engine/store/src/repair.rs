//! Repairs, on a device that nobody serves, what has a second copy: superblock, manifest, segments of a filesystem that
//! keeps two. So are bitmaps, which extents tell again. What is left is named, with what to do.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vellum_nvme::{Device, Queue};

use crate::error::StoreError;
use crate::open::open;
use crate::options::OpenOptions;
use crate::scrub::{Finding, ScrubStatus};
use crate::store::{Everyone, Store};

#[derive(Clone, Debug, Default)]
pub struct RepairReport {
    /// Places that were made good.
    pub repaired: Vec<String>,
    /// What has no good copy; the first [`crate::MAX_FINDINGS`].
    pub left: Vec<Finding>,
    /// All of it.
    pub left_count: u64,
}

/// Opens the filesystem for writing (which replays its log), verifies everything, and closes it. The caller has the device
/// alone. `Err` when it cannot be opened: then nothing was changed but, at most, a superblock.
pub async fn repair(device: &Arc<dyn Device>, queue: &Rc<dyn Queue>) -> Result<RepairReport, StoreError> {
    let options = OpenOptions { evacuation_bytes_per_s: None, rebuild_bitmaps: true, ..OpenOptions::default() };
    let mut opened = open(device, queue, options).await?;
    let mut report = RepairReport { repaired: opened.report.repaired, ..RepairReport::default() };
    let Some(seed) = opened.seeds.pop() else { return Err(StoreError::Closed) };
    let store = Store::start(seed, Rc::new(Everyone)).await?;
    report.repaired.extend(
        store.rewritten.borrow().iter().map(|range| {
            format!("bitmaps of bucket {}: found out from the extents of all files", range.first.bucket().0)
        }),
    );
    let status = scrub_to_the_end(&store).await;
    store.shutdown().await?;
    let status = status?;
    report.left_count = status.problems - status.repaired;
    for finding in status.findings {
        if finding.repaired {
            report.repaired.push(format!("{}: {}", finding.place, finding.detail));
        } else {
            report.left.push(finding);
        }
    }
    Ok(report)
}

async fn scrub_to_the_end(store: &Rc<Store>) -> Result<ScrubStatus, StoreError> {
    let mut status = store.start_scrub(0).await?;
    while status.running {
        vellum_rt::sleep(Duration::from_millis(2)).await;
        status = store.scrub_status().await?;
    }
    match &status.ended_early {
        Some(why) => Err(StoreError::Failed(why.as_str().into())),
        None => Ok(status),
    }
}
