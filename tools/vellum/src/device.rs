//! Commands that work on a device that nobody serves: one reactor on this thread, one queue.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use vellum_nvme::{Device, OpenMode, Queue};
use vellum_store::PolledQueue;

use crate::exit::{Exit, WithExit};

/// Operations in flight that these commands ever need.
const DEPTH: u32 = 256;

/// For one who writes and wants nobody else there.
pub fn open_alone(spec: &str) -> Result<Arc<dyn Device>> {
    vellum_nvme::open(spec, OpenMode { exclusive: true, ..OpenMode::default() }).exit(Exit::Device)
}

/// For reading what nobody changes meanwhile.
pub fn open_still(spec: &str) -> Result<Arc<dyn Device>> {
    vellum_nvme::open(spec, OpenMode { read_only: true, ..OpenMode::default() }).exit(Exit::Device)
}

/// For a look at blocks that verify themselves, also while the device is served.
pub fn observe(spec: &str) -> Result<Arc<dyn Device>> {
    vellum_nvme::open(spec, OpenMode { observe: true, ..OpenMode::default() }).exit(Exit::Device)
}

/// Runs `work` with a polled queue of `device`.
pub fn with_queue<T, F>(device: &Arc<dyn Device>, work: impl FnOnce(Rc<dyn Queue>) -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    vellum_rt::native::block_on(async {
        let queue = PolledQueue::open(&**device, DEPTH, "device").exit(Exit::Device)?;
        work(queue.clone()).await
    })
}
