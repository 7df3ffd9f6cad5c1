//! The engine for the length of a leadership: started on the member's reactors, stopped, and known to be gone.
//!
//! ```text
//!  lead(term):  a Valve, a Plan, one Job per reactor
//!  stop:        in order: the Plan shuts down, within a limit
//!               deposed:  the valve is closed; the jobs end where they are
//!  the last job has ended (its tasks dropped, nothing in flight) -> handle_stopped
//! ```

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use vellum_base::Term;
use vellum_nvme::Valve;
use vellum_proto::quorum::{Quorum, StopReason};
use vellum_rt::channel::{Receiver, Sender, bounded};
use vellum_rt::{Class, sleep, spawn};

use super::agent::Agent;
use super::figures::StatusAsks;
use super::gate::AgentHandle;
use super::gone::SlotProbe;
use super::member::MemberProgress;
use crate::first::first_of;
use crate::mounted::Mounted;
use crate::plan::{NodeError, Plan, Progress, StopHandle};

/// An engine that is stopped in order has so long; then it is stopped as a deposed one.
const ORDERLY_STOP: Duration = Duration::from_millis(4_000);
/// How often it is looked whether the last operation has ended.
const LOOK: Duration = Duration::from_millis(1);

/// What one reactor does for a leadership.
pub(super) struct Job {
    plan: Arc<Plan>,
    valve: Arc<Valve>,
    /// Closes when the engine must go at once.
    kill: Receiver<()>,
    /// Dropped at the very end.
    _ended: Sender<()>,
}

impl Job {
    /// Returns when nothing of this leadership is left on this reactor, and nothing in flight on any.
    pub async fn run(self, index: usize) {
        let Job { plan, valve, mut kill, _ended } = self;
        let closing = valve.clone();
        vellum_rt::scope(async move {
            let _ = first_of(plan.run(index), kill.recv()).await;
            // Whatever made it end: from here on it writes nothing.
            closing.close();
        })
        .await;
        // Listeners and sessions are gone: however long the device takes, nobody is answered meanwhile.
        while valve.in_flight() > 0 {
            valve.reap();
            sleep(LOOK).await;
        }
    }
}

struct Running {
    term: Term,
    valve: Arc<Valve>,
    stop: StopHandle,
    mounted: Arc<Mounted>,
    asks: Sender<Sender<Value>>,
    /// Dropped, the jobs end at once.
    _kill: Vec<Sender<()>>,
}

enum State {
    Idle,
    Runs(Running),
    /// It has to end, in order or not.
    Ends(Running),
    /// Ending at once: only its jobs are waited for.
    Gone,
}

pub(super) struct Engine {
    state: RefCell<State>,
    jobs: Vec<Sender<Job>>,
    handle: AgentHandle,
}

impl Engine {
    pub fn new(jobs: Vec<Sender<Job>>, handle: AgentHandle) -> Engine {
        Engine { state: RefCell::new(State::Idle), jobs, handle }
    }

    /// False from the moment in which the engine may not count on its leadership any more.
    pub fn may_acknowledge(&self) -> bool {
        matches!(*self.state.borrow(), State::Runs(_) | State::Ends(_))
    }

    /// Where the engine is asked for its status, while one runs.
    pub fn asks(&self) -> Option<Sender<Sender<Value>>> {
        match &*self.state.borrow() {
            State::Runs(running) => Some(running.asks.clone()),
            State::Ends(_) | State::Idle | State::Gone => None,
        }
    }

    /// Whether anybody is mounted; as long as it cannot be known, somebody is.
    pub fn is_mounted(&self) -> bool {
        match &*self.state.borrow() {
            State::Runs(running) | State::Ends(running) => running.mounted.any(),
            State::Idle | State::Gone => true,
        }
    }

