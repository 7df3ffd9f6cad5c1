//! One run of the simulation: a plan carried out. Everything in it follows from the plan.

mod ending;
mod faults;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::Rid;
use vellum_base::prng::Prng;
use vellum_proto::Timers;
use vellum_rt::Class;
use vellum_rt::sim::{NodeId, World};
use vellum_server::NodeOptions;
use vellum_server::cluster::FenceError;

use crate::check::leaving::NodeSeen;
use crate::check::linear::Verdict;
use crate::check::reach::Disturbed;
use crate::check::{self, Checks, Violation};
use crate::cluster::{Cluster, address, faster};
use crate::fault::Fault;
use crate::fencer::Order;
use crate::plan::{Plan, Work};
use crate::work::agent::Agent;
use crate::work::gateway::{self, Own};
use crate::work::{Shared, file_locks, hostile, items, names};

pub use ending::ENDS;

const DEVICE_BYTES: u64 = 96 << 20;

#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    pub trace_hash: u64,
    pub steps: u64,
    pub virtual_time: Duration,
    pub txns: u64,
    pub reads: u64,
    pub syncs: u64,
    /// Operations whose order was looked for, and whether that was decided; none when nothing was looked for.
    pub ordered: usize,
    pub decided: Option<bool>,
    /// Errors that applications got where the device had lied.
    pub errors: u64,
    /// Index entries that the agent saw.
    pub walked: usize,
    /// At the last look.
    pub segments: u64,
    /// Faults in words, in order.
    pub faults: Vec<String>,
    pub violations: Vec<Violation>,
    pub story: Vec<String>,
    /// The last steps of a run that failed.
    pub trace: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { seed, trace_hash, steps, virtual_time, txns, reads, syncs, ordered, walked, segments, .. } = self;
        write!(
            f,
            "seed {seed}: {txns} transactions, {reads} reads, {syncs} syncs, {ordered} ordered{}, {walked} walked, {segments} segments, {} faults, ",
            if self.decided == Some(false) { " (not decided)" } else { "" },
            self.faults.len()
        )?;
        write!(f, "{:.1} s in {steps} steps, trace {trace_hash:016x}", virtual_time.as_secs_f64())
    }
}

/// What is due at a time of the run.
enum Due {
    Begin(usize),
    End(usize),
    /// An order to fence is carried out.
    Fence(Order),
    /// A node that was fenced is started again.
    Restart(usize),
    /// The power fails at a moment that has come, for so long.
    Strike(Duration),
    PowerBack,
}

/// A fenced node is started again after at most so many milliseconds; one that was only cut off may go on for so long.
const RESTART_MS: u64 = 500;
const CUT_OFF_MS: u64 = 3000;

struct Run {
    plan: Plan,
    world: World,
    prng: Prng,
    cluster: Cluster,
    /// Gateways have files of their own.
    clients: Vec<(NodeId, Own)>,
    agent: Rc<Agent>,
    segments: u64,
    shared: Rc<Shared>,
    failed: Rc<Cell<bool>>,
    power: bool,
    told: Vec<String>,
    agenda: BTreeMap<(Duration, u64), Due>,
    next_due: u64,
    /// A fault waits for a moment: (its number, how long after it, how long the power is off).
    awaits: Option<(usize, Duration, Duration)>,
    /// When each node was started last.
    up_since: BTreeMap<usize, Duration>,
    /// Faults that have begun, with the nodes that they are about.
    resolved: BTreeMap<usize, Fault>,
    started: Duration,
    /// Operations went astray: see [`Fault::Astray`].
    astray: bool,
    /// A node whose slot had a second process may have given way to it until then.
    gave_way: Option<(usize, Duration)>,
    linear: Option<Verdict>,
}

/// Carries the plan out.
pub fn run(plan: Plan) -> Outcome {
    let seed = plan.seed;
    let mut world = World::new(seed, plan.network.clone());
    let checks = Checks::new(world.clock());
    let _listening = check::listen(&checks);
    let timers = Timers::DEFAULT.faster(10);
    let options = NodeOptions { timers, store: plan.store.clone(), ..NodeOptions::default() };
    let cluster = Cluster::new(&mut world, plan.nodes, DEVICE_BYTES, options, faster(10));
    checks.borrow_mut().moments.manifest = cluster.manifest.clone();
    if plan.slow_device {
        cluster.set_delays(faults::slow());
    }
    if plan.network.datagram_loss_one_in > 0 {
        // Its delays are as long as all the patience that connections have here: anybody may come back too late.
        checks.borrow_mut().disturbed(usize::MAX - 1, Disturbed::Everyone);
    }
    if plan.nodes > 1 {
        let quorum = &mut checks.borrow_mut().quorum;
        quorum.watch(cluster.slots);
        quorum.members.watch(plan.nodes, faster(10));
    }
    let started = since_start(&world);
    let shared = Shared::new(checks.clone(), address(plan.nodes), timers, &plan);
    let failed = checks.borrow().failed();
    let mut run = Run {
        prng: Prng::new(seed ^ 0xfa17),
        world,
        cluster,
        clients: Vec::new(),
        agent: Rc::default(),
        segments: 0,
        shared,
        failed,
        power: true,
        told: Vec::new(),
        agenda: BTreeMap::new(),
        next_due: 0,
        awaits: None,
        up_since: BTreeMap::new(),
        resolved: BTreeMap::new(),
        started,
        astray: false,
        gave_way: None,
        linear: None,
        plan,
    };
    run.begin();
    if run.safety() {
        if run.astray { run.look_astray() } else { run.liveness() }
    }
    run.outcome(checks)
}

