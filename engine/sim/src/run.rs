//! One run of the simulation: everything in it follows from its seed.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::prng::Prng;
use vellum_nvme::fault::{Delays, Fault, On, Rule};
use vellum_proto::Timers;
use vellum_rt::Class;
use vellum_rt::sim::{NodeId, SimConfig, World};
use vellum_server::NodeOptions;
use vellum_store::OpenOptions;

use crate::agent::Agent;
use crate::client::{self, Shared};
use crate::gateway::{self, Own};
use crate::inspect::inspect;
use crate::server::Server;

const DEVICE_BYTES: u64 = 96 << 20;
/// Virtual time within which all work ends once the faults have.
const LIVENESS: Duration = Duration::from_secs(25);

#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    pub trace_hash: u64,
    pub steps: u64,
    pub virtual_time: Duration,
    pub txns: u64,
    pub reads: u64,
    pub syncs: u64,
    /// Index entries that the agent saw.
    pub walked: usize,
    /// At the last look.
    pub segments: u64,
    /// Faults in words, in order.
    pub faults: Vec<String>,
    pub violations: Vec<String>,
    /// The last steps of a run that failed.
    pub trace: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { seed, trace_hash, steps, virtual_time, txns, reads, syncs, walked, segments, .. } = self;
        write!(
            f,
            "seed {seed}: {txns} transactions, {reads} reads, {syncs} syncs, {walked} walked, {segments} segments, {} faults, ",
            self.faults.len()
        )?;
        write!(f, "{:.1} s in {steps} steps, trace {trace_hash:016x}", virtual_time.as_secs_f64())
    }
}

struct Run {
    world: World,
    prng: Prng,
    server: Server,
    store: OpenOptions,
    /// Gateways have files of their own.
    clients: Vec<(NodeId, Option<Own>)>,
    agent: Rc<Agent>,
    segments: u64,
    shared: Rc<Shared>,
    faults: Vec<String>,
}

pub fn run(seed: u64) -> Outcome {
    let mut prng = Prng::new(seed ^ 0x5eed);
    let mut world = World::new(seed, network(&mut prng));
    let started = world.now();
    let store = OpenOptions {
        cache_bytes: 64 << 10 << prng.below(6),
        memtable_bytes: 256 << 10 << prng.below(4),
        log_bytes: 1 << 20 << prng.below(3),
        queue_depth: 4 << prng.below(6),
        ..OpenOptions::default()
    };
    let timers = Timers::DEFAULT.faster(10);
    let options = NodeOptions { timers, store: store.clone(), ..NodeOptions::default() };
    let mut server = Server::new(&mut world, DEVICE_BYTES, options);
    server.start(&mut world, 1 + prng.below(3) as usize);
    let shared = Shared::new(timers, 1 + prng.below(6), 1 + prng.below(50));
    let mut run = Run {
        world,
        prng,
        server,
        store,
        clients: Vec::new(),
        agent: Rc::default(),
        segments: 0,
        shared,
        faults: Vec::new(),
    };
    let (clients, gateways) = match run.prng.below(3) {
        0 => (1 + run.prng.below(3), 0),
        1 => (0, 1 + run.prng.below(3)),
        _ => (1 + run.prng.below(2), 1),
    };
    for n in 0..clients + gateways {
        let node = run.world.add_node();
        run.clients.push((node, (n >= clients).then(Own::default)));
        run.start_client(n as usize, format!("client {n}"));
    }
    run.agent.clients.set(run.clients.len() as u64);
    let (node, agent) = (run.world.add_node(), run.agent.clone().live(run.shared.clone()));
    let on = run.world.add_reactor(node);
    run.world.spawn(on, Class::Request, "agent", agent).detach();
    for _ in 0..3 + run.prng.below(8) {
        let time = Duration::from_millis(20 + run.prng.below(1500));
        run.world.run_for(time);
        if run.has_failed() {
            break;
        }
        run.fault();
    }
    if !run.has_failed() {
        run.end();
    }
    run.outcome(seed, started)
}

fn network(prng: &mut Prng) -> SimConfig {
    match prng.below(3) {
        0 => SimConfig::default(),
        1 => SimConfig { reset_one_in: 200, ..SimConfig::hostile() },
        _ => SimConfig { reset_one_in: 1000 * prng.below(3), ..SimConfig::default() },
    }
}

impl Run {
    fn start_client(&mut self, n: usize, name: String) {
        let (node, own) = self.clients[n].clone();
        let on = self.world.add_reactor(node);
        let shared = self.shared.clone();
        match own {
            Some(own) => self.world.spawn(on, Class::Request, "gateway", gateway::live(shared, n as u64, own)).detach(),
            None => self.world.spawn(on, Class::Request, "client", client::live(shared, name)).detach(),
        }
    }

    fn has_failed(&mut self) -> bool {
        if let Some(why) = self.server.failure() {
            self.shared.history.borrow_mut().violate(format!("the node failed: {why}"));
        }
        !self.shared.history.borrow().violations().is_empty()
    }

    fn restart(&mut self) {
        let pause = Duration::from_millis(self.prng.below(500));
        self.world.run_for(pause);
        let reactors = 1 + self.prng.below(3) as usize;
        self.faults.push(format!("{} start with {reactors} reactors", self.at()));
        self.server.start(&mut self.world, reactors);
    }

    fn at(&self) -> String {
        format!("{:.3}", self.world.now().0 as f64 / 1e9)
    }