    /// Stops every device operation first, then everything else.
    pub fn kill(&self) {
        let state = std::mem::replace(&mut *self.state.borrow_mut(), State::Idle);
        let state = match state {
            State::Runs(running) | State::Ends(running) => {
                running.valve.close();
                State::Gone
            }
            other => other,
        };
        *self.state.borrow_mut() = state;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Agent {
    pub(super) fn lead(self: &Rc<Self>, term: Term) {
        let valve = Valve::new(self.member.device.clone());
        let (steps, told) = bounded(8);
        let mut options = self.member.engine_options(&self.members());
        let own = self.member.options.slot;
        options.worker_probe = Some(Arc::new(SlotProbe { own, term, gone: self.gone.clone() }));
        options.store.term = Some(term);
        options.quorum = Some(self.engine.handle.clone());
        let mounted = Arc::new(Mounted::new(options.cores.len()));
        options.mounted = Some(mounted.clone());
        let (asks, asked) = StatusAsks::new();
        (options.status_asks, options.metrics) = (Some(asked), None);
        // Also of a single slot: others may be added while it leads.
        options.store.gate = Some(Arc::new(self.engine.handle.clone()));
        let planned = Plan::new(valve.clone(), options, move |step| {
            let _ = steps.try_send(step); // an agent that is gone hears nothing
        });
        let (plan, _, stop) = match planned {
            Ok(planned) => planned,
            Err(error) => return self.engine_failed(term, &error),
        };
        let (ended, all_ended) = bounded(1);
        let mut kills = Vec::new();
        for jobs in &self.engine.jobs {
            let (kill, killed) = bounded(1);
            let job = Job { plan: plan.clone(), valve: valve.clone(), kill: killed, _ended: ended.clone() };
            if jobs.try_send(job).is_err() {
                tracing::error!("a reactor of this member is gone");
            }
            kills.push(kill);
        }
        let ending = self.clone().until_ended(term, valve.clone(), all_ended);
        *self.engine.state.borrow_mut() = State::Runs(Running { term, valve, stop, mounted, asks, _kill: kills });
        spawn(Class::Request, "leadership", self.clone().watch(term, told)).detach();
        spawn(Class::Request, "leadership's end", ending).detach();
    }

    /// What the engine says of itself.
    async fn watch(self: Rc<Self>, term: Term, mut told: Receiver<Progress>) {
        while let Some(step) = told.recv().await {
            match step {
                Progress::Up(up) => self.tell(MemberProgress::Leading(up)),
                Progress::Failed(error) | Progress::Stopped(Err(error)) => self.engine_failed(term, &error),
                Progress::Stopped(Ok(())) => {}
            }
        }
    }

    /// The member stays; others go first (scenario 34).
    fn engine_failed(self: &Rc<Self>, term: Term, error: &NodeError) {
        tracing::error!(slot = %self.member.options.slot, %term, %error, "the engine failed: this node resigns");
        self.tell(MemberProgress::EngineFailed { term, error: error.clone() });
        self.input(|quorum, now| quorum.resign(now, &format!("the engine failed: {error}")));
    }

    async fn until_ended(self: Rc<Self>, term: Term, valve: Arc<Valve>, mut all_ended: Receiver<()>) {
        while all_ended.recv().await.is_some() {}
        if valve.queues() > 0 {
            tracing::error!(queues = valve.queues(), "the engine left queues open: our bug, they are lost");
        }
        let told_to_stop = !matches!(*self.engine.state.borrow(), State::Runs(_));
        *self.engine.state.borrow_mut() = State::Idle;
        tracing::info!(slot = %self.member.options.slot, %term, "the engine has ended, nothing of it is in flight");
        if told_to_stop {
            self.tell(MemberProgress::Following { term });
            self.input(Quorum::handle_stopped);
        }
    }

    pub(super) fn stop_leading(self: &Rc<Self>, term: Term, why: StopReason) {
        if matches!(why, StopReason::Resigned) {
            return self.stop_in_order(term);
        }
        self.engine.kill();
        self.refuse_confirmations(&why.to_string());
        self.stopped_already();
    }

    /// An engine that ended by itself, or never began.
    fn stopped_already(self: &Rc<Self>) {
        if matches!(*self.engine.state.borrow(), State::Idle) {
            self.input(Quorum::handle_stopped);
        }
    }

    fn stop_in_order(self: &Rc<Self>, term: Term) {
        let state = std::mem::replace(&mut *self.engine.state.borrow_mut(), State::Idle);
        let state = match state {
            State::Runs(running) => {
                running.stop.stop();
                State::Ends(running)
            }
            other => other,
        };
        *self.engine.state.borrow_mut() = state;
        self.stopped_already();
        let agent = self.clone();
        spawn(Class::Request, "orderly stop", async move {
            sleep(ORDERLY_STOP).await;
            let late = matches!(&*agent.engine.state.borrow(), State::Ends(running) if running.term == term);
            if late {
                tracing::warn!(%term, "the engine does not stop in order within {ORDERLY_STOP:?}");
                agent.engine.kill();
                agent.refuse_confirmations("the engine was stopped");
            }
        })
        .detach();
    }
}
