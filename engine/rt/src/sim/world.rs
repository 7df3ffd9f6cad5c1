//! The world: nodes with reactors, one thread, one clock that moves when nobody can run.

use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::ReactorId;
use vellum_base::prng::Prng;

use super::clock::NodeClock;
use super::config::SimConfig;
use super::core::{Node, Shared, draw};
use super::driver::{Driver, NoDoorbell};
use crate::backend::Backend;
use crate::reactor::{self, Reactor};
use crate::time::{Instant, nanos};
use crate::{Class, JoinHandle, wake};

/// A simulated machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u16);

/// A reactor of a simulated node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReactorHandle {
    index: usize,
    node: NodeId,
}

impl ReactorHandle {
    pub fn node(self) -> NodeId {
        self.node
    }
}

struct Member {
    node: NodeId,
    /// `None` when its node was killed.
    reactor: Option<Rc<Reactor>>,
}

/// Shows the world's time, also from within a running task or an observer.
#[derive(Clone)]
pub struct WorldClock {
    shared: Rc<Shared>,
}

impl WorldClock {
    pub fn now(&self) -> Instant {
        Instant(self.shared.with(|core| core.now))
    }
}

/// One run of a simulation. See the module's page.
pub struct World {
    seed: u64,
    shared: Rc<Shared>,
    members: Vec<Member>,
    /// Scratch: indexes of reactors that can run.
    runnable: Vec<usize>,
}

#[derive(PartialEq, Eq)]
enum Step {
    Ran,
    /// Nobody can run before this time of the world.
    Waits(u64),
    /// Nobody will ever run again.
    Idle,
}

impl World {
    pub fn new(seed: u64, config: SimConfig) -> World {
        World { seed, shared: Rc::new(Shared::new(seed, config)), members: Vec::new(), runnable: Vec::new() }
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The world's clock; the nodes' clocks differ from it and from each other.
    pub fn now(&self) -> Instant {
        Instant(self.shared.with(|core| core.now))
    }

    pub fn clock(&self) -> WorldClock {
        WorldClock { shared: self.shared.clone() }
    }

    /// A hash of every step so far: equal for equal seeds and programs.
    pub fn trace_hash(&self) -> u64 {
        self.shared.with(|core| core.trace.hash())
    }

    pub fn steps(&self) -> u64 {
        self.shared.with(|core| core.trace.steps())
    }

    /// The last steps in words, oldest first.
    pub fn recent_trace(&self) -> Vec<String> {
        self.shared.with(|core| core.trace.lines().collect())
    }

    /// Changes chances and times from now on.
    pub fn configure(&mut self, change: impl FnOnce(&mut SimConfig)) {
        self.shared.with(|core| change(&mut core.config));
    }

    /// A draw for the test itself, from the world's seed.
    pub fn random_u64(&mut self) -> u64 {
        self.shared.with(|core| core.schedule.next_u64())
    }

    pub fn add_node(&mut self) -> NodeId {
        self.shared.with(|core| {
            let id = NodeId(u16::try_from(core.nodes.len()).expect("fewer than 65536 nodes"));
            let drift = i64::from(core.config.clock_drift_ppm);
            let drift_ppm = core.schedule.below(2 * drift as u64 + 1) as i64 - drift;
            let clock = NodeClock { offset: core.schedule.below(1 << 50), drift_ppm };
            let prng = Prng::new(core.schedule.next_u64());
            core.nodes.push(Node { clock, prng, powered: true, paused: false });
            id
        })
    }

    /// One more reactor on the node (which is switched on, if it was off).
    pub fn add_reactor(&mut self, node: NodeId) -> ReactorHandle {
        let stall = self.shared.with(|core| {
            core.node(node).powered = true;
            core.config.stall
        });
        let on_node = self.members.iter().filter(|member| member.node == node && member.reactor.is_some()).count();
        let backend = Backend::Sim(Driver { shared: self.shared.clone(), node });
        let id = ReactorId(u16::try_from(on_node).expect("fewer than 65536 reactors"));
        let reactor = Reactor::new(id, backend, wake::remote(Box::new(NoDoorbell)), stall, Duration::ZERO);
        self.members.push(Member { node, reactor: Some(reactor) });
        ReactorHandle { index: self.members.len() - 1, node }
    }

    /// Starts a task on a reactor.
    ///
    /// # Panics
    /// When the reactor's node was killed.
    pub fn spawn<F: Future + 'static>(
        &mut self,
        on: ReactorHandle,
        class: Class,
        name: &'static str,
        future: F,
    ) -> JoinHandle<F::Output> {
        self.enter(on, || crate::spawn(class, name, future))
    }

