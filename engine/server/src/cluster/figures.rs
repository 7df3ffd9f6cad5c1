//! A member's figures for a monitoring system, whether it leads or follows: the engine's status while it leads, and else what it
//! sees of the quorum.

use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use vellum_rt::JoinHandle;
use vellum_rt::channel::{Receiver, Sender, bounded};
use vellum_rt::net::Endpoint;
use vellum_rt::timeout;

use super::agent::{Agent, time};
use super::status::quorum_status;
use crate::metrics;
use crate::plan::NodeError;

/// An engine that starts, or ends, answers nobody: then the member says what it knows itself.
const ENGINE_ANSWERS: Duration = Duration::from_secs(1);
/// Questions that wait for the engine.
const ASKS: usize = 8;

/// Questions for the engine's status, to be taken by its first reactor.
#[derive(Clone)]
pub struct StatusAsks(Arc<Mutex<Option<Receiver<Sender<Value>>>>>);

impl StatusAsks {
    /// Where to ask, and what the engine is started with.
    pub(super) fn new() -> (Sender<Sender<Value>>, StatusAsks) {
        let (ask, asked) = bounded(ASKS);
        (ask, StatusAsks(Arc::new(Mutex::new(Some(asked)))))
    }

    pub(crate) fn take(&self) -> Option<Receiver<Sender<Value>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for StatusAsks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StatusAsks")
    }
}

impl Agent {
    /// Answers on `at` as long as the handle lives.
    pub(super) fn give_figures(self: &Rc<Self>, at: &Endpoint) -> Result<JoinHandle<()>, NodeError> {
        let agent = Rc::downgrade(self);
        let source: metrics::Source = Rc::new(move || {
            let agent = agent.clone();
            Box::pin(async move {
                match agent.upgrade() {
                    Some(agent) => agent.figures().await,
                    None => Value::Null,
                }
            })
        });
        let listen = |e: std::io::Error| NodeError::Listen { endpoint: at.to_string(), reason: e.to_string() };
        let (bound, task) = metrics::serve(at, source).map_err(listen)?;
        tracing::info!(%bound, "metrics");
        Ok(task)
    }

    async fn figures(&self) -> Value {
        if let Some(asks) = self.engine.asks() {
            let (answer, mut answered) = bounded(1);
            if asks.try_send(answer).is_ok()
                && let Ok(Some(Value::Object(mut status))) = timeout(ENGINE_ANSWERS, answered.recv()).await
            {
                status.insert("leads".into(), 1.into());
                return Value::Object(status);
            }
        }
        let (status, members) = (self.quorum.borrow().status(time()), self.members());
        let leader = status.leader.filter(|leader| *leader != status.slot);
        let heard = status.peers.iter().find(|peer| Some(peer.slot) == leader).and_then(|peer| peer.heard_ago);
        json!({
            "fsid": members.fsid.to_string(),
            "term": status.term.0,
            "leads": 0,
            "leader_address": leader.and_then(|leader| members.address(leader)).map(|address| address.to_string()),
            "leader_heard_ms_ago": heard.map(|ago| ago.as_millis() as u64),
            "quorum": quorum_status(&status, &members),
        })
    }
}
