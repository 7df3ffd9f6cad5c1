//! After the faults: all work ends, everything stops, and what is left is looked at.

use std::time::Duration;

use vellum_nvme::Image;
use vellum_nvme::fault::Delays;
use vellum_rt::sim::SimConfig;

use super::Run;
use crate::check::inspect::inspect;
use crate::check::linear::Verdict;
use crate::check::rot;
use crate::fault::Fault;

/// Virtual time within which all work ends once the faults have.
const LIVENESS: Duration = Duration::from_secs(25);
/// Of so many images that a crash leaves, one is looked at once more with a lie in it.
const ROT_ONE_IN: u64 = 3;
/// What the story says when all work is done.
pub const ENDS: &str = "all nodes are told to stop";
/// How often nodes are told to stop.
const STOP_AGAIN: Duration = Duration::from_millis(100);

impl Run {
    pub(super) fn inspect(&mut self, image: &Image) {
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
    pub(super) fn liveness(&mut self) {
        self.say("the faults are over".into());
        self.world.heal_all();
        self.shared.checks.borrow_mut().all_undisturbed();
        self.world.configure(|config| *config = SimConfig::default());
        self.cluster.set_delays(Delays::default());
        for n in 0..self.clients.len() {
            self.world.resume_node(self.clients[n].0);
        }
        for node in 0..self.cluster.len() {
            self.world.resume_node(self.cluster.machine(node));
            self.shared.checks.borrow_mut().wakes(node);
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

    /// After writes that went astray the power fails, and the next node finds what is right, or says what is not.
    pub(super) fn look_astray(&mut self) {
        self.look_for_an_order();
        let image = self.cluster.power_off(&mut self.world);
        let history = self.shared.history.borrow();
        if let Err(lie) = rot::inspect_astray(&image, &self.plan.store, self.plan.seed, &history) {
            drop(history);
            self.violate("P3", format!("writes went astray: {lie}"));
        }
    }

    /// Every node is told to stop, again and again: a fence may start one anew meanwhile.
    pub(super) fn stop_all(&mut self) -> bool {
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

    pub(super) fn last_look(&mut self) {
        if self.plan.ends_cleanly && !self.stop_all() {
            return;
        }
        let image = self.cluster.power_off(&mut self.world);
        self.inspect(&image);
        self.shared.history.borrow_mut().end();
        self.look_for_an_order();
        let lost = self.shared.checks.borrow().file_locks.end();
        if let Some(why) = lost {
            self.violate("L11", why);
        }
    }

    /// A device that failed took data along that a living client had not synced: until then all is explained.
    fn look_for_an_order(&mut self) {
        let ops = self.shared.ops.borrow().before(self.shared.first_failure.get());
        if !ops.is_empty() {
            let verdict = ops.check();
            if let Verdict::Broken { why } = &verdict {
                self.violate("P4", format!("no order of the clients' operations explains what they saw: {why}"));
            }
            self.linear = Some(verdict);
        }
    }
}
