//! A member of a cluster in any world: one reactor for the quorum, the others for the engine while this node leads.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use vellum_base::{Rid, Slot, Term};
use vellum_format::quorum::{ProcessIdentity, SlotBlock, SlotState};
use vellum_keys::quorum_auth;
use vellum_nvme::{Device, Queue};
use vellum_proto::quorum::{Quorum, QuorumConfig};
use vellum_rt::channel::{Receiver, Sender, bounded};
use vellum_rt::net::{Datagram, Endpoint};
use vellum_rt::{Class, random_u64, spawn, wall_clock};
use vellum_store::{PolledQueue, StoreError};

use super::agent::{Agent, time};
use super::blocks::{Membership, read_blocks};
use super::gate::{AgentHandle, QUESTIONS, Question};
use super::leadership::{Engine, Job};
use super::options::MemberOptions;
use crate::first::{First, first_of};
use crate::options::NodeOptions;
use crate::plan::{NodeError, Up};

/// Operations of the agent in flight: its own block, and reads of all.
const QUEUE_DEPTH: u32 = 16;

/// Told from the agent's reactor.
#[derive(Clone, Debug)]
pub enum MemberProgress {
    /// The member takes part; or its leadership is over, and nothing of that is left.
    Following { term: Term },
    /// This node leads and serves.
    Leading(Up),
    /// It was elected and could not serve, or not go on.
    EngineFailed { term: Term, error: NodeError },
    /// It is no member any more, or could not become one.
    Ended(Result<(), NodeError>),
}

struct AgentSeat {
    jobs: Vec<Sender<Job>>,
    questions: Receiver<Question>,
    stop: Receiver<()>,
}

/// Shared by the member's reactors until each has taken its part.
pub struct Member {
    pub(super) device: Arc<dyn Device>,
    pub(super) options: MemberOptions,
    pub(super) progress: Box<dyn Fn(MemberProgress) + Send + Sync>,
    process: ProcessIdentity,
    pub(super) handle: AgentHandle,
    agent: Mutex<Option<AgentSeat>>,
    seats: Mutex<Vec<Option<Receiver<Job>>>>,
}

/// Makes the member leave when told to, as soon as the others can do without it; told twice, it leaves at once. Dropped, it
/// ends it as a crash would.
pub struct MemberStop(Sender<()>);

impl MemberStop {
    pub fn stop(&self) {
        let _ = self.0.try_send(()); // a third one is the second
    }
}

impl Member {
    /// A member on `device`, opened for its slot. [`Self::run`] is to be run on `1 + options.node.cores.len()` reactors.
    pub fn new(
        device: Arc<dyn Device>,
        options: MemberOptions,
        progress: impl Fn(MemberProgress) + Send + Sync + 'static,
    ) -> Result<(Arc<Member>, MemberStop), NodeError> {
        Member::with_process(device, options, ProcessIdentity::default(), progress)
    }

    /// As [`Self::new`], for a process that others can tell from its successors, and from those of another host.
    pub fn with_process(
        device: Arc<dyn Device>,
        mut options: MemberOptions,
        process: ProcessIdentity,
        progress: impl Fn(MemberProgress) + Send + Sync + 'static,
    ) -> Result<(Arc<Member>, MemberStop), NodeError> {
        let reactors = options.node.cores.len();
        if reactors == 0 {
            return Err(NodeError::Options("a node needs a core".into()));
        }
        if let Some(keys) = &options.node.keys {
            options.auth = keys.quorum().map_err(|e| NodeError::Options(e.to_string()))?;
        }
        let (jobs, seats): (Vec<_>, Vec<_>) = (0..reactors).map(|_| bounded(2)).unzip();
        let (questions, asked) = bounded(QUESTIONS);
        let (stop, stopped) = bounded(1);
        let member = Member {
            device,
            options,
            progress: Box::new(progress),
            process,
            handle: AgentHandle { questions, wrote: Arc::default() },
            agent: Mutex::new(Some(AgentSeat { jobs, questions: asked, stop: stopped })),
            seats: Mutex::new(seats.into_iter().map(Some).collect()),
        };
        Ok((Arc::new(member), MemberStop(stop)))
    }

    /// A way to ask the agent for its status.
    pub fn handle(&self) -> AgentHandle {
        self.handle.clone()
    }

    /// The life of reactor `index`, on the current reactor: 0 is the quorum's.
    pub async fn run(self: Arc<Self>, index: usize) {
        match index.checked_sub(1) {
            None => {
                let end = self.clone().attend().await;
                (self.progress)(MemberProgress::Ended(end));
            }
            Some(engine_index) => self.work(engine_index).await,
        }
    }

