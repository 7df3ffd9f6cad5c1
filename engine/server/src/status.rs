//! What the node tells about itself: what it does, and every bound it keeps (P5).

use std::rc::Rc;

use serde_json::{Value, json};

use crate::client::Client;
use crate::identity;
use crate::mesh::{Answer, Ask};
use crate::reactor::Reactor;
use crate::recovery::Recovery;

/// Clients listed per reactor; the rest is counted.
const LISTED_CLIENTS: usize = 256;

impl Reactor {
    pub(crate) async fn status(self: &Rc<Self>) -> Value {
        let mut reactors = Vec::new();
        for reactor in self.mesh.all() {
            reactors.push(match self.ask(reactor, Ask::Status).await {
                Answer::Status(status) => status,
                _ => json!({ "reactor": reactor.0, "stopped": true }),
            });
        }
        let store = match self.backend.status().await {
            Ok(status) => status,
            Err(error) => json!({ "error": error.message }),
        };
        let quorum = match &self.options.quorum {
            Some(agent) => agent.status().await,
            None => None,
        };
        let (limits, timers) = (&self.options.limits, &self.options.timers);
        json!({
            "fsid": self.backend.fsid().to_string(),
            "term": self.backend.term().0,
            "durable_epoch": self.backend.durable_epoch().0,
            "limits": {
                "clients": limits.clients,
                "clients_per_identity": limits.clients_per_identity,
                "sockets_without_greeting": vellum_link::MAX_SILENT,
                "sockets_without_greeting_per_source": vellum_link::MAX_SILENT_PER_SOURCE,
                "requests_per_client": limits.requests,
                "data_bytes_per_client": limits.data_bytes,
                "locks_per_client_and_reactor": vellum_proto::locks::MAX_LOCKS_PER_CLIENT,
                "control_bytes_per_frame": vellum_wire::MAX_CONTROL,
                "file_locks_per_client_and_reactor": vellum_proto::files::MAX_FILE_LOCKS_PER_CLIENT,
                "file_lock_waits_per_client_and_reactor": vellum_proto::files::MAX_FILE_WAITS_PER_CLIENT,
                "unleased_opens_per_client_and_reactor": vellum_proto::files::MAX_OPENS_PER_CLIENT,
                "payload_bytes_per_frame": vellum_wire::MAX_PAYLOAD,
                "invalidation_ms": limits.invalidation.as_millis() as u64,
                "job_ms": limits.job.as_millis() as u64,
            },
            "timers_ms": {
                "keepalive": timers.keepalive.as_millis() as u64,
                "dead_peer": timers.dead_peer.as_millis() as u64,
                "greeting": timers.greeting.as_millis() as u64,
                "send_stall": timers.send_stall.as_millis() as u64,
                "lease": timers.lease.as_millis() as u64,
                "reconnect_window": timers.reconnect_window.as_millis() as u64,
                "recovery_window": timers.recovery_window.as_millis() as u64,
            },
            "reactors": reactors,
            "store": store,
            "quorum": quorum,
        })
    }

    /// One client for people.
    pub(crate) fn describe(&self, client: &Client) -> Value {
        let (requests, bytes) = client.session.load();
        json!({
            "rid": client.rid.to_string(),
            "who": identity::describe(&client.identity),
            "read_only": client.access.get().read_only,
            "confined_to": client.confined.as_ref().map(|confined| confined.path.to_text()),
            "phase": format!("{:?}", client.phase.get()).to_lowercase(),
            "connected": client.session.is_up(),
            "requests": requests,
            "bytes": bytes,
            "commits_in_work": client.commits.in_work(),
            "last_batch": client.applied.get().0,
            "locks_waited_for": client.locks.borrow().len(),
            "worker": client.seat().map(|seat| json!({
                "jobs": seat.in_hand(),
                "slot": client.identity.worker.and_then(|worker| worker.slot),
                "quiet": seat.is_quiet(),
            })),
        })
    }

    pub(crate) fn status_here(&self) -> Value {
        let clients = self.clients.borrow();
        let table = self.table.borrow();
        let listed: Vec<Value> = clients.values().take(LISTED_CLIENTS).map(|client| self.describe(client)).collect();
        let (stats, file_locks) = (table.stats(), self.files.borrow().stats());
        json!({
            "reactor": self.me.0,
            "clients": clients.len(),
            "client_list": listed,
            "clients_not_returned": self.known.borrow().len(),
            "clients_reclaimed": self.reclaimed.get(),
            "recovery_waits_for": self.recovery.borrow().as_ref().map_or(0, Recovery::missing),
            "stopping": self.stopping.get(),
            "latencies_us": self.latencies.borrow().json(),
            "file_locks": {
                "files": file_locks.files,
                "held": file_locks.held,
                "waiting": file_locks.waiting,
            },
            "unleased_opens": self.opens.borrow().len(),
            "workers": self.crew.len(),
            "workers_of_earlier_terms": self.old_workers.borrow().missing(),
            "locks": {
                "recovering": table.is_recovering(),
                "locks": stats.locks,
                "waited_for": stats.waiting,
                "clients": stats.clients,
                "granted": stats.granted,
                "invalidations": stats.invalidations,
            },
        })
    }
}
