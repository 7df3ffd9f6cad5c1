//! How fast virtual time goes when nobody works: members that send heartbeats, clients that keep their leases.

use std::time::{Duration, Instant};

use vellum_client::{Client, ClientOptions, ConnectOptions};
use vellum_proto::quorum::QuorumTimers;
use vellum_rt::Class;
use vellum_rt::sim::{SimConfig, World};
use vellum_server::NodeOptions;

use crate::cluster::{Cluster, address};

const DEVICE_BYTES: u64 = 96 << 20;
/// Until everybody is up.
const WARM_UP: Duration = Duration::from_secs(10);

pub struct Idle {
    pub virtual_time: Duration,
    pub real_time: Duration,
    pub steps: u64,
}

impl Idle {
    /// How many times faster than real time.
    pub fn factor(&self) -> f64 {
        self.virtual_time.as_secs_f64() / self.real_time.as_secs_f64().max(1e-9)
    }
}

/// An idle cluster with the default timers.
pub fn idle(nodes: usize, clients: usize, time: Duration) -> Idle {
    let mut world = World::new(1, SimConfig::default());
    let mut cluster = Cluster::new(&mut world, nodes, DEVICE_BYTES, NodeOptions::default(), QuorumTimers::DEFAULT);
    (0..nodes).for_each(|node| cluster.start(&mut world, node, 1));
    for _ in 0..clients {
        let machine = world.add_node();
        let on = world.add_reactor(machine);
        let link = ConnectOptions { open_within: None, insecure_network: true, ..ConnectOptions::default() };
        let task = async move {
            let client = Client::connect(address(nodes), None, link, ClientOptions::default()).await;
            std::future::pending::<()>().await;
            drop(client);
        };
        world.spawn(on, Class::Request, "idle client", task).detach();
    }
    world.run_for(WARM_UP);
    let (steps, began) = (world.steps(), Instant::now());
    world.run_for(time);
    Idle { virtual_time: time, real_time: began.elapsed(), steps: world.steps() - steps }
}
