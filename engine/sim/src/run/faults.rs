//! How faults begin and end.

use std::time::Duration;

use vellum_nvme::fault::{Delays, Fault as DeviceFault, On, Rule};
use vellum_rt::sim::{NodeId, SimConfig, World};

use super::{Due, Run};
use crate::fault::{FOLLOWER, Fault, LEADER, Machine, Moment};

/// A node that was started is not lied to for so long.
const RECOVERS: Duration = Duration::from_millis(500);

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

    pub(super) fn end_fault(&mut self, fault: &Fault) {
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
