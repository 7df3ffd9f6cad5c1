//! What an operator asks: who holds which lock, who the clients are, and to give one of them up.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Value, json};
use vellum_base::{Rid, Slot};
use vellum_format::Principal;
use vellum_link::Responder;
use vellum_proto::Time;
use vellum_proto::files::{FileLockInfo, Held};
use vellum_rt::{Class, now, spawn};
use vellum_wire::{AdminRequest, ErrorCode, FileLockSpace, LockMode, LockName, Response, WireError};

use crate::client::Client;
use crate::cluster::{NotNow, SlotEdit};
use crate::mesh::{Answer, Ask};
use crate::reactor::Reactor;

/// Clients of one lock table whose locks are counted for the list of clients.
const COUNTED_CLIENTS: usize = 4096;

impl Reactor {
    pub(crate) fn admin(self: &Rc<Self>, client: &Rc<Client>, what: AdminRequest, responder: Responder) {
        // Plain TCP on loopback is everybody on the host.
        let known = client.identity.principal != Principal::Anybody || self.options.insecure_network;
        if what.is_restricted() && !(known && client.access.get().node) {
            let why = "only root, the engine's own user, or a node's certificate may do that";
            return responder.fail(ErrorCode::NotPermitted, why);
        }
        let (reactor, client) = (self.clone(), client.clone());
        spawn(Class::Request, "admin", async move {
            let answer = match what {
                AdminRequest::Grow
                | AdminRequest::Scrub { .. }
                | AdminRequest::StopScrub
                | AdminRequest::MoveShard { .. }
                | AdminRequest::ScrubStatus => match reactor.backend.admin(what).await {
                    Ok(json) => Ok(json),
                    Err(error) => return responder.fail(error.code, error.message),
                },
                AdminRequest::Locks { max } => Ok(reactor.list_locks(max as usize).await),
                AdminRequest::Clients { max } => Ok(reactor.list_clients(max as usize).await),
                AdminRequest::Evict { rid } => reactor.evict(rid, client.rid).await.map_err(not_found),
                AdminRequest::SetSlot { slot, address, dead } => {
                    reactor.set_slot(SlotEdit { slot: Slot(slot), address, dead }).await
                }
            };
            match answer {
                Ok(json) => reactor.reply(&client, responder, Response::Status { json: json.to_string() }),
                Err(error) => responder.fail(error.code, error.message),
            }
        })
        .detach();
    }

    async fn ask_operators_share(self: &Rc<Self>, what: AdminRequest) -> Vec<Value> {
        let mut answers = Vec::new();
        for reactor in self.mesh.all() {
            if let Answer::Status(value) = self.ask(reactor, Ask::Admin(what)).await {
                answers.push(value);
            }
        }
        answers
    }

    async fn list_locks(self: &Rc<Self>, max: usize) -> Value {
        let tables = self.ask_operators_share(AdminRequest::Locks { max: max as u32 }).await;
        let sum = |name: &str| tables.iter().filter_map(|t| t[name].as_u64()).sum::<u64>();
        let mut listed: Vec<Value> = tables.iter().filter_map(|t| t["listed"].as_array()).flatten().cloned().collect();
        listed.sort_by_key(|lock| std::cmp::Reverse(lock["longest_wait_ms"].as_u64().unwrap_or(0)));
        listed.truncate(max);
        let left_off = sum("locks").saturating_sub(listed.len() as u64);
        let mut files: Vec<Value> = tables.iter().filter_map(|t| t["files"].as_array()).flatten().cloned().collect();
        files.sort_by_key(|file| file["waiting"] == 0);
        files.truncate(max);
        json!({
            "file_locks": { "files": sum("locked_files"), "held": sum("file_locks_held"),
                            "waiting": sum("file_locks_waiting"), "listed": files },
            "term": self.backend.term().0,
            "locks": sum("locks"), "waited_for": sum("waited_for"), "waiting": sum("waiting"),
            "listed": listed, "left_off": left_off,
        })
    }

    async fn list_clients(self: &Rc<Self>, max: usize) -> Value {
        let homes = self.ask_operators_share(AdminRequest::Clients { max: max as u32 }).await;
        let mut locks: BTreeMap<String, u64> = BTreeMap::new();
        for counted in homes.iter().filter_map(|home| home["locks"].as_object()) {
            for (rid, n) in counted {
                *locks.entry(rid.clone()).or_default() += n.as_u64().unwrap_or(0);
            }
        }
        let total: u64 = homes.iter().filter_map(|home| home["clients"].as_u64()).sum();
        let mut listed: Vec<Value> = homes.iter().filter_map(|h| h["listed"].as_array()).flatten().cloned().collect();
        listed.truncate(max);
        for client in &mut listed {
            let held = client["rid"].as_str().and_then(|rid| locks.get(rid)).copied().unwrap_or(0);
            client["locks"] = held.into();
        }
        let left_off = total.saturating_sub(listed.len() as u64);
        json!({ "term": self.backend.term().0, "clients": total, "listed": listed, "left_off": left_off })
    }

    /// One slot of the quorum, while the cluster serves: judged by the quorum's agent, written by the store.
    async fn set_slot(self: &Rc<Self>, edit: SlotEdit) -> Result<Value, WireError> {
        let refused = |message: String| WireError { code: ErrorCode::NotPermitted, message };
        let judged = |no: NotNow| match no {
            NotNow::Never(message) => refused(message),
            NotNow::Later(message) => WireError { code: ErrorCode::Busy, message },
        };
        let Some(agent) = &self.options.quorum else {
            return Err(refused("a single node serves this: there is no quorum to change".into()));
        };
        let table = agent.judge(edit).await.map_err(judged)?;
        self.backend.change_slots(table).await?;
        let slots = agent.changed().await.ok_or_else(|| refused("this member ends".into()))?;
        tracing::warn!(slot = %edit.slot, address = ?edit.address, "an operator has changed the quorum");
        Ok(json!({ "changed": slots }))
    }

