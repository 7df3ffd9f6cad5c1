//! How faults begin and end.

use std::time::Duration;

use vellum_base::BLOCK_SIZE;
use vellum_nvme::fault::{Delays, Fault as DeviceFault, On, Rule};
use vellum_rt::sim::{NodeId, SimConfig, World};

use super::{Due, Run};
use crate::check::reach::Disturbed;
use crate::fault::{FOLLOWER, Fault, LEADER, Machine, Moment, Stray};

/// A node that was started is not lied to for so long.
const RECOVERS: Duration = Duration::from_millis(500);
/// A node has found a second process in its slot by then.
const GIVES_WAY: Duration = Duration::from_secs(1);
/// A write that goes astray lands at most so many blocks further.
const ASTRAY_BLOCKS: u64 = 4000;

impl Run {
    pub(super) fn carry_out(&mut self, due: Due) {
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
                if let Some(whom) = fault.disturbs(self.clients.len()) {
                    self.shared.checks.borrow_mut().disturbed(i, whom);
                }
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
                    self.shared.checks.borrow_mut().undisturbed(i);
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

    pub(super) fn on(&self, machine: Machine) -> NodeId {
        match machine {
            Machine::Node(n) => self.cluster.machine(n),
            Machine::Client(n) => self.clients[n % self.clients.len()].0,
        }
    }

    pub(super) fn wait_for(&mut self, what: Option<(usize, Moment, Duration, Duration)>) {
        self.awaits = what.map(|(fault, _, later, down)| (fault, later, down));
        self.shared.checks.borrow_mut().moments.wait_for(what.map(|(_, moment, ..)| moment));
    }

    /// Not while it recovers: a log whose last records read wrong is one that ended there.
    pub(super) fn lie(&mut self, node: usize, operations: u64, old: bool) {
        let runs = self.cluster.runs(node);
        let young = self.up_since.get(&node).is_none_or(|since| self.now() < *since + RECOVERS);
        if !runs || young {
            return self.say(format!("node {node} is spared: it may be recovering"));
        }
        self.shared.device_fails();
        self.shared.device_lies.set(true);
        self.shared.checks.borrow_mut().disturbed(usize::MAX, Disturbed::Everyone);
        let fault = if old { DeviceFault::OldData } else { DeviceFault::FlipBit };
        let rule = Rule { times: operations, ..Rule::once(fault, On::Reads, 0..u64::MAX) };
        self.cluster.device.add_rule(rule.by(self.cluster.process(node)));
    }

    pub(super) fn begin_fault(&mut self, i: usize, fault: &Fault) {
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
            Fault::Pause { machine, .. } => self.sleep(*machine),
            Fault::Suspended { machine, .. } => {
                self.sleep(*machine);
                self.each_other_machine(*machine, World::partition);
            }
            Fault::BlockUnreadable { node, .. } => self.hide_block(*node),
            Fault::Twin { node, .. } => self.start_twin(*node),
            Fault::ReadsStall { operations, time } => {
                let rule = Rule::once(DeviceFault::Stall { time: *time }, On::Reads, 0..u64::MAX);
                self.cluster.device.add_rule(Rule { times: *operations, ..rule });
            }
            Fault::Astray { node, operations, how } => self.lead_astray(*node, *operations, *how),
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

    pub(super) fn end_fault(&mut self, fault: &Fault) {
        match fault {
            Fault::PowerLoss { .. } => {
                self.power = true;
                self.start_nodes();
            }
            Fault::NodeDies { node, .. } | Fault::NodeOff { node, .. } => self.start_node(*node),
            Fault::Pause { machine, .. } => self.wake(*machine),
            Fault::Suspended { machine, .. } => {
                self.each_other_machine(*machine, World::heal);
                self.wake(*machine);
            }
            Fault::Twin { .. } => self.end_twin(),
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
            Fault::NodeReadsFail { .. } | Fault::BlockUnreadable { .. } => self.cluster.device.clear_rules(),
            Fault::Stall { .. }
            | Fault::NodeStall { .. }
            | Fault::SuperblockRots
            | Fault::ClientDies { .. }
            | Fault::PowerLossAt { .. }
            | Fault::ReadsStall { .. }
            | Fault::Astray { .. }
            | Fault::LyingReads { .. } => {}
        }
    }

    fn sleep(&mut self, machine: Machine) {
        self.world.pause_node(self.on(machine));
        if let Machine::Node(node) = machine {
            self.shared.checks.borrow_mut().falls_asleep(node);
        }
    }

    fn wake(&mut self, machine: Machine) {
        self.world.resume_node(self.on(machine));
        if let Machine::Node(node) = machine {
            self.shared.checks.borrow_mut().wakes(node);
        }
    }

    fn each_other_machine(&mut self, machine: Machine, what: impl Fn(&mut World, NodeId, NodeId)) {
        let nodes = (0..self.cluster.len()).map(Machine::Node);
        let all: Vec<Machine> = nodes.chain((0..self.clients.len()).map(Machine::Client)).collect();
        for other in all.into_iter().filter(|other| *other != machine) {
            let (one, other) = (self.on(machine), self.on(other));
            what(&mut self.world, one, other);
        }
    }

    fn hide_block(&mut self, node: usize) {
        let at = self.cluster.slots.blocks.start.bytes() + (node * BLOCK_SIZE) as u64;
        for other in (0..self.cluster.len()).filter(|other| *other != node) {
            let rule = Rule::always(DeviceFault::Error { errno: 5 }, On::Reads, at..at + BLOCK_SIZE as u64);
            self.cluster.device.add_rule(rule.by(self.cluster.process(other)));
        }
    }

    fn start_twin(&mut self, node: usize) {
        if self.power && self.plan.nodes > 1 {
            let process = self.cluster.start_twin(&mut self.world, node);
            self.say(format!("process {} is started in slot {node} too", process.0));
            self.shared.checks.borrow_mut().quorum.started(process, node);
            self.gave_way = Some((node, Duration::MAX));
        }
    }

    pub(super) fn end_twin(&mut self) {
        if let Some((node, why)) = self.cluster.end_twin(&mut self.world) {
            self.gave_way = Some((node, self.now() + GIVES_WAY));
            self.say(match why {
                Some(why) => format!("the second process in slot {node} was refused: {why}"),
                None => format!("the second process in slot {node} is ended"),
            });
        }
    }

    /// From now on the device is not what the node believes: a crash is not survived any more, and the run ends with one.
    fn lead_astray(&mut self, node: usize, operations: u64, how: Stray) {
        if !self.cluster.runs(node) {
            return;
        }
        self.shared.device_fails();
        self.shared.device_lies.set(true);
        self.shared.checks.borrow_mut().disturbed(usize::MAX, Disturbed::Everyone);
        self.astray = true;
        let by_bytes = (1 + self.prng.below(ASTRAY_BLOCKS)) * BLOCK_SIZE as u64;
        let (fault, on) = match how {
            Stray::Lost => (DeviceFault::Lose, On::Writes),
            Stray::Elsewhere => (DeviceFault::Misdirect { by_bytes }, On::Writes),
            Stray::WriteFails => (DeviceFault::Error { errno: 5 }, On::Writes),
            Stray::ReadFails => (DeviceFault::Error { errno: 5 }, On::Reads),
        };
        let rule = Rule { times: operations, ..Rule::once(fault, on, 0..u64::MAX) };
        self.cluster.device.add_rule(rule.by(self.cluster.process(node)));
    }

    pub(super) fn usual_delays(&self) {
        self.cluster.set_delays(if self.plan.slow_device { slow() } else { Delays::default() });
    }

    pub(super) fn each_other_node(&mut self, node: usize, what: impl Fn(&mut World, NodeId, NodeId)) {
        for other in (0..self.cluster.len()).filter(|other| *other != node) {
            what(&mut self.world, self.cluster.machine(node), self.cluster.machine(other));
        }
    }

    /// Everything is off, and the device holds what a crash may leave.
    pub(super) fn lose_power(&mut self) {
        self.power = false;
        self.agenda.retain(|_, due| !matches!(due, Due::Fence(_)));
        self.shared.checks.borrow_mut().quorum.power_lost();
        let image = self.cluster.power_off(&mut self.world);
        self.usual_delays();
        self.inspect(&image);
        self.shared.device_failed.set(false);
    }
}

pub(super) fn slow() -> Delays {
    let ms = Duration::from_millis;
    Delays { write: ms(1)..ms(20), flush: ms(1)..ms(80), read: ms(1)..ms(10), ..Delays::default() }
}

fn stall(operations: u64, time: Duration) -> Rule {
    Rule { times: operations, ..Rule::once(DeviceFault::Stall { time }, On::Anything, 0..u64::MAX) }
}