fn since_start(world: &World) -> Duration {
    Duration::from_nanos(world.now().0)
}

impl Run {
    fn begin(&mut self) {
        self.start_nodes();
        for n in 0..self.plan.clients.len() {
            let machine = self.world.add_node();
            self.clients.push((machine, Own::default()));
            if self.plan.clients[n] == Work::Hostile {
                self.shared.checks.borrow_mut().reach.is_hostile(n);
            }
            self.start_client(n);
        }
        self.agent.clients.set(self.clients.len());
        let (machine, agent) = (self.world.add_node(), self.agent.clone().live(self.shared.clone()));
        let on = self.world.add_reactor(machine);
        self.world.spawn(on, Class::Request, "agent", agent).detach();
    }

    fn start_client(&mut self, n: usize) {
        let (machine, own) = self.clients[n].clone();
        let on = self.world.add_reactor(machine);
        let shared = self.shared.clone();
        let task = match self.plan.clients[n] {
            Work::Items => self.world.spawn(on, Class::Request, "client", items::live(shared, n)),
            Work::Gateway => self.world.spawn(on, Class::Request, "gateway", gateway::live(shared, n, own)),
            Work::Names => self.world.spawn(on, Class::Request, "names", names::live(shared, n)),
            Work::FileLocks => self.world.spawn(on, Class::Request, "file locks", file_locks::live(shared, n)),
            Work::Hostile => self.world.spawn(on, Class::Request, "hostile", hostile::live(shared, n)),
        };
        task.detach();
    }

    fn start_nodes(&mut self) {
        for node in 0..self.cluster.len() {
            self.start_node(node);
        }
    }

    fn start_node(&mut self, node: usize) {
        if self.power && !self.cluster.runs(node) {
            let reactors = 1 + self.prng.below(3) as usize;
            self.say(format!("node {node} starts with {reactors} reactors"));
            self.cluster.start(&mut self.world, node, reactors);
            self.up_since.insert(node, self.now());
            self.shared.checks.borrow_mut().quorum.started(self.cluster.process(node), node);
        }
    }

    fn say(&mut self, what: String) {
        self.shared.checks.borrow_mut().out.story.say(what);
    }

    fn violate(&mut self, invariant: &'static str, what: String) {
        self.shared.checks.borrow_mut().out.violate(invariant, what);
    }

    /// Of the run.
    fn now(&self) -> Duration {
        since_start(&self.world) - self.started
    }

    fn put_down(&mut self, at: Duration, due: Due) {
        self.next_due += 1;
        self.agenda.insert((at, self.next_due), due);
    }

    /// Carries out what is due until a time of the run, or until `done`; false when something was violated.
    fn run_until(&mut self, at: Duration, done: impl Fn() -> bool) -> bool {
        while !self.failed.get() && !done() {
            while self.agenda.first_key_value().is_some_and(|((due, _), _)| *due <= self.now()) {
                if let Some((_, due)) = self.agenda.pop_first() {
                    self.carry_out(due);
                }
            }
            self.look_at_members();
            if self.now() >= at {
                break;
            }
            let next = self.agenda.first_key_value().map_or(at, |((next, _), _)| (*next).min(at));
            let (failed, orders) = (self.failed.clone(), self.cluster.orders.clone());
            let left = next.saturating_sub(self.now());
            let came = self.shared.checks.borrow().moments.came();
            self.world.run_until(|| failed.get() || came.get() || orders.are_there() || done(), left);
            if came.replace(false)
                && let Some((_, later, down)) = self.awaits.take()
            {
                self.put_down(self.now() + later, Due::Strike(down));
            }
            self.take_orders();
            self.look_at_members();
            self.look_at_nodes();
        }
        !self.failed.get()
    }

    fn take_orders(&mut self) {
        for order in self.cluster.orders.take() {
            let takes = &self.plan.fencing.takes;
            let spread = takes.end.saturating_sub(takes.start).as_micros() as u64;
            let at = self.now() + takes.start + Duration::from_micros(self.prng.below(spread.max(1)));
            self.say(format!(
                "slot {} orders for term {}: fence {}",
                order.order.by, order.order.for_term, order.order
            ));
            self.put_down(at, Due::Fence(order));
        }
    }

