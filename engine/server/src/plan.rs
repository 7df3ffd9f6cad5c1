//! How the reactors of a node start and stop together, in any world.
//!
//! ```text
//!  reactor 0: open the store -> seeds to all    -> all started: client records to all -> all ready: listen -> up
//!  others:      wait for the seed -> start store -> wait for the records -> start      -> wait for the end
//! ```
//! A failure anywhere ends all of them and is told once.

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use thiserror::Error;
use vellum_base::{Fsid, Rid, Term, probe};
use vellum_link::{InProcessDialer, InProcessListener, in_process};
use vellum_nvme::Device;
use vellum_rt::channel::{Receiver, Sender, bounded};
use vellum_rt::net::Endpoint;
use vellum_store::{PolledQueue, ReactorSeed, RecoveryReport, Store, StoreError};
use vellum_wire::WireError;

use crate::authority::TableAuthority;
use crate::backend::Backend;
use crate::fact::Fact;
use crate::first::{First, first_of};
use crate::mesh::{MeshEnds, mesh};
use crate::options::NodeOptions;
use crate::reactor::{Reactor, ReactorParts};
use crate::store_backend::StoreBackend;

#[derive(Error, Debug, Clone)]
pub enum NodeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Server(#[from] WireError),
    #[error("cannot listen on {endpoint}: {reason}")]
    Listen { endpoint: String, reason: String },
    #[error("{0}")]
    Options(String),
    /// The quorum does not have this node as a member, or not any more.
    #[error("{0}")]
    Member(String),
    /// The device refuses this node: another member has taken over.
    #[error("this node was fenced: {0}")]
    Fenced(String),
    #[error("reactors: {0}")]
    Reactors(String),
    #[error("the node has stopped")]
    Stopped,
}

/// A node that serves.
#[derive(Clone, Debug)]
pub struct Up {
    pub fsid: Fsid,
    pub term: Term,
    pub report: RecoveryReport,
    /// With the ports that were chosen where 0 was asked for.
    pub endpoints: Vec<Endpoint>,
}

/// Told from reactor 0: once when the node is up (or could not start), once when it has stopped.
#[derive(Clone, Debug)]
pub enum Progress {
    Up(Up),
    Failed(NodeError),
    Stopped(Result<(), NodeError>),
}

struct Slot {
    ends: MeshEnds,
    listener: InProcessListener,
    seed: Receiver<ReactorSeed>,
    known: Receiver<Vec<(Rid, Bytes)>>,
    /// Closes when the node ends.
    end: Receiver<()>,
}

/// Reactor 0's side of the start.
struct Leader {
    seeds: Vec<Sender<ReactorSeed>>,
    known: Vec<Sender<Vec<(Rid, Bytes)>>>,
    ends: Vec<Sender<()>>,
    /// One message per reactor and stage, or the error that ends it.
    reports: Receiver<Result<(), StoreError>>,
    stop: Receiver<()>,
}

/// Shared by the reactors of one node until each has taken its part.
pub struct Plan {
    device: Arc<dyn Device>,
    options: NodeOptions,
    slots: Mutex<Vec<Option<Slot>>>,
    leader: Mutex<Option<Leader>>,
    reports: Sender<Result<(), StoreError>>,
    progress: Box<dyn Fn(Progress) + Send + Sync>,
}

/// Stops the node when told to; dropped, it kills it: nothing is flushed, as after a crash.
pub struct StopHandle(Sender<()>);

impl StopHandle {
    pub fn stop(&self) {
        let _ = self.0.try_send(()); // a second one is the first
    }
}

fn take<T>(slot: &mut Option<T>) -> Result<T, NodeError> {
    slot.take().ok_or(NodeError::Stopped)
}

impl Plan {
    /// A node of `options.cores.len()` reactors; [`Self::run`] is to be run on each of them.
    pub fn new(
        device: Arc<dyn Device>,
        options: NodeOptions,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<(Arc<Plan>, InProcessDialer, StopHandle), NodeError> {
        if let Some(reason) = options.refused_endpoint() {
            return Err(NodeError::Options(reason));
        }
        let n = options.cores.len();
        if n == 0 {
            return Err(NodeError::Options("a node needs a core".into()));
        }
        let (dialer, listeners) = in_process(n, move |rid| {
            // A guess that is right while buckets are spread evenly; a wrong one costs a bridge, nothing else.
            usize::from(vellum_format::system::bucket_of_rid(rid).0) * n / 256
        });
        let (seeds, seed_rx): (Vec<_>, Vec<_>) = (0..n).map(|_| bounded(1)).unzip();
        let (known, known_rx): (Vec<_>, Vec<_>) = (0..n).map(|_| bounded(1)).unzip();
        let (ends, end_rx): (Vec<_>, Vec<_>) = (0..n).map(|_| bounded(1)).unzip();
        let (reports_tx, reports) = bounded(2 * n);
        let (stop_tx, stop) = bounded(1);
        let mut slots = Vec::with_capacity(n);
        let parts = mesh(n).into_iter().zip(listeners).zip(seed_rx).zip(known_rx).zip(end_rx);
        for ((((ends, listener), seed), known), end) in parts {
            slots.push(Some(Slot { ends, listener, seed, known, end }));
        }
        let plan = Plan {
            device,
            options,
            slots: Mutex::new(slots),
            leader: Mutex::new(Some(Leader { seeds, known, ends, reports, stop })),
            reports: reports_tx,
            progress: Box::new(progress),
        };
        Ok((Arc::new(plan), dialer, StopHandle(stop_tx)))
    }

    /// The life of reactor `index`, on the current reactor.
    pub async fn run(self: Arc<Self>, index: usize) {
        if index == 0 {
            let leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner).take();
            match leader {
                Some(leader) => match self.lead(leader).await {
                    Ok(stopped) => (self.progress)(Progress::Stopped(stopped)),
                    Err(error) => (self.progress)(Progress::Failed(error)),
                },
                None => (self.progress)(Progress::Failed(NodeError::Stopped)),
            }
        } else if let Err(error) = self.follow(index).await {
            tracing::debug!(index, %error, "reactor ended at its start");
        }
    }

