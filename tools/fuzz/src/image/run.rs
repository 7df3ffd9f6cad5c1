//! Everything that reads an image, and what writes to it when it was opened.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vellum_base::{KeyRange, View};
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Image};
use vellum_rt::sim::{SimConfig, World};
use vellum_store::{
    CheckOptions, CheckReport, Everyone, OpenOptions, PolledQueue, Store, StoreError, check, dump, open, repair,
};

/// Virtual time within which everything ends.
const LIMIT: Duration = Duration::from_secs(3600);

/// A queue that is polled as long as the handle lives.
pub fn queue(device: &Arc<dyn Device>) -> PolledQueue {
    PolledQueue::open(&**device, 64, "device").expect("memory has queues")
}

fn in_a_world<T: 'static>(what: &str, work: impl Future<Output = T> + 'static) -> T {
    let mut world = World::new(1, SimConfig::default());
    let node = world.add_node();
    let reactor = world.add_reactor(node);
    world.block_on(reactor, LIMIT, work).unwrap_or_else(|| panic!("{what} does not end"))
}

/// `vellum check`.
pub fn checked(image: &Image) -> Result<CheckReport, StoreError> {
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(image.clone()));
    in_a_world("check", async move {
        let queue = queue(&device);
        check(&device, &queue, CheckOptions { data: true }).await
    })
}

/// `vellum debug`: every dump; what cannot be read is an error.
pub fn dumped(image: &Image) {
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(image.clone()));
    in_a_world("dump", async move {
        let queue = queue(&device);
        let dumps = [
            dump::superblock(&queue).await,
            dump::manifest(&queue).await,
            dump::log(&queue, 300).await,
            dump::items(&device, &queue, KeyRange::ALL, 300).await,
            dump::space(&device, &queue).await,
        ];
        dumps.into_iter().flatten().for_each(|dump| drop(dump.to_string()));
    });
}

/// Opens it as a node does, reads all items, and stops in order. The image then.
pub fn served(image: &Image) -> (Result<(), StoreError>, Image) {
    let memory = MemoryDevice::from_image(image.clone());
    let device: Arc<dyn Device> = Arc::new(memory.clone());
    let outcome = in_a_world("serving", async move {
        let queue = queue(&device);
        let options = OpenOptions { reactors: 2, memtable_bytes: 4 << 20, ..OpenOptions::default() };
        let opened = open(&device, &queue, options).await?;
        let mut stores = Vec::new();
        for seed in opened.seeds {
            stores.push(Store::start(seed, Rc::new(Everyone)).await?);
        }
        let read = read_all(&stores[0]).await;
        stores[0].status().await?;
        let stopped = stores[0].shutdown().await;
        read.and(stopped)
    });
    (outcome, memory.snapshot())
}

async fn read_all(store: &Rc<Store>) -> Result<(), StoreError> {
    let mut range = KeyRange::ALL;
    loop {
        let page = store.scan(range, 100, 1 << 20, View::Applied).await?;
        match page.next {
            Some(next) => range.first = next,
            None => return Ok(()),
        }
    }
}

/// `vellum check --repair`; the image then.
pub fn repaired(image: &Image) -> (bool, Image) {
    let memory = MemoryDevice::from_image(image.clone());
    let device: Arc<dyn Device> = Arc::new(memory.clone());
    let whole = in_a_world("repair", async move {
        let queue = queue(&device);
        repair(&device, &queue).await.is_ok_and(|report| report.left_count == 0)
    });
    (whole, memory.snapshot())
}
