//! What the node tells about itself: what it does, and every bound it keeps (P5).

use std::rc::Rc;

use serde_json::{Value, json};

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
        let (limits, timers) = (&self.options.limits, &self.options.timers);
        json!({
            "fsid": self.backend.fsid().to_string(),
            "term": self.backend.term().0,
            "durable_epoch": self.backend.durable_epoch().0,
            "limits": {
                "clients": limits.clients,
                "requests_per_client": limits.requests,
                "data_bytes_per_client": limits.data_bytes,
                "locks_per_client_and_reactor": vellum_proto::locks::MAX_LOCKS_PER_CLIENT,
                "control_bytes_per_frame": vellum_wire::MAX_CONTROL,
                "payload_bytes_per_frame": vellum_wire::MAX_PAYLOAD,
                "invalidation_ms": limits.invalidation.as_millis() as u64,
                "job_ms": limits.job.as_millis() as u64,
            },
            "timers_ms": {
                "keepalive": timers.keepalive.as_millis() as u64,
                "dead_peer": timers.dead_peer.as_millis() as u64,
                "lease": timers.lease.as_millis() as u64,
                "reconnect_window": timers.reconnect_window.as_millis() as u64,
                "recovery_window": timers.recovery_window.as_millis() as u64,
            },
            "reactors": reactors,
            "store": store,
        })
    }

    pub(crate) fn status_here(&self) -> Value {
        let clients = self.clients.borrow();
        let table = self.table.borrow();
        let listed: Vec<Value> = clients
            .values()
            .take(LISTED_CLIENTS)
            .map(|client| {
                let (requests, bytes) = client.session.load();
                json!({
                    "rid": client.rid.to_string(),
                    "phase": format!("{:?}", client.phase.get()).to_lowercase(),
                    "connected": client.session.is_up(),
                    "requests": requests,
                    "bytes": bytes,
                    "commits_in_work": client.commits.in_work(),
                    "last_batch": client.applied.get().0,
                    "locks_waited_for": client.locks.borrow().len(),
                    "worker": client.seat().map(|seat| json!({
                        "jobs": seat.in_hand(), "slot": client.identity.slot, "quiet": seat.is_quiet()
                    })),
                })
            })
            .collect();
        let stats = table.stats();
        json!({
            "reactor": self.me.0,
            "clients": clients.len(),
            "client_list": listed,
            "clients_not_returned": self.known.borrow().len(),
            "clients_reclaimed": self.reclaimed.get(),
            "recovery_waits_for": self.recovery.borrow().as_ref().map_or(0, Recovery::missing),
            "stopping": self.stopping.get(),
            "workers": self.crew.len(),
            "workers_of_earlier_terms": self.old_workers.borrow().missing(),
            "locks": {
                "recovering": table.is_recovering(),
                "locks": stats.locks,
                "clients": stats.clients,
                "granted": stats.granted,
                "invalidations": stats.invalidations,
            },
        })
    }
}