    fn slot(&self, index: usize) -> Result<Slot, NodeError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get_mut(index).map_or(Err(NodeError::Stopped), take)
    }

    async fn follow(&self, index: usize) -> Result<(), NodeError> {
        let mut slot = self.slot(index)?;
        let seed = slot.seed.recv().await.ok_or(NodeError::Stopped)?;
        let (store, authority) = self.start_store(seed).await?;
        let known = slot.known.recv().await.ok_or(NodeError::Stopped)?;
        let reactor = self.start_reactor(slot.ends, slot.listener, store, authority, known);
        let _ = self.reports.send(Ok(())).await;
        slot.end.recv().await;
        drop(reactor);
        Ok(())
    }

    async fn start_store(&self, seed: ReactorSeed) -> Result<(Rc<Store>, TableAuthority), NodeError> {
        let authority = TableAuthority::default();
        let started = Store::start(seed, Rc::new(authority.clone())).await;
        let _ = self.reports.send(started.as_ref().map(|_| ()).map_err(Clone::clone)).await;
        Ok((started?, authority))
    }

    fn start_reactor(
        &self,
        ends: MeshEnds,
        listener: InProcessListener,
        store: Rc<Store>,
        authority: TableAuthority,
        known: Vec<(Rid, Bytes)>,
    ) -> Rc<Reactor> {
        let backend = Rc::new(StoreBackend::new(store, self.options.quorum.is_some()));
        let reactor = Reactor::start(ReactorParts { ends, backend, authority, options: self.options.clone(), known });
        reactor.listen_in_process(listener);
        reactor
    }

    /// Outer error: the node did not start. Inner: how it stopped.
    async fn lead(&self, mut leader: Leader) -> Result<Result<(), NodeError>, NodeError> {
        let n = self.options.cores.len();
        let mut slot = self.slot(0)?;
        let (report, seeds) = self.open().await?;
        for (to, seed) in leader.seeds.iter().zip(seeds) {
            let _ = to.send(seed).await;
        }
        let seed = slot.seed.recv().await.ok_or(NodeError::Stopped)?;
        let (store, authority) = self.start_store(seed).await?;
        for _ in 0..n {
            leader.reports.recv().await.ok_or(NodeError::Stopped)??;
        }
        // Before anybody listens, so that every reactor knows the same clients of the term before.
        let backend = StoreBackend::new(store.clone(), false);
        let known = backend.rids().await?;
        for to in &leader.known {
            let _ = to.send(known.clone()).await;
        }
        let reactor = self.start_reactor(slot.ends, slot.listener, store.clone(), authority, known);
        for _ in 1..n {
            leader.reports.recv().await.ok_or(NodeError::Stopped)??;
        }
        let mut endpoints = Vec::new();
        for endpoint in &self.options.listen {
            let bound = reactor
                .listen(endpoint)
                .map_err(|e| NodeError::Listen { endpoint: endpoint.to_string(), reason: e.to_string() })?;
            endpoints.push(bound);
        }
        if let Some(at) = &self.options.metrics {
            let bound = reactor
                .give_metrics(at)
                .map_err(|e| NodeError::Listen { endpoint: at.to_string(), reason: e.to_string() })?;
            tracing::info!(%bound, "metrics");
        }
        if let Some(asks) = &self.options.status_asks {
            reactor.answer_member(asks);
        }
        let (fsid, term) = (backend.fsid(), backend.term());
        tracing::info!(%fsid, %term, "serving");
        probe::tell(|| Fact::Serving { term });
        (self.progress)(Progress::Up(Up { fsid, term, report, endpoints }));
        // A single node stays, and says what is wrong; of a cluster, another one may do better.
        let fails = async {
            match self.options.quorum {
                Some(_) => store.until_failed().await,
                None => std::future::pending().await,
            }
        };
        let stopped = match first_of(fails, leader.stop.recv()).await {
            First::A(failed) => Err(failed.into()),
            First::B(Some(())) => reactor.shutdown().await.map_err(NodeError::from),
            First::B(None) => Ok(()), // killed
        };
        drop(leader.ends);
        Ok(stopped)
    }

    async fn open(&self) -> Result<(RecoveryReport, Vec<ReactorSeed>), NodeError> {
        let queue =
            PolledQueue::open(&*self.device, self.options.store.queue_depth, "device").map_err(StoreError::from)?;
        let options = vellum_store::OpenOptions {
            reactors: self.options.cores.len(),
            withhold: true, // until the workers of the terms before are known to be quiet
            ..self.options.store.clone()
        };
        let opened = vellum_store::open(&self.device, &queue, options).await?;
        Ok((opened.report, opened.seeds))
    }
}
