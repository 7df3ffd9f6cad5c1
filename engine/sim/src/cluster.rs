//! The nodes' lives over one device: started with any number of reactors, killed, stopped, fenced, without power.
//!
//! One node alone runs a [`Plan`], as `vellum serve` without a slot; several are members of a quorum ([`Member`]) that
//! share the device. Each process opens the device under a number of its own, so that what it left behind when it was
//! killed lands late, or is cut off by a fence.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vellum_base::{BlockRange, Fsid, Slot};
use vellum_client::Address;
use vellum_format::ProcessIdentity;
use vellum_nvme::Image;
use vellum_nvme::fault::{Delays, FaultConfig, FaultDevice, ProcessId};
use vellum_proto::quorum::QuorumTimers;
use vellum_rt::Class;
use vellum_rt::net::Endpoint;
use vellum_rt::sim::{NodeId, World};
use vellum_server::cluster::{Member, MemberOptions, MemberProgress, MemberStop};
use vellum_server::{NodeOptions, Plan, Progress, StopHandle};
use vellum_store::{MkfsOptions, OpenOptions, PolledQueue, mkfs, read_superblock};

use crate::fencer::{Orders, SimFencer};

/// Virtual time that a mkfs may take.
const MKFS: Duration = Duration::from_secs(60);

enum Stop {
    Plan(StopHandle),
    Member(MemberStop),
}

/// What a process has said of itself.
#[derive(Clone, Default)]
struct Said {
    /// Why it cannot run, or does not any more.
    failed: Option<String>,
    ended: bool,
}

struct Node {
    machine: NodeId,
    process: ProcessId,
    stop: Option<Stop>,
    said: Arc<Mutex<Said>>,
    runs: bool,
}

/// Where the members' blocks are.
#[derive(Clone, Copy, Debug)]
pub struct SlotsArea {
    pub fsid: Fsid,
    pub blocks: BlockRange,
}

pub struct Cluster {
    pub device: FaultDevice,
    pub slots: SlotsArea,
    /// Where the manifest is.
    pub manifest: Vec<BlockRange>,
    /// What members want fenced.
    pub orders: Orders,
    nodes: Vec<Node>,
    /// A second process in the slot of a node.
    twin: Option<(usize, Node)>,
    options: NodeOptions,
    timers: QuorumTimers,
    /// Devices and processes so far: each device has a seed of its own, each process a number.
    devices: u64,
    processes: u64,
    seed: u64,
}

fn socket_addr(node: usize) -> std::net::SocketAddr {
    ([10, 0, 0, 1 + node as u8], 7000).into()
}

/// Where a node listens.
pub fn endpoint(node: usize) -> Endpoint {
    Endpoint::Tcp(socket_addr(node))
}

/// Where clients look for the engine.
pub fn address(nodes: usize) -> Address {
    Address::from((0..nodes).map(endpoint).collect::<Vec<_>>())
}

/// All intervals of the quorum divided by `n`, as those of the sessions.
pub fn faster(n: u32) -> QuorumTimers {
    let t = QuorumTimers::DEFAULT;
    QuorumTimers {
        heartbeat: t.heartbeat / n,
        election_min: t.election_min / n,
        election_max: t.election_max / n,
        heartbeat_timeout: t.heartbeat_timeout / n,
        answer_wait: t.answer_wait / n,
        stop_grace: t.stop_grace / n,
        resign_grace: t.resign_grace / n,
        reread: t.reread / n,
        fence_timeout: t.fence_timeout / n,
        retry_min: t.retry_min / n,
        retry_max: t.retry_max / n,
    }
}

fn fault_device(image: Image, seed: u64) -> FaultDevice {
    let config = FaultConfig { hook: Some(Arc::new(vellum_rt::wake_after)), ..FaultConfig::default() };
    FaultDevice::new(image, seed, config)
}

