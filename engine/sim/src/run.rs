//! One run of the simulation: a plan carried out. Everything in it follows from the plan.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::Rid;
use vellum_base::prng::Prng;
use vellum_nvme::Image;
use vellum_nvme::fault::{Delays, Fault as DeviceFault, On, Rule};
use vellum_proto::Timers;
use vellum_rt::Class;
use vellum_rt::sim::{NodeId, SimConfig, World};
use vellum_server::NodeOptions;
use vellum_server::cluster::FenceError;

use crate::check::inspect::inspect;
use crate::check::leaving::NodeSeen;
use crate::check::linear::Verdict;
use crate::check::rot;
use crate::check::{self, Checks, Violation};
use crate::cluster::{Cluster, address, faster};
use crate::fault::{FOLLOWER, Fault, LEADER, Machine, Moment};
use crate::fencer::Order;
use crate::plan::{Plan, Work};
use crate::work::agent::Agent;
use crate::work::gateway::{self, Own};
use crate::work::{Shared, file_locks, hostile, items, names};

const DEVICE_BYTES: u64 = 96 << 20;
/// Virtual time within which all work ends once the faults have.
const LIVENESS: Duration = Duration::from_secs(25);

/// A node that was started is not lied to for so long.
const RECOVERS: Duration = Duration::from_millis(500);
/// Of so many images that a crash leaves, one is looked at once more with a lie in it.
const ROT_ONE_IN: u64 = 3;
/// What the story says when all work is done.
pub const ENDS: &str = "all nodes are told to stop";
/// How often nodes are told to stop.
const STOP_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    pub trace_hash: u64,
    pub steps: u64,
    pub virtual_time: Duration,
    pub txns: u64,
    pub reads: u64,
    pub syncs: u64,
    /// Operations whose order was looked for, and whether the search came to an end.
    pub ordered: usize,
    pub gave_up: bool,
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
            if self.gave_up { " (not decided)" } else { "" },
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
        cluster.set_delays(slow());
    }
    if plan.nodes > 1 {
        checks.borrow_mut().quorum.watch(cluster.slots);
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
        linear: None,
        plan,
    };
    run.begin();
    if run.safety() {
        run.liveness();
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
            up_since: self.up_since.get(&node).copied().unwrap_or_default(),
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
            if self.shared.device_failed.get() || off {
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
        // All that is left ends together.
        self.wait_for(None);
        self.agenda.retain(|_, due| matches!(due, Due::Fence(_) | Due::Restart(_)));
        calm
    }

    /// The node that leads, or did last.
    fn leader(&self) -> usize {
        self.shared.checks.borrow().quorum.leader().unwrap_or(0)
    }

    fn carry_out(&mut self, due: Due) {
        match due {
            Due::Begin(i) => {
                let parts = &self.plan.faults[i].fault;
                let leader = self.leader();
                let fault = parts.resolved(|node| match node {
                    LEADER => leader,
                    FOLLOWER => (leader + 1) % self.plan.nodes,
                    node => node,
                });
                self.resolved.insert(i, fault.clone());
                let words = fault.to_string();
                self.told.push(format!("fault {i} at {:.3}: {words}", self.now().as_secs_f64()));
                self.say(words);
                self.begin_fault(i, &fault);
            }
            Due::End(i) => {
                if self.awaits.is_some_and(|(waiting, ..)| waiting == i) {
                    self.wait_for(None);
                }
                if let Some(fault) = self.resolved.remove(&i) {
                    self.end_fault(&fault);
                }
            }
            Due::Strike(down) => {
                self.say("the power fails".into());
                self.lose_power();
                self.put_down(self.now() + down, Due::PowerBack);
            }
            Due::PowerBack => {
                self.power = true;
                self.start_nodes();
            }
            Due::Fence(order) => self.fence(order),
            Due::Restart(node) => {
                if self.cluster.runs(node) {
                    self.cluster.kill(&mut self.world, node);
                }
                self.start_node(node);
            }
        }
    }

    fn on(&self, machine: Machine) -> NodeId {
        match machine {
            Machine::Node(n) => self.cluster.machine(n),
            Machine::Client(n) => self.clients[n % self.clients.len()].0,
        }
    }

    fn wait_for(&mut self, what: Option<(usize, Moment, Duration, Duration)>) {
        self.awaits = what.map(|(fault, _, later, down)| (fault, later, down));
        self.shared.checks.borrow_mut().moments.wait_for(what.map(|(_, moment, ..)| moment));
    }

    /// Not while it recovers: a log whose last records read wrong is one that ended there.
    fn lie(&mut self, node: usize, operations: u64, old: bool) {
        let runs = self.cluster.runs(node);
        let young = self.up_since.get(&node).is_none_or(|since| self.now() < *since + RECOVERS);
        if !runs || young {
            return self.say(format!("node {node} is spared: it may be recovering"));
        }
        self.shared.device_fails();
        self.shared.device_lies.set(true);
        let fault = if old { DeviceFault::OldData } else { DeviceFault::FlipBit };
        let rule = Rule { times: operations, ..Rule::once(fault, On::Reads, 0..u64::MAX) };
        self.cluster.device.add_rule(rule.by(self.cluster.process(node)));
    }

    fn begin_fault(&mut self, i: usize, fault: &Fault) {
        match fault {
            Fault::PowerLossAt { moment, later, down } => self.wait_for(Some((i, *moment, *later, *down))),
            Fault::LyingReads { node, operations, old } => self.lie(*node, *operations, *old),
            Fault::PowerLoss { .. } => self.lose_power(),
            Fault::NodeDies { node, .. } => {
                if self.cluster.runs(*node) {
                    self.cluster.kill(&mut self.world, *node);
                }
            }
            Fault::NodeOff { node, .. } => {
                if self.cluster.runs(*node) {
                    self.cluster.turn_off(&mut self.world, *node);
                }
            }
            Fault::Pause { machine, .. } => self.world.pause_node(self.on(*machine)),
            Fault::ClientDies { client } => {
                if self.clients.is_empty() {
                    return;
                }
                let n = client % self.clients.len();
                self.shared.end_life(n);
                self.world.kill_node(self.clients[n].0);
                self.start_client(n);
            }
            Fault::Cut { from, to, one_way, .. } => {
                let (from, to) = (self.on(*from), self.on(*to));
                match one_way {
                    true => self.world.partition_one_way(from, to),
                    false => self.world.partition(from, to),
                }
            }
            Fault::Isolated { node, .. } => self.each_other_node(*node, World::partition),
            Fault::SlowDevice { .. } => self.cluster.set_delays(slow()),
            Fault::Stall { operations, time } => self.cluster.device.add_rule(stall(*operations, *time)),
            Fault::NodeStall { node, operations, time } => {
                let process = self.cluster.process(*node);
                self.cluster.device.add_rule(stall(*operations, *time).by(process));
            }
            Fault::FlushFails { .. } => {
                self.shared.device_failed.set(true);
                self.shared.device_fails();
                self.cluster.device.add_rule(Rule::once(DeviceFault::Error { errno: 5 }, On::Flushes, 0..0));
            }
            Fault::NodeReadsFail { node, .. } => {
                let error = DeviceFault::Error { errno: 5 };
                let past_slots = self.cluster.slots.blocks.end().map_or(0, |end| end.bytes());
                let rule = Rule::always(error, On::Reads, past_slots..u64::MAX);
                self.cluster.device.add_rule(rule.by(self.cluster.process(*node)));
            }
            Fault::SuperblockRots => self.cluster.device.flip_bit(100, 3),
            Fault::Stop { node, .. } => self.tell_to_stop(*node),
            Fault::Storm { .. } => {
                let storm = SimConfig { reset_one_in: 100, ..SimConfig::hostile() };
                self.world.configure(|config| *config = storm);
            }
        }
    }

    fn end_fault(&mut self, fault: &Fault) {
        match fault {
            Fault::PowerLoss { .. } => {
                self.power = true;
                self.start_nodes();
            }
            Fault::NodeDies { node, .. } | Fault::NodeOff { node, .. } => self.start_node(*node),
            Fault::Pause { machine, .. } => self.world.resume_node(self.on(*machine)),
            Fault::Cut { from, to, .. } => {
                let (from, to) = (self.on(*from), self.on(*to));
                self.world.heal(from, to);
            }
            Fault::Isolated { node, .. } => self.each_other_node(*node, World::heal),
            Fault::SlowDevice { .. } => self.usual_delays(),
            Fault::FlushFails { .. } => {
                if self.shared.device_failed.get() {
                    self.lose_power();
                    self.power = true;
                    self.start_nodes();
                }
            }
            Fault::Stop { node, .. } => {
                if self.cluster.runs(*node) {
                    self.cluster.kill(&mut self.world, *node);
                }
                self.start_node(*node);
            }
            Fault::Storm { .. } => {
                let calm = self.plan.network.clone();
                self.world.configure(|config| *config = calm);
            }
            Fault::NodeReadsFail { .. } => self.cluster.device.clear_rules(),
            Fault::Stall { .. }
            | Fault::NodeStall { .. }
            | Fault::SuperblockRots
            | Fault::ClientDies { .. }
            | Fault::PowerLossAt { .. }
            | Fault::LyingReads { .. } => {}
        }
    }

    fn usual_delays(&self) {
        self.cluster.set_delays(if self.plan.slow_device { slow() } else { Delays::default() });
    }

    fn each_other_node(&mut self, node: usize, what: impl Fn(&mut World, NodeId, NodeId)) {
        for other in (0..self.cluster.len()).filter(|other| *other != node) {
            what(&mut self.world, self.cluster.machine(node), self.cluster.machine(other));
        }
    }

    /// Everything is off, and the device holds what a crash may leave.
    fn lose_power(&mut self) {
        self.power = false;
        self.agenda.retain(|_, due| !matches!(due, Due::Fence(_)));
        self.shared.checks.borrow_mut().quorum.power_lost();
        let image = self.cluster.power_off(&mut self.world);
        self.usual_delays();
        self.inspect(&image);
        self.shared.device_failed.set(false);
    }

    fn inspect(&mut self, image: &Image) {
        let what = format!("after the power loss at {:.3}", self.now().as_secs_f64());
        let rotten = self.plan.faults.iter().any(|timed| timed.fault == Fault::SuperblockRots);
        let found = inspect(image, &self.plan.store, self.prng.next_u64(), rotten);
        let mut history = self.shared.history.borrow_mut();
        match found {
            Ok(state) => {
                if self.prng.one_in(ROT_ONE_IN) {
                    let lies = rot::lie(image, &mut self.prng);
                    if let Err(lie) = rot::inspect(image, &lies, &self.plan.store, &state, &history) {
                        history.violate("P3", format!("{what}: {lie}"));
                    }
                }
                self.segments = state.segments;
                history.survived(&state, &what);
                self.agent.missed(&state.sequences).into_iter().for_each(|missed| history.violate("E9", missed));
            }
            Err(error) => history.violate("P2", format!("{what}: {error}")),
        }
    }

    /// The faults are over: all work must end, and what is left must be clean.
    fn liveness(&mut self) {
        self.say("the faults are over".into());
        self.world.heal_all();
        self.world.configure(|config| *config = SimConfig::default());
        self.cluster.set_delays(Delays::default());
        for n in 0..self.clients.len() {
            self.world.resume_node(self.clients[n].0);
        }
        for node in 0..self.cluster.len() {
            self.world.resume_node(self.cluster.machine(node));
        }
        if self.shared.device_failed.get() {
            self.lose_power();
        }
        self.cluster.device.clear_rules();
        self.power = true;
        let told_to_stop: Vec<usize> = (0..self.cluster.len())
            .filter(|node| self.cluster.runs(*node) && self.cluster.watch_stopped(*node)())
            .collect();
        told_to_stop.into_iter().for_each(|node| self.cluster.kill(&mut self.world, node));
        self.start_nodes();
        self.shared.stop.set(true);
        let agent = self.agent.clone();
        let until = self.now() + LIVENESS;
        if !self.run_until(until, || agent.finished.get()) {
            return;
        }
        if !self.agent.finished.get() {
            let left = self.shared.unfinished(self.clients.len());
            let what = match left.is_empty() {
                true => "the agent has not ended".into(),
                false => format!("the clients {left:?} have not ended"),
            };
            self.violate("live", format!("{what} {LIVENESS:?} after the faults"));
            return;
        }
        self.last_look();
    }

    /// Every node is told to stop, again and again: a fence may start one anew meanwhile.
    fn stop_all(&mut self) -> bool {
        self.say(ENDS.into());
        let until = self.now() + LIVENESS;
        loop {
            let left: Vec<usize> =
                (0..self.cluster.len()).filter(|node| !self.cluster.watch_stopped(*node)()).collect();
            if left.is_empty() {
                return !self.failed.get();
            }
            if self.now() >= until {
                self.violate("live", format!("the nodes {left:?} do not stop"));
                return false;
            }
            left.iter().for_each(|node| self.tell_to_stop(*node));
            let next = self.now() + STOP_AGAIN;
            if !self.run_until(next, || false) {
                return false;
            }
        }
    }

    fn last_look(&mut self) {
        if self.plan.ends_cleanly && !self.stop_all() {
            return;
        }
        let image = self.cluster.power_off(&mut self.world);
        self.inspect(&image);
        self.shared.history.borrow_mut().end();
        // A device that failed took data along that a living client had not synced: until then all is explained.
        let verdict = self.shared.ops.borrow().before(self.shared.first_failure.get()).check();
        if let Verdict::Broken { why } = &verdict {
            self.violate("P4", format!("no order of the clients' operations explains what they saw: {why}"));
        }
        self.linear = Some(verdict);
        let lost = self.shared.checks.borrow().file_locks.end();
        if let Some(why) = lost {
            self.violate("L11", why);
        }
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
            gave_up: self.linear == Some(Verdict::GaveUp),
            walked: self.agent.walked(),
            segments: self.segments,
            faults: self.told.clone(),
            violations,
            story: checks.borrow().out.story.lines(),
            trace: if failed { self.world.recent_trace() } else { Vec::new() },
        }
    }
}

fn slow() -> Delays {
    let ms = Duration::from_millis;
    Delays { write: ms(1)..ms(20), flush: ms(1)..ms(80), read: ms(1)..ms(10), ..Delays::default() }
}

fn stall(operations: u64, time: Duration) -> Rule {
    Rule { times: operations, ..Rule::once(DeviceFault::Stall { time }, On::Anything, 0..u64::MAX) }
}