    fn power_loss(&mut self) {
        let image = self.server.power_off(&mut self.world);
        self.inspect(&image);
        self.restart();
        self.shared.device_failed.set(false);
    }

    fn inspect(&mut self, image: &vellum_nvme::Image) {
        let what = format!("after the power loss at {}", self.at());
        let found = inspect(image, &self.store, self.prng.next_u64());
        let mut history = self.shared.history.borrow_mut();
        match found {
            Ok(state) => {
                self.segments = state.segments;
                history.survived(&state, &what);
                self.agent.missed(&state.sequences).into_iter().for_each(|missed| history.violate(missed));
            }
            Err(error) => history.violate(format!("{what}: {error}")),
        }
    }

    fn some_client(&mut self) -> NodeId {
        self.clients[self.prng.below(self.clients.len() as u64) as usize].0
    }

    fn fault(&mut self) {
        match self.prng.below(10) {
            0 | 1 => {
                self.say("power loss".into());
                self.power_loss();
            }
            2 => {
                self.say("the node is killed".into());
                self.server.kill(&mut self.world);
                self.restart();
            }
            3 => {
                // Some last longer than a client is waited for.
                let time = Duration::from_millis(50 + self.prng.below(2500));
                self.say(format!("partition of {time:?}"));
                let (server, client) = (self.server.node, self.some_client());
                self.world.partition(server, client);
                self.world.run_for(time);
                self.world.heal(server, client);
            }
            4 => {
                let time = Duration::from_millis(20 + self.prng.below(1200));
                let node = if self.prng.one_in(2) { self.server.node } else { self.some_client() };
                self.say(format!("pause of {node:?} for {time:?}"));
                self.world.pause_node(node);
                self.world.run_for(time);
                self.world.resume_node(node);
            }
            5 => {
                let ms = |n| Duration::from_millis(n);
                self.say("slow device".into());
                let slow =
                    Delays { write: ms(1)..ms(20), flush: ms(1)..ms(80), read: ms(1)..ms(10), ..Delays::default() };
                self.server.set_delays(slow);
                self.world.run_for(ms(500));
                self.server.set_delays(Delays::default());
            }
            6 => {
                let time = Duration::from_millis(100 + self.prng.below(3000));
                self.say(format!("the device stalls for {time:?}"));
                let all = 0..u64::MAX;
                self.server.device.add_rule(Rule { times: 4, ..Rule::once(Fault::Stall { time }, On::Anything, all) });
            }
            7 => {
                self.say("a flush fails, the node with it".into());
                self.device_fails();
                let error = Fault::Error { errno: 5 };
                self.server.device.add_rule(Rule::once(error, On::Flushes, 0..0));
                let time = Duration::from_millis(self.prng.below(1000));
                self.world.run_for(time);
                self.power_loss();
            }
            _ => {
                let node = self.some_client();
                self.say(format!("the client on {node:?} is killed"));
                self.world.kill_node(node);
                self.kill_clients(node);
            }
        }
    }

    fn say(&mut self, what: String) {
        let at = self.at();
        self.faults.push(format!("{at} {what}"));
    }

    fn device_fails(&mut self) {
        self.shared.device_failed.set(true);
        self.shared.device_failures.set(self.shared.device_failures.get() + 1);
    }

    fn kill_clients(&mut self, node: NodeId) {
        let n = self.clients.iter().position(|c| c.0 == node).unwrap_or(0);
        self.shared.history.borrow_mut().dead_named(&format!("client {n}"));
        let generation = self.faults.len();
        self.start_client(n, format!("client {n}/{generation}"));
    }

    /// The faults are over: all work must end, and what is left must be clean.
    fn end(&mut self) {
        self.world.heal_all();
        self.world.configure(|config| *config = SimConfig::default());
        self.shared.stop.set(true);
        let (shared, agent, count) = (self.shared.clone(), self.agent.clone(), self.clients.len() as u64);
        let ended =
            self.world.run_until(|| agent.finished.get() || !shared.history.borrow().violations().is_empty(), LIVENESS);
        if !ended {
            let what = format!("{} of {count} clients have ended {LIVENESS:?} after the faults", shared.finished.get());
            self.shared.history.borrow_mut().violate(what);
        }
        if self.has_failed() {
            return;
        }
        // Half of the runs end cleanly, half by a power loss.
        if self.prng.one_in(2) {
            self.server.stop();
            let stopped = self.server.watch_stopped();
            if !self.world.run_until(stopped, LIVENESS) {
                self.shared.history.borrow_mut().violate("the node does not stop".into());
            }
        }
        let image = self.server.power_off(&mut self.world);
        self.inspect(&image);
        self.shared.history.borrow_mut().end();
    }

    fn outcome(mut self, seed: u64, started: vellum_rt::Instant) -> Outcome {
        let failed = self.has_failed();
        let history = self.shared.history.borrow();
        Outcome {
            seed,
            trace_hash: self.world.trace_hash(),
            steps: self.world.steps(),
            virtual_time: Duration::from_nanos(self.world.now().0 - started.0),
            txns: history.txns,
            reads: history.reads,
            syncs: history.syncs,
            walked: self.agent.walked(),
            segments: self.segments,
            faults: self.faults.clone(),
            violations: history.violations().to_vec(),
            trace: if failed { self.world.recent_trace() } else { Vec::new() },
        }
    }
}
