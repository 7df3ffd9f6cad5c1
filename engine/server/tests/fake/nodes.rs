//! Nothing fake: devices with a filesystem on them, and nodes that serve one in the simulated world.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use vellum_link::Address;
use vellum_nvme::fault::{FaultConfig, FaultDevice};
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Image};
use vellum_rt::Class;
use vellum_rt::native::block_on;
use vellum_rt::net::Endpoint;
use vellum_rt::sim::{NodeId, World};
use vellum_server::{NodeOptions, Plan, Progress, StopHandle};
use vellum_store::{MkfsOptions, OpenOptions, PolledQueue, mkfs};
use vellum_wire::{Request, Response};

use super::TestClient;

/// Longer than anything takes in the simulated world.
pub const LONG: Duration = Duration::from_secs(3600);

/// Of the only node that serves.
pub fn endpoint() -> Endpoint {
    "tcp:10.0.0.1:7000".parse().unwrap()
}

pub fn address() -> Address {
    Address::Net(endpoint())
}

/// A queue that is polled as long as the handle lives.
pub fn open_queue(device: &Arc<dyn Device>) -> PolledQueue {
    PolledQueue::open(&**device, 32, "test").unwrap()
}

async fn format(device: Arc<dyn Device>, options: MkfsOptions) {
    let queue = open_queue(&device);
    mkfs(&device, &queue, options).await.unwrap();
}

/// A filesystem in memory, for native nodes.
pub fn formatted() -> Arc<dyn Device> {
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::new(256 << 20));
    block_on(format(device.clone(), MkfsOptions::default()));
    device
}

/// A device whose operations take their time in the simulated world.
pub fn sim_device(image: Image, seed: u64) -> FaultDevice {
    let config = FaultConfig { hook: Some(Arc::new(vellum_rt::wake_after)), ..FaultConfig::default() };
    FaultDevice::new(image, seed, config)
}

/// One with a filesystem of so many bytes.
pub fn sim_formatted(world: &mut World, seed: u64, bytes: u64, options: MkfsOptions) -> FaultDevice {
    let device = sim_device(Image::zeroed(bytes), seed);
    let maker = world.add_node();
    let on = world.add_reactor(maker);
    world.block_on(on, LONG, format(device.as_device(), options)).expect("mkfs ends");
    world.kill_node(maker);
    device
}

/// A node at [`endpoint`] with so many reactors and little memory.
pub fn node_options(reactors: usize) -> NodeOptions {
    NodeOptions {
        cores: vec![None; reactors],
        listen: vec![endpoint()],
        insecure_network: true,
        store: OpenOptions { cache_bytes: 4 << 20, memtable_bytes: 2 << 20, ..OpenOptions::default() },
        ..NodeOptions::default()
    }
}

pub fn start_node(
    world: &mut World,
    node: NodeId,
    device: Arc<dyn Device>,
    options: NodeOptions,
    progress: impl Fn(Progress) + Send + Sync + 'static,
) -> StopHandle {
    let reactors = options.cores.len();
    let (plan, _, stop) = Plan::new(device, options, progress).unwrap();
    for index in 0..reactors {
        let on = world.add_reactor(node);
        world.spawn(on, Class::Request, "node", plan.clone().run(index)).detach();
    }
    stop
}

/// Runs a task on a node of its own.
pub fn spawn_apart(world: &mut World, name: &'static str, task: impl Future<Output = ()> + 'static) -> NodeId {
    let node = world.add_node();
    let on = world.add_reactor(node);
    world.spawn(on, Class::Request, name, task).detach();
    node
}

pub async fn status(client: &TestClient) -> Value {
    let Response::Status { json } = client.conn.call(Request::Status, None).await.unwrap().body else { panic!() };
    serde_json::from_str(&json).unwrap()
}
