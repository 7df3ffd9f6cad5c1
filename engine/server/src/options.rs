//! What an operator may choose, and the bounds that follow.

use std::sync::Arc;
use std::time::Duration;

use vellum_keys::Keys;
use vellum_proto::{Timers, Window};
use vellum_rt::native::PollMode;
use vellum_rt::net::Endpoint;
use vellum_store::{OpenOptions, Prefer};

use crate::crew::WorkerProbe;

use crate::cluster::{AgentHandle, StatusAsks};
use crate::mounted::Mounted;

/// Bounds of what clients may make the node hold (P5); all are in its status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    pub clients: u32,
    /// Of these with one identity (a certificate, a uid).
    pub clients_per_identity: u32,
    /// Unanswered requests of one client.
    pub requests: u32,
    /// Bytes of data and batches that unanswered requests of one client stand for.
    pub data_bytes: u32,
    /// A client that has not answered an invalidation by then is given up.
    pub invalidation: Duration,
    /// A compaction that a worker has not answered by then is lost (longer ones get more time).
    pub job: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            clients: 4096,
            clients_per_identity: 2048,
            requests: 1024,
            data_bytes: 64 << 20,
            invalidation: Duration::from_secs(60),
            job: Duration::from_secs(60),
        }
    }
}

impl Limits {
    pub(crate) fn window(&self) -> Window {
        Window { max_requests: self.requests, max_bytes: u64::from(self.data_bytes) }
    }
}

// One request may stand for a megabyte of data or a whole batch; a client that keeps a device busy needs several.
const _: () = assert!(vellum_wire::MAX_PAYLOAD <= 4 << 20 && vellum_base::batch::MAX_BATCH_BYTES <= 4 << 20);

#[derive(Clone, Debug)]
pub struct NodeOptions {
    pub listen: Vec<Endpoint>,
    /// Where figures are given to a monitoring system: a unix socket, or loopback.
    pub metrics: Option<Endpoint>,
    /// One reactor per entry, pinned where it names a core.
    pub cores: Vec<Option<usize>>,
    pub timers: Timers,
    pub limits: Limits,
    /// Users that may connect over unix sockets, besides root and the node's own.
    pub allowed_uids: Vec<u32>,
    /// With a node's keys every TCP socket is TLS with certificates on both sides; without, TCP stays on loopback.
    pub keys: Option<Arc<Keys>>,
    /// Plain TCP beyond loopback. For simulations: no command sets it.
    pub insecure_network: bool,
    pub poll: PollMode,
    /// `reactors` in it is ignored: `cores` says.
    pub store: OpenOptions,
    /// Set by the member of a cluster whose engine this is. Such an engine ends when its store fails, and what it cannot
    /// answer is left to the next leader.
    pub quorum: Option<AgentHandle>,
    /// Who runs compactions first while there are workers.
    pub prefer: Prefer,
    /// Of a member, which gives the figures of its engine itself.
    pub status_asks: Option<StatusAsks>,
    /// Of a member: who is mounted, for the quorum.
    pub mounted: Option<Arc<Mounted>>,
    /// What the cluster knows of members that worked and were lost; without one, their processes are looked at.
    pub worker_probe: Option<Arc<dyn WorkerProbe>>,
}

impl Default for NodeOptions {
    fn default() -> NodeOptions {
        NodeOptions {
            listen: Vec::new(),
            metrics: None,
            cores: vec![None],
            timers: Timers::DEFAULT,
            limits: Limits::default(),
            allowed_uids: Vec::new(),
            keys: None,
            insecure_network: false,
            poll: PollMode::Adaptive,
            store: OpenOptions::default(),
            quorum: None,
            prefer: Prefer::default(),
            status_asks: None,
            mounted: None,
            worker_probe: None,
        }
    }
}

impl NodeOptions {
    /// Why this node must not listen where it was told to.
    pub fn refused_endpoint(&self) -> Option<String> {
        if let Some(endpoint @ Endpoint::Tcp(addr)) = &self.metrics
            && !addr.ip().is_loopback()
        {
            return Some(format!("{endpoint}: metrics are given on a unix socket or on loopback alone"));
        }
        if let Some(keys) = &self.keys {
            return keys.server().err().map(|error| error.to_string());
        }
        self.listen.iter().find_map(|endpoint| match endpoint {
            Endpoint::Tcp(addr) if !addr.ip().is_loopback() && !self.insecure_network => Some(format!(
                "{endpoint} is reachable from the network: that needs a node's keys (vellum keys, --keys); without, \
                 listen on a unix socket or on loopback"
            )),
            _ => None,
        })
    }
}