    /// Serves one leadership after the other.
    async fn work(&self, index: usize) {
        let seat = self.seats.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index).and_then(Option::take);
        let Some(mut jobs) = seat else { return };
        // One of them is lent to whoever leads.
        while let Some(job) = if index == 0 { self.lend(&mut jobs).await } else { jobs.recv().await } {
            job.run(index).await;
        }
    }

    /// What the engine of this member is started with.
    pub(super) fn engine_options(&self, members: &Membership) -> NodeOptions {
        let mut options = self.options.node.clone();
        let own = members.address(self.options.slot).map(Endpoint::Tcp);
        options.listen = own.into_iter().chain(options.listen).collect();
        options
    }

    async fn attend(self: Arc<Self>) -> Result<(), NodeError> {
        let seat = self.agent.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(AgentSeat { jobs, questions, mut stop }) = seat else { return Err(NodeError::Stopped) };
        // Whatever the agent spawned, and what it knows of the engine, ends with it.
        vellum_rt::scope(async move {
            let queue = PolledQueue::open(&*self.device, QUEUE_DEPTH, "quorum device").map_err(StoreError::from)?;
            let (members, blocks) = self.look(&queue).await?;
            let socket = self.bind(&members)?;
            let quorum = self.quorum(&queue, &members, &blocks).await?;
            let (slot, rid, term) = (self.options.slot, quorum.status(time()).rid, quorum.term());
            tracing::info!(%slot, %rid, %term, fsid = %members.fsid, "member of the quorum");
            self.tell(MemberProgress::Following { term });
            let engine = Engine::new(jobs, self.handle.clone());
            let agent = Agent::new(self.clone(), members, queue.clone(), quorum, engine);
            let figures = self.options.node.metrics.as_ref();
            let _figures = figures.map(|at| agent.give_figures(at)).transpose()?;
            spawn(Class::Commit, "questions to the quorum", answer(agent.clone(), questions)).detach();
            let leave = async {
                if stop.recv().await.is_some() && agent.wait_let_go(&mut stop).await {
                    agent.input(Quorum::leave);
                    std::future::pending::<()>().await;
                }
            };
            match first_of(agent.run(socket), leave).await {
                First::A(end) => end,
                First::B(()) => Err(NodeError::Stopped), // killed
            }
        })
        .await
    }

    fn tell(&self, progress: MemberProgress) {
        (self.progress)(progress);
    }

    async fn look(&self, queue: &Rc<dyn Queue>) -> Result<(Membership, [SlotState; Slot::COUNT]), NodeError> {
        let sb = vellum_store::read_superblock(queue).await?;
        let members = Membership::of(&sb);
        let slot = self.options.slot;
        if members.address(slot).is_none() {
            let known: Vec<String> = members.slots().map(|(slot, address)| format!("{slot}={address}")).collect();
            return Err(NodeError::Member(match known.is_empty() {
                true => "this filesystem has no quorum: serve it without --slot, or give it slots".into(),
                false => format!("slot {slot} is unknown to this filesystem; it has {}", known.join(", ")),
            }));
        }
        if let Some(refused) = self.engine_options(&members).refused_endpoint() {
            return Err(NodeError::Options(refused));
        }
        // Beyond loopback datagrams are believed by their tag alone.
        if !self.options.node.insecure_network {
            let addresses: Vec<SocketAddr> = members.slots().map(|(_, address)| address).collect();
            quorum_auth(self.options.node.keys.as_deref(), &addresses)
                .map_err(|e| NodeError::Options(e.to_string()))?;
        }
        let blocks = read_blocks(queue, &members).await;
        Ok((members, blocks))
    }

    fn bind(&self, members: &Membership) -> Result<Datagram, NodeError> {
        let Some(address) = members.address(self.options.slot) else { return Err(NodeError::Stopped) };
        Datagram::bind(address)
            .map_err(|e| NodeError::Listen { endpoint: format!("udp:{address}"), reason: e.to_string() })
    }

    async fn quorum(
        &self,
        queue: &Rc<dyn Queue>,
        members: &Membership,
        blocks: &[SlotState; Slot::COUNT],
    ) -> Result<Quorum, NodeError> {
        let rid = Rid(random_u64().max(1));
        let wall = wall_clock();
        let mut config = QuorumConfig::new(self.options.slot, members.configured(), rid, random_u64());
        config.timers = self.options.timers;
        config.process = self.process;
        // Of a run on this host nothing is left, or we had not got its lock.
        let before = blocks.get(self.options.slot.index()).and_then(SlotState::block).and_then(SlotBlock::running);
        config.watch = before.is_some_and(|begin| begin.process.boot_id != self.process.boot_id);
        config.wall_ms = u64::try_from(wall.secs).unwrap_or(0) * 1000 + u64::from(wall.nanos / 1_000_000);
        if blocks.iter().all(|block| *block == SlotState::Empty) {
            // Served without a quorum before: terms go on from there.
            config.floor = vellum_store::newest_term(queue).await?;
        }
        Quorum::new(config, blocks, time()).map_err(|e| NodeError::Member(e.to_string()))
    }
}

async fn answer(agent: Rc<Agent>, mut questions: Receiver<Question>) {
    while let Some(question) = questions.recv().await {
        agent.answer(question);
    }
}
