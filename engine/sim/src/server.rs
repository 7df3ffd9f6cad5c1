//! The node's lives: it is started with any number of reactors, killed, and loses its power.

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vellum_nvme::Image;
use vellum_nvme::fault::{Delays, FaultConfig, FaultDevice};
use vellum_rt::net::Endpoint;
use vellum_rt::sim::{NodeId, World};
use vellum_rt::{Class, add_poller};
use vellum_server::{NodeOptions, Plan, Progress, StopHandle};
use vellum_store::{MkfsOptions, OpenOptions, mkfs};

/// Virtual time that a mkfs may take.
const MKFS: Duration = Duration::from_secs(60);

pub struct Server {
    pub node: NodeId,
    pub device: FaultDevice,
    options: NodeOptions,
    stop: Option<StopHandle>,
    progress: Arc<Mutex<Vec<Progress>>>,
    /// Devices so far: each has a seed of its own.
    devices: u64,
    seed: u64,
}

pub fn endpoint() -> Endpoint {
    Endpoint::Tcp(([10, 0, 0, 1], 7000).into())
}

fn fault_device(image: Image, seed: u64) -> FaultDevice {
    let config = FaultConfig { hook: Some(Arc::new(vellum_rt::wake_after)), ..FaultConfig::default() };
    FaultDevice::new(image, seed, config)
}

impl Server {
    /// A node with a new filesystem; it does not run yet.
    pub fn new(world: &mut World, size_bytes: u64, options: NodeOptions) -> Server {
        let seed = world.random_u64();
        let device = fault_device(Image::zeroed(size_bytes), seed);
        let node = world.add_node();
        let on = world.add_reactor(node);
        let target = device.as_device();
        let made = world.block_on(on, MKFS, async move {
            let queue = target.open_queue(32)?;
            let polled = queue.clone();
            let _poller = add_poller("mkfs", move || polled.process_completions());
            mkfs(&target, &queue, MkfsOptions::default()).await
        });
        made.expect("mkfs ends").expect("mkfs succeeds");
        world.kill_node(node);
        Server { node, device, options, stop: None, progress: Arc::default(), devices: 1, seed }
    }

    pub fn start(&mut self, world: &mut World, reactors: usize) {
        self.progress = Arc::default();
        let progress = self.progress.clone();
        let options = NodeOptions {
            cores: vec![None; reactors],
            listen: vec![endpoint()],
            insecure_network: true,
            store: OpenOptions { reactors, ..self.options.store.clone() },
            ..self.options.clone()
        };
        let (plan, _, stop) = Plan::new(self.device.as_device(), options, move |step| {
            progress.lock().unwrap_or_else(PoisonError::into_inner).push(step);
        })
        .expect("the options are valid");
        self.stop = Some(stop);
        for index in 0..reactors {
            let on = world.add_reactor(self.node);
            world.spawn(on, Class::Request, "node", plan.clone().run(index)).detach();
        }
    }

    /// The process dies; the device goes on.
    pub fn kill(&mut self, world: &mut World) {
        world.kill_node(self.node);
        self.device.process_died();
        self.stop = None;
    }

    /// The node and its device lose their power. Gives what the device then holds.
    pub fn power_off(&mut self, world: &mut World) -> Image {
        let image = self.device.crash(world.random_u64());
        world.power_off(self.node);
        self.stop = None;
        self.devices += 1;
        self.device = fault_device(image.clone(), self.seed.wrapping_add(self.devices));
        image
    }

    pub fn set_delays(&self, delays: Delays) {
        self.device.set_delays(delays);
    }

    /// Told to end cleanly.
    pub fn stop(&self) {
        if let Some(stop) = &self.stop {
            stop.stop();
        }
    }

    fn steps(&self) -> Vec<Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn is_up(&self) -> bool {
        self.steps().iter().any(|step| matches!(step, Progress::Up(_)))
    }

    /// Asked while a run goes on: the node has ended cleanly.
    pub fn watch_stopped(&self) -> impl Fn() -> bool + use<> {
        let progress = Rc::new(self.progress.clone());
        move || {
            let steps = progress.lock().unwrap_or_else(PoisonError::into_inner);
            steps.iter().any(|step| matches!(step, Progress::Stopped(Ok(()))))
        }
    }

    /// Why it does not run, when nobody stopped it.
    pub fn failure(&self) -> Option<String> {
        self.steps().into_iter().find_map(|step| match step {
            Progress::Failed(error) | Progress::Stopped(Err(error)) => Some(error.to_string()),
            _ => None,
        })
    }
}