    fn fence(&mut self, order: Order) {
        let fencing = self.plan.fencing.clone();
        if fencing.fails_one_in > 0 && self.prng.one_in(fencing.fails_one_in) {
            self.say(format!("the fence of {} fails", order.order));
            return order.answer(Err(FenceError::Failed("the hook says no".into())));
        }
        let node = usize::from(order.order.slot().0);
        let targets = {
            let quorum = &self.shared.checks.borrow().quorum;
            match order.order.rid() {
                Some(rid) => quorum.process_of(rid).into_iter().collect(),
                None => quorum.processes_of(node),
            }
        };
        let running = self.cluster.runs(node) && targets.contains(&self.cluster.process(node));
        if running && !fencing.cuts_off {
            self.cluster.kill(&mut self.world, node);
        }
        targets.into_iter().for_each(|process| self.cluster.device.fence(process));
        if running {
            // Whoever was cut off goes on without its device for a while.
            let most = if fencing.cuts_off { CUT_OFF_MS } else { RESTART_MS };
            let at = self.now() + Duration::from_millis(1 + self.prng.below(most));
            self.put_down(at, Due::Restart(node));
        }
        order.answer(Ok(()));
    }

    fn tell_to_stop(&mut self, node: usize) {
        let (process, now, lives) = (self.cluster.process(node), self.now(), self.lives());
        self.shared.checks.borrow_mut().told_to_stop(process, now, lives.into_iter());
        self.cluster.stop(node);
    }

    fn lives(&self) -> BTreeSet<Rid> {
        self.shared.lives.borrow().values().copied().collect()
    }

    fn look_at_members(&self) {
        if self.plan.nodes == 1 {
            return;
        }
        let seen = |node| NodeSeen {
            process: self.cluster.process(node),
            here: self.cluster.runs(node) && !self.cluster.watch_stopped(node)(),
            ended_well: self.cluster.ended_well(node),
        };
        let nodes: Vec<NodeSeen> = (0..self.cluster.len()).map(seen).collect();
        self.shared.checks.borrow_mut().look_at_members(&nodes, self.now(), &self.lives());
    }

    fn look_at_nodes(&mut self) {
        for node in 0..self.cluster.len() {
            let failure = self.cluster.failure(node).filter(|_| self.cluster.runs(node));
            let Some(why) = failure else { continue };
            // Who is off the device ends, as it should; a new process takes its place.
            let off = self.shared.checks.borrow().quorum.is_off(self.cluster.process(node));
            if self.shared.device_failed.get() || self.astray || off {
                continue;
            }
            // Of two in one slot, each that sees the other ends; its service starts it again.
            if self.gave_way.is_some_and(|(shared, until)| shared == node && self.now() < until) {
                self.say(format!("node {node} gives way: {why}"));
                self.cluster.kill(&mut self.world, node);
                let at = self.now() + Duration::from_millis(1 + self.prng.below(RESTART_MS));
                self.put_down(at, Due::Restart(node));
                continue;
            }
            self.violate("up", format!("node {node} failed: {why}"));
        }
    }

    /// Faults begin, overlap and end. False when something was violated.
    fn safety(&mut self) -> bool {
        for (i, timed) in self.plan.faults.clone().iter().enumerate() {
            self.put_down(timed.at, Due::Begin(i));
            self.put_down(timed.end(), Due::End(i));
        }
        let calm_at = self.plan.calm_at;
        let calm = self.run_until(calm_at, || false);
        self.end_twin();
        // All that is left ends together.
        self.wait_for(None);
        self.agenda.retain(|_, due| matches!(due, Due::Fence(_) | Due::Restart(_)));
        calm
    }

    /// The node that leads, or did last.
    fn leader(&self) -> usize {
        self.shared.checks.borrow().quorum.leader().unwrap_or(0)
    }

    fn outcome(self, checks: Rc<RefCell<Checks>>) -> Outcome {
        let history = self.shared.history.borrow();
        let violations: Vec<Violation> =
            checks.borrow().violations().iter().chain(history.violations()).cloned().collect();
        let failed = !violations.is_empty();
        Outcome {
            seed: self.plan.seed,
            trace_hash: self.world.trace_hash(),
            steps: self.world.steps(),
            virtual_time: since_start(&self.world) - self.started,
            txns: history.txns,
            reads: history.reads,
            syncs: history.syncs,
            ordered: self.shared.ops.borrow().len(),
            decided: self.linear.as_ref().map(|verdict| *verdict != Verdict::GaveUp),
            errors: self.shared.errors.get(),
            walked: self.agent.walked(),
            segments: self.segments,
            faults: self.told.clone(),
            violations,
            story: checks.borrow().out.story.lines(),
            trace: if failed { self.world.recent_trace() } else { Vec::new() },
        }
    }
}