    async fn evict(self: &Rc<Self>, rid: Rid, by: Rid) -> Result<Value, String> {
        tracing::warn!(%rid, %by, "an operator evicts the client");
        match self.ask(self.backend.home_of(rid), Ask::Admin(AdminRequest::Evict { rid })).await {
            Answer::Refused(why) => Err(why),
            _ => Ok(json!({ "evicted": rid.to_string(),
                            "reclaimed_within_ms": self.options.timers.recovery_window.as_millis() as u64 })),
        }
    }

    /// This reactor's share of the answer.
    pub(crate) fn admin_here(self: &Rc<Self>, what: AdminRequest) -> Answer {
        match what {
            AdminRequest::Locks { max } => Answer::Status(self.locks_here(max as usize)),
            AdminRequest::Clients { max } => Answer::Status(self.clients_here(max as usize)),
            AdminRequest::Evict { rid } => match self.client(rid) {
                // A lost worker has no connection to lose: the operator says that it is dead, and its blocks come back.
                Some(client) if client.seat().is_some_and(|seat| seat.is_lost()) => {
                    self.worker_is_quiet(&client, "an operator says that it is gone");
                    Answer::Done
                }
                Some(client) => {
                    client.session.evict();
                    Answer::Done
                }
                None => self.evict_absent(rid),
            },
            AdminRequest::SetSlot { .. } => Answer::Refused("the home of the question answers it".into()),
            AdminRequest::Grow
            | AdminRequest::Scrub { .. }
            | AdminRequest::StopScrub
            | AdminRequest::ScrubStatus
            | AdminRequest::MoveShard { .. } => Answer::Refused("the store is asked for that".into()),
        }
    }

    /// A client of the term before that did not come back yet.
    fn evict_absent(self: &Rc<Self>, rid: Rid) -> Answer {
        let known = self.known.borrow().get(&rid).map(|known| known.as_ref().is_some_and(|who| who.worker.is_some()));
        match known {
            None => return Answer::Refused(format!("no client {rid}")),
            Some(true) => self.reclaim_old_worker_here(rid),
            // It may believe in its lease as long as the recovery window lasts: it is let in no more, and reclaimed then.
            Some(false) => drop(self.evicted.borrow_mut().insert(rid)),
        }
        Answer::Done
    }

    fn locks_here(&self, max: usize) -> Value {
        let (list, at) = (self.table.borrow().list(max), Time(now().0));
        let ms = |since: Time| (at - since).as_millis() as u64;
        let listed: Vec<Value> = list
            .listed
            .iter()
            .map(|lock| {
                let holders = lock.holders.iter().map(|h| {
                    let asked = h.invalidating.map(mode);
                    json!({ "rid": h.rid.to_string(), "mode": mode(h.mode), "since_ms": ms(h.since), "asked_for": asked })
                });
                let waiters = lock.waiters.iter().map(|w| {
                    json!({ "rid": w.rid.to_string(), "mode": mode(w.mode), "since_ms": ms(w.since) })
                });
                json!({
                    "lock": name(lock.name),
                    "longest_wait_ms": lock.waiters.iter().map(|w| ms(w.since)).max(),
                    "holding": lock.holding, "holders": holders.collect::<Vec<_>>(),
                    "waiting": lock.waiting, "waiters": waiters.collect::<Vec<_>>(),
                })
            })
            .collect();
        let (files, stats) = (self.files.borrow().list(max), self.files.borrow().stats());
        json!({
            "locks": list.locks, "waited_for": list.waited_for, "waiting": list.waiting, "listed": listed,
            "locked_files": stats.files, "file_locks_held": stats.held, "file_locks_waiting": stats.waiting,
            "files": files.iter().map(file).collect::<Vec<_>>(),
        })
    }

    fn clients_here(&self, max: usize) -> Value {
        let clients = self.clients.borrow();
        let listed: Vec<Value> = clients.values().take(max).map(|client| self.describe(client)).collect();
        let table = self.table.borrow();
        let locks: serde_json::Map<String, Value> =
            table.places().take(COUNTED_CLIENTS).map(|(rid, n)| (rid.to_string(), n.into())).collect();
        json!({ "clients": clients.len(), "listed": listed, "locks": locks })
    }
}

/// The file locks of one file.
fn file(info: &FileLockInfo) -> Value {
    let one = |(space, held): &(FileLockSpace, Held)| {
        json!({
            "rid": held.owner.rid.to_string(),
            "kind": match space { FileLockSpace::Posix => "fcntl", FileLockSpace::Flock => "flock" },
            "mode": format!("{:?}", held.mode).to_lowercase(),
            "start": held.start, "end": held.end, "pid": held.pid,
        })
    };
    json!({
        "ino": info.ino.0,
        "holding": info.holding, "holders": info.holders.iter().map(one).collect::<Vec<_>>(),
        "waiting": info.waiting, "waiters": info.waiters.iter().map(one).collect::<Vec<_>>(),
    })
}

fn not_found(message: String) -> WireError {
    WireError { code: ErrorCode::NotFound, message }
}

fn mode(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Null => "null",
        LockMode::Read => "read",
        LockMode::Write => "write",
    }
}

fn name(name: LockName) -> String {
    match name {
        LockName::Rename => "rename".into(),
        LockName::Group(group) => format!("group {group}"),
    }
}