fn lock(said: &Mutex<Said>) -> std::sync::MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// Machines for the nodes, and a new filesystem; nothing runs yet.
    pub fn new(
        world: &mut World,
        nodes: usize,
        size_bytes: u64,
        options: NodeOptions,
        timers: QuorumTimers,
    ) -> Cluster {
        let seed = world.random_u64();
        let device = fault_device(Image::zeroed(size_bytes), seed);
        let machines: Vec<NodeId> = (0..nodes).map(|_| world.add_node()).collect();
        let on = world.add_reactor(machines[0]);
        let target = device.as_device();
        let slots = if nodes == 1 { Vec::new() } else { (0..nodes).map(|n| socket_addr(n).to_string()).collect() };
        let made = world.block_on(on, MKFS, async move {
            let queue = PolledQueue::open(&*target, 32, "mkfs")?;
            mkfs(&target, &queue, MkfsOptions { slots, ..MkfsOptions::default() }).await?;
            read_superblock(&queue).await
        });
        let superblock = made.expect("mkfs ends").expect("mkfs succeeds");
        let manifest = superblock.manifest.as_flattened().to_vec();
        let slots = SlotsArea { fsid: superblock.fsid, blocks: superblock.slots_area };
        world.kill_node(machines[0]);
        let node =
            |machine| Node { machine, process: ProcessId::default(), stop: None, said: Arc::default(), runs: false };
        let nodes = machines.into_iter().map(node).collect();
        let orders = Orders::default();
        Cluster { device, slots, manifest, orders, nodes, twin: None, options, timers, devices: 1, processes: 0, seed }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
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
        let said: Arc<Mutex<Said>> = Arc::default();
        let options = NodeOptions {
            cores: vec![None; reactors],
            insecure_network: true,
            store: OpenOptions { reactors, ..self.options.store.clone() },
            ..self.options.clone()
        };
        let machine = self.nodes[node].machine;
        let stop = match self.nodes.len() {
            1 => self.start_plan(world, machine, process, options, said.clone()),
            _ => self.start_member(world, (node, machine), process, options, said.clone()),
        };
        self.nodes[node] = Node { machine, process, stop: Some(stop), said, runs: true };
    }

    fn start_plan(
        &self,
        world: &mut World,
        machine: NodeId,
        process: ProcessId,
        options: NodeOptions,
        told: Arc<Mutex<Said>>,
    ) -> Stop {
        let reactors = options.cores.len();
        let options = NodeOptions { listen: vec![endpoint(0)], ..options };
        let device = self.device.opened_by(process).as_device();
        let (plan, _, stop) = Plan::new(device, options, move |step| {
            let mut said = lock(&told);
            match step {
                Progress::Failed(error) | Progress::Stopped(Err(error)) => said.failed = Some(error.to_string()),
                Progress::Stopped(Ok(())) => said.ended = true,
                Progress::Up(_) => {}
            }
        })
        .expect("the options are valid");
        for index in 0..reactors {
            let on = world.add_reactor(machine);
            world.spawn(on, Class::Request, "node", plan.clone().run(index)).detach();
        }
        Stop::Plan(stop)
    }

    fn start_member(
        &self,
        world: &mut World,
        (node, machine): (usize, NodeId),
        process: ProcessId,
        options: NodeOptions,
        told: Arc<Mutex<Said>>,
    ) -> Stop {
        let reactors = options.cores.len();
        let mut member = MemberOptions::new(Slot(node as u8), options);
        member.timers = self.timers;
        member.fencer = Arc::new(SimFencer(self.orders.clone()));
        let device = self.device.opened_by(process).as_device();
        // Machines are told apart as by their boot ids.
        let identity = ProcessIdentity { boot_id: [machine.0 as u8; 16], ..ProcessIdentity::default() };
        let (member, stop) = Member::with_process(device, member, identity, move |step| {
            let mut said = lock(&told);
            match step {
                MemberProgress::Ended(Err(error)) => said.failed = Some(error.to_string()),
                MemberProgress::Ended(Ok(())) => said.ended = true,
                _ => {}
            }
        })
        .expect("the options are valid");
        for index in 0..=reactors {
            let on = world.add_reactor(machine);
            world.spawn(on, Class::Request, "member", member.clone().run(index)).detach();
        }
        Stop::Member(stop)
    }

    /// A second process in the node's slot, on a machine of its own that claims the node's address. One at a time.
    pub fn start_twin(&mut self, world: &mut World, node: usize) -> ProcessId {
        drop(self.end_twin(world));
        self.processes += 1;
        let (process, machine) = (ProcessId(self.processes), world.add_node());
        let said: Arc<Mutex<Said>> = Arc::default();
        let store = OpenOptions { reactors: 1, ..self.options.store.clone() };
        let options = NodeOptions { cores: vec![None], insecure_network: true, store, ..self.options.clone() };
        let stop = self.start_member(world, (node, machine), process, options, said.clone());
        self.twin = Some((node, Node { machine, process, stop: Some(stop), said, runs: true }));
        process
    }

    /// Ends the second process; gives its node, and why it had ended by itself.
    pub fn end_twin(&mut self, world: &mut World) -> Option<(usize, Option<String>)> {
        let (node, twin) = self.twin.take()?;
        world.kill_node(twin.machine);
        self.device.opened_by(twin.process).process_killed();
        Some((node, lock(&twin.said).failed.clone()))
    }

    /// The node whose slot a second process has.
    pub fn twin(&self) -> Option<usize> {
        self.twin.as_ref().map(|(node, _)| *node)
    }

    fn ended(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        (node.stop, node.runs) = (None, false);
        node.said = Arc::default();
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
        if let Some((_, twin)) = self.twin.take() {
            world.power_off(twin.machine);
        }
        self.orders.clear();
        self.devices += 1;
        self.device = fault_device(image.clone(), self.seed.wrapping_add(self.devices));
        image
    }

    pub fn set_delays(&self, delays: Delays) {
        self.device.set_delays(delays);
    }

    /// Told to end cleanly.
    pub fn stop(&self, node: usize) {
        match &self.nodes[node].stop {
            Some(Stop::Plan(stop)) => stop.stop(),
            Some(Stop::Member(stop)) => stop.stop(),
            None => {}
        }
    }

    /// Asked while a run goes on: the node has ended.
    pub fn watch_stopped(&self, node: usize) -> impl Fn() -> bool + use<> {
        let said = self.nodes[node].said.clone();
        move || {
            let said = lock(&said);
            said.ended || said.failed.is_some()
        }
    }

    /// It was told to stop, and has done so.
    pub fn ended_well(&self, node: usize) -> bool {
        lock(&self.nodes[node].said).ended
    }

    /// Why a node that should run does not.
    pub fn failure(&self, node: usize) -> Option<String> {
        lock(&self.nodes[node].said).failed.clone()
    }
}