    /// Runs `f` as if on the reactor: the free functions of this crate work in it.
    pub fn enter<R>(&mut self, on: ReactorHandle, f: impl FnOnce() -> R) -> R {
        let reactor = self.members[on.index].reactor.clone().expect("the reactor's node was killed");
        let _installed = reactor::install(&reactor);
        f()
    }

    /// Runs the world until `future`, a task on `on`, is done; `None` when it was not within `limit`.
    pub fn block_on<F: Future + 'static>(
        &mut self,
        on: ReactorHandle,
        limit: Duration,
        future: F,
    ) -> Option<F::Output> {
        let mut task = self.spawn(on, Class::Request, "main", future);
        self.run_until(|| task.is_finished(), limit);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(&mut task).poll(&mut cx) {
            std::task::Poll::Ready(Ok(output)) => Some(output),
            _ => None,
        }
    }

    /// Runs until nothing is left to happen. Endless for programs with a periodic timer.
    pub fn run_until_idle(&mut self) {
        self.run(u64::MAX, || false);
    }

    pub fn run_for(&mut self, time: Duration) {
        let until = self.now().0.saturating_add(nanos(time));
        self.run(until, || false);
    }

    /// Runs until `done` (asked after each step) or for `limit`; whether it was done.
    pub fn run_until(&mut self, done: impl FnMut() -> bool, limit: Duration) -> bool {
        let until = self.now().0.saturating_add(nanos(limit));
        self.run(until, done)
    }

    fn run(&mut self, until: u64, mut done: impl FnMut() -> bool) -> bool {
        loop {
            if done() {
                return true;
            }
            if self.now().0 >= until {
                return false;
            }
            match self.step() {
                Step::Ran => {}
                Step::Waits(next) => self.shared.with(|core| core.now = core.now.max(next.min(until))),
                Step::Idle => {
                    if until != u64::MAX {
                        self.shared.with(|core| core.now = core.now.max(until));
                    }
                    return done();
                }
            }
        }
    }

    /// Everything due happens; then one task of one reactor is polled, both drawn by chance.
    fn step(&mut self) -> Step {
        self.shared.with(|core| core.run_events());
        let mut runnable = std::mem::take(&mut self.runnable);
        self.find_runnable(&mut runnable);
        if runnable.is_empty() && self.run_pollers() > 0 {
            self.find_runnable(&mut runnable);
            if runnable.is_empty() {
                self.runnable = runnable;
                return Step::Ran;
            }
        }
        let step = if runnable.is_empty() {
            self.next_time().map_or(Step::Idle, Step::Waits)
        } else {
            let choice = self.shared.with(|core| core.schedule.below(runnable.len() as u64)) as usize;
            self.run_one(runnable[choice]);
            Step::Ran
        };
        self.runnable = runnable;
        step
    }

    fn running(&self) -> impl Iterator<Item = (usize, NodeId, &Rc<Reactor>)> {
        let members = self.members.iter().enumerate();
        let members = members.filter_map(|(i, member)| Some((i, member.node, member.reactor.as_ref()?)));
        members.filter(|(_, node, _)| !self.shared.with(|core| core.node(*node).paused))
    }

    fn find_runnable(&self, runnable: &mut Vec<usize>) {
        runnable.clear();
        for (i, _, reactor) in self.running() {
            reactor.drain_remote_wakes();
            if reactor.timers.next_deadline().is_some() {
                reactor.timers.fire(reactor.backend.now());
                reactor.drain_remote_wakes();
            }
            if reactor.tasks.ready_len() > 0 {
                runnable.push(i);
            }
        }
    }

    fn run_one(&mut self, index: usize) {
        let Some(reactor) = self.members[index].reactor.clone() else { return };
        let node = self.members[index].node;
        let choice = self.shared.with(|core| core.schedule.below(reactor.tasks.ready_len() as u64)) as usize;
        let Some((class, task)) = reactor.tasks.take_nth(choice) else { return };
        let _installed = reactor::install(&reactor);
        let name = reactor.run_one(class, task);
        self.shared.with(|core| {
            core.step(node, index as u64, name.unwrap_or("stale wake"));
            let cost = core.config.poll_cost.clone();
            core.now += draw(&mut core.schedule, &cost);
        });
        let polls_pollers = reactor.pollers.len() > 0 && self.shared.with(|core| core.schedule.one_in(4));
        if polls_pollers {
            reactor.pollers.run();
        }
    }

    fn run_pollers(&self) -> usize {
        let reactors: Vec<Rc<Reactor>> = self.running().map(|(_, _, reactor)| reactor.clone()).collect();
        let mut events = 0;
        for reactor in reactors {
            let _installed = reactor::install(&reactor);
            events += reactor.pollers.run();
            events += reactor.tasks.ready_len();
        }
        events
    }

    fn next_time(&self) -> Option<u64> {
        let timers = self.running().filter_map(|(_, node, reactor)| {
            let deadline = reactor.timers.next_deadline()?;
            Some(self.shared.with(|core| core.node(node).clock.world(deadline)))
        });
        let event = self.shared.with(|core| core.next_event_at());
        timers.filter(|&at| at != u64::MAX).chain(event).min()
    }

    /// Lets time pass within the running poll: a computation that takes long.
    pub fn spend(time: Duration) {
        reactor::with(|reactor| match &reactor.backend {
            Backend::Sim(driver) => driver.shared.with(|core| core.now += nanos(time)),
            Backend::Kernel(_) => std::thread::sleep(time),
        });
    }

    /// The node's process dies (`kill -9`): its tasks are dropped, its connections break, cut anywhere. Start it again
    /// with [`World::add_reactor`].
    pub fn kill_node(&mut self, node: NodeId) {
        self.shared.with(|core| {
            core.step(node, 0, "kill");
            core.tear_connections(node);
        });
        self.drop_reactors(node);
    }

    /// The node loses its power: as a kill, but its peers hear nothing until it is back.
    pub fn power_off(&mut self, node: NodeId) {
        self.shared.with(|core| {
            core.step(node, 0, "power off");
            core.node(node).powered = false;
            for connection in core.connections.values_mut() {
                for side in 0..2 {
                    if connection.ends[side].node == node {
                        connection.ends[1 - side].in_flight.clear();
                    }
                }
            }
        });
        self.drop_reactors(node);
    }

    fn drop_reactors(&mut self, node: NodeId) {
        let dead: Vec<Rc<Reactor>> = self
            .members
            .iter_mut()
            .filter(|member| member.node == node)
            .filter_map(|member| member.reactor.take())
            .collect();
        for reactor in &dead {
            let _installed = reactor::install(reactor);
            reactor.clear();
        }
        self.shared.with(|core| {
            core.node(node).paused = false;
            core.listeners.retain(|_, listening| listening.node != node);
            core.sockets.retain(|(_, on), _| *on != node);
        });
    }

    /// The node's process stops (`SIGSTOP`); its kernel goes on receiving.
    pub fn pause_node(&mut self, node: NodeId) {
        self.shared.with(|core| {
            core.step(node, 0, "pause");
            core.node(node).paused = true;
        });
    }

    pub fn resume_node(&mut self, node: NodeId) {
        self.shared.with(|core| {
            core.step(node, 0, "resume");
            core.node(node).paused = false;
        });
    }

    /// Nothing gets from one to the other, in either direction. Streams resume when it is healed in time.
    pub fn partition(&mut self, a: NodeId, b: NodeId) {
        self.partition_one_way(a, b);
        self.partition_one_way(b, a);
    }

    pub fn partition_one_way(&mut self, from: NodeId, to: NodeId) {
        self.shared.with(|core| core.cuts.insert((from, to)));
    }

    pub fn heal(&mut self, a: NodeId, b: NodeId) {
        self.shared.with(|core| {
            core.cuts.remove(&(a, b));
            core.cuts.remove(&(b, a));
        });
    }

    pub fn heal_all(&mut self) {
        self.shared.with(|core| core.cuts.clear());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(reactor) = member.reactor.take() {
                let _installed = reactor::install(&reactor);
                reactor.clear();
            }
        }
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World(seed {}, {:?}, trace {:016x})", self.seed, self.now(), self.trace_hash())
    }
}
