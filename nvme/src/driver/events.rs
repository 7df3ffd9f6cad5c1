//! Asynchronous events (NVMe base 5.2): asked for, logged, looked into, asked for again.

use std::collections::VecDeque;

use vellum_base::dma::SharedPages;
use zerocopy::FromBytes;

use super::admin::{AdminQueue, AdminTicket, page};
use super::namespace::NamespaceInfo;
use super::{ControllerError, Transport};
use crate::spec::{ALL_NAMESPACES, AsyncEvent, Cns, IDENTIFY_BYTES, LogPage, PAGE_BYTES, SmartLog, Submission};

/// Requests at the controller at most (of AERL + 1 that it takes).
const MAX_REQUESTS: usize = 4;
/// Events remembered for people.
const MAX_HISTORY: usize = 32;

enum Look {
    Nothing,
    /// At the log page that an event named.
    Log(AdminTicket, AsyncEvent),
    /// At the namespace with this index among the watched.
    Namespace(AdminTicket, usize),
}

pub(super) struct Events {
    requests: Vec<AdminTicket>,
    max_requests: usize,
    pending: VecDeque<AsyncEvent>,
    look: Look,
    /// Namespaces that somebody uses.
    watched: Vec<NamespaceInfo>,
    history: VecDeque<String>,
}

impl Events {
    pub fn new() -> Events {
        Events {
            requests: Vec::new(),
            max_requests: 0,
            pending: VecDeque::new(),
            look: Look::Nothing,
            watched: Vec::new(),
            history: VecDeque::new(),
        }
    }

    /// After a bring-up: no request is at the controller. `max_requests` is what it takes.
    pub fn restart(&mut self, max_requests: usize) {
        self.requests.clear();
        self.max_requests = max_requests.min(MAX_REQUESTS);
        self.look = Look::Nothing;
    }

    pub fn watch(&mut self, namespace: &NamespaceInfo) {
        if !self.watched.iter().any(|known| known.nsid == namespace.nsid) {
            self.watched.push(namespace.clone());
        }
    }

    pub fn history(&self) -> Vec<String> {
        self.history.iter().cloned().collect()
    }

    fn note(&mut self, text: String) {
        tracing::warn!("{text}");
        if self.history.len() == MAX_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(text);
    }

    /// An error: a namespace in use has vanished or changed.
    pub fn poll<T: Transport>(&mut self, transport: &T, admin: &mut AdminQueue) -> Result<(), ControllerError> {
        let mut index = 0;
        while let Some(ticket) = self.requests.get(index).copied() {
            match admin.take(ticket) {
                Ok(None) => {
                    index += 1;
                    continue;
                }
                Ok(Some((done, _))) if done.status().is_success() => {
                    let event = AsyncEvent(done.result.get());
                    self.note(format!("event: {}", event.describe()));
                    if self.pending.len() < MAX_REQUESTS {
                        self.pending.push_back(event);
                    }
                }
                // It takes fewer than it said.
                Ok(Some(_)) => self.max_requests = self.requests.len() - 1,
                Err(_) => {}
            }
            self.requests.remove(index);
        }
        self.look_on(transport, admin)?;
        while self.requests.len() + self.pending.len() < self.max_requests && matches!(self.look, Look::Nothing) {
            match admin.submit(Submission::async_event_request(), None, transport) {
                Ok(ticket) => self.requests.push(ticket),
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn look_on<T: Transport>(&mut self, transport: &T, admin: &mut AdminQueue) -> Result<(), ControllerError> {
        match std::mem::replace(&mut self.look, Look::Nothing) {
            Look::Nothing => {
                if let Some(event) = self.pending.pop_front() {
                    // Reading the log allows the controller to report this kind again.
                    self.look = match LogPage::from_id(u32::from(event.log_page())) {
                        Some(log) => {
                            let len = if log == LogPage::Smart { size_of::<SmartLog>() } else { PAGE_BYTES };
                            let command = Submission::get_log_page(log, ALL_NAMESPACES, len);
                            Look::Log(admin.submit(command, Some(page()?), transport)?, event)
                        }
                        None => Look::Nothing,
                    };
                }
            }
            Look::Log(ticket, event) => match admin.take(ticket) {
                Ok(None) => self.look = Look::Log(ticket, event),
                Ok(Some((_, Some(bytes)))) if event.kind() == 1 => self.report_health(&bytes),
                Ok(_) if event.is_namespace_change() => self.look = self.look_at(0, transport, admin)?,
                _ => {}
            },
            Look::Namespace(ticket, index) => match admin.take(ticket) {
                Ok(None) => self.look = Look::Namespace(ticket, index),
                Ok(Some((done, Some(bytes)))) => {
                    if let Some(known) = self.watched.get(index) {
                        let mut identity = [0; IDENTIFY_BYTES];
                        bytes.copy_to(&mut identity);
                        if !done.status().is_success() {
                            identity.fill(0);
                        }
                        check(known, &identity)?;
                    }
                    self.look = self.look_at(index + 1, transport, admin)?;
                }
                _ => {}
            },
        }
        Ok(())
    }

    fn look_at<T: Transport>(
        &self,
        index: usize,
        transport: &T,
        admin: &mut AdminQueue,
    ) -> Result<Look, ControllerError> {
        let Some(known) = self.watched.get(index) else { return Ok(Look::Nothing) };
        let command = Submission::identify(Cns::Namespace, known.nsid);
        Ok(Look::Namespace(admin.submit(command, Some(page()?), transport)?, index))
    }

    fn report_health(&mut self, bytes: &SharedPages) {
        let mut log = [0; size_of::<SmartLog>()];
        bytes.copy_to(&mut log);
        if let Ok(log) = SmartLog::read_from_bytes(&log) {
            for warning in log.warnings() {
                self.note(format!("health: {warning}"));
            }
        }
    }
}

/// A namespace that shrank, changed its LBAs or went away is not the device that was opened.
fn check(known: &NamespaceInfo, identity: &[u8; IDENTIFY_BYTES]) -> Result<(), ControllerError> {
    let now = NamespaceInfo::parse(known.nsid, identity, None)?;
    if now.size_lbas < known.size_lbas || now.lba_shift != known.lba_shift {
        return Err(ControllerError::Namespace { nsid: known.nsid, what: "has shrunk or was formatted" });
    }
    Ok(())
}
