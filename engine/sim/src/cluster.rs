//! The nodes' lives over one device: started with any number of reactors, killed, stopped, without power.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vellum_client::Address;
use vellum_nvme::Image;
use vellum_nvme::fault::{Delays, FaultConfig, FaultDevice, ProcessId};
use vellum_rt::net::Endpoint;
use vellum_rt::sim::{NodeId, World};
use vellum_rt::{Class, add_poller};
use vellum_server::{NodeOptions, Plan, Progress, StopHandle};
use vellum_store::{MkfsOptions, OpenOptions, mkfs};

/// Virtual time that a mkfs may take.
const MKFS: Duration = Duration::from_secs(60);

struct Node {
    machine: NodeId,
    process: ProcessId,
    stop: Option<StopHandle>,
    progress: Arc<Mutex<Vec<Progress>>>,
    runs: bool,
}

pub struct Cluster {
    pub device: FaultDevice,
    nodes: Vec<Node>,
    options: NodeOptions,
    /// Devices and processes so far: each device has a seed of its own, each process a number.
    devices: u64,
    processes: u64,
    seed: u64,
}

/// Where a node listens.
pub fn endpoint(node: usize) -> Endpoint {
    Endpoint::Tcp(([10, 0, 0, 1 + node as u8], 7000).into())
}

/// Where clients look for the engine.
pub fn address(_nodes: usize) -> Address {
    Address::Net(endpoint(0))
}

fn fault_device(image: Image, seed: u64) -> FaultDevice {
    let config = FaultConfig { hook: Some(Arc::new(vellum_rt::wake_after)), ..FaultConfig::default() };
    FaultDevice::new(image, seed, config)
}

impl Cluster {
    /// Machines for the nodes, and a new filesystem; nothing runs yet.
    pub fn new(world: &mut World, nodes: usize, size_bytes: u64, options: NodeOptions) -> Cluster {
        let seed = world.random_u64();
        let device = fault_device(Image::zeroed(size_bytes), seed);
        let machines: Vec<NodeId> = (0..nodes).map(|_| world.add_node()).collect();
        let on = world.add_reactor(machines[0]);
        let target = device.as_device();
        let made = world.block_on(on, MKFS, async move {
            let queue = target.open_queue(32)?;
            let polled = queue.clone();
            let _poller = add_poller("mkfs", move || polled.process_completions());
            mkfs(&target, &queue, MkfsOptions::default()).await
        });
        made.expect("mkfs ends").expect("mkfs succeeds");
        world.kill_node(machines[0]);
        let node = |machine| Node {
            machine,
            process: ProcessId::default(),
            stop: None,
            progress: Arc::default(),
            runs: false,
        };
        let nodes = machines.into_iter().map(node).collect();
        Cluster { device, nodes, options, devices: 1, processes: 0, seed }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn machine(&self, node: usize) -> NodeId {
        self.nodes[node].machine
    }

    pub fn process(&self, node: usize) -> ProcessId {
        self.nodes[node].process
    }

    pub fn runs(&self, node: usize) -> bool {
        self.nodes[node].runs
    }

    /// A new process on the node's machine.
    pub fn start(&mut self, world: &mut World, node: usize, reactors: usize) {
        self.processes += 1;
        let process = ProcessId(self.processes);
        let progress: Arc<Mutex<Vec<Progress>>> = Arc::default();
        let told = progress.clone();
        let options = NodeOptions {
            cores: vec![None; reactors],
            listen: vec![endpoint(node)],
            insecure_network: true,
            store: OpenOptions { reactors, ..self.options.store.clone() },
            ..self.options.clone()
        };
        let device = self.device.opened_by(process).as_device();
        let (plan, _, stop) = Plan::new(device, options, move |step| {
            told.lock().unwrap_or_else(PoisonError::into_inner).push(step);
        })
        .expect("the options are valid");
        let machine = self.nodes[node].machine;
        for index in 0..reactors {
            let on = world.add_reactor(machine);
            world.spawn(on, Class::Request, "node", plan.clone().run(index)).detach();
        }
        self.nodes[node] = Node { machine, process, stop: Some(stop), progress, runs: true };
    }

    fn ended(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        (node.stop, node.runs) = (None, false);
        node.progress = Arc::default();
    }

    /// The process dies; the device goes on, with what it had begun for the process.
    pub fn kill(&mut self, world: &mut World, node: usize) {
        let process = self.device.opened_by(self.nodes[node].process);
        world.kill_node(self.nodes[node].machine);
        // On its own device a process is followed only by one that waited for the kernel to be done with it.
        if self.nodes.len() == 1 {
            process.process_died()
        } else {
            process.process_killed()
        }
        self.ended(node);
    }

    /// The machine loses its power, and the device does not.
    pub fn turn_off(&mut self, world: &mut World, node: usize) {
        let process = self.device.opened_by(self.nodes[node].process);
        world.power_off(self.nodes[node].machine);
        process.process_killed();
        self.ended(node);
    }

    /// All lose their power, the device too. Gives what the device then holds.
    pub fn power_off(&mut self, world: &mut World) -> Image {
        let image = self.device.crash(world.random_u64());
        for node in 0..self.nodes.len() {
            world.power_off(self.nodes[node].machine);
            self.ended(node);
        }
        self.devices += 1;
        self.device = fault_device(image.clone(), self.seed.wrapping_add(self.devices));
        image
    }

    pub fn set_delays(&self, delays: Delays) {
        self.device.set_delays(delays);
    }

    /// Told to end cleanly.
    pub fn stop(&self, node: usize) {
        if let Some(stop) = &self.nodes[node].stop {
            stop.stop();
        }
    }

    fn steps(&self, node: usize) -> Vec<Progress> {
        self.nodes[node].progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asked while a run goes on: the node has ended.
    pub fn watch_stopped(&self, node: usize) -> impl Fn() -> bool + use<> {
        let progress = self.nodes[node].progress.clone();
        move || {
            let steps = progress.lock().unwrap_or_else(PoisonError::into_inner);
            steps.iter().any(|step| matches!(step, Progress::Stopped(_)))
        }
    }

    /// Why a node that should run does not.
    pub fn failure(&self, node: usize) -> Option<String> {
        self.steps(node).into_iter().find_map(|step| match step {
            Progress::Failed(error) | Progress::Stopped(Err(error)) => Some(error.to_string()),
            _ => None,
        })
    }
}
