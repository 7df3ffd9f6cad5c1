//! Reset and initialisation (NVMe base 3.5.1) as a state machine: polled, so that a reset holds up no reactor.
//!
//! Passing `Step::Stop` means that the controller has shown CSTS.RDY = 0: it has forgotten all queues and commands, and
//! touches none of the memory that they had.

use std::sync::Arc;
use std::task::Poll;

use super::admin::{AdminQueue, AdminTicket, page};
use super::controller::ControllerInfo;
use super::reservation::{SET_HOST, host_page};
use super::rings::DoorbellBuffers;
use super::{ControllerError, Transport};
use crate::reservation::HostId;
use crate::spec::{
    AsyncEvent, Capabilities, Cns, Completion, Configuration, ControllerStatus, Feature, IDENTIFY_BYTES, Register,
    Submission,
};

/// What the bring-up learns.
#[derive(Clone)]
pub(super) struct Learned {
    pub info: ControllerInfo,
    /// IO queue pairs granted.
    pub queues: u16,
    pub buffers: Option<Arc<DoorbellBuffers>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// CC.EN is to be cleared.
    Disable,
    /// CSTS.RDY is to fall.
    Stop,
    /// CSTS.RDY is to rise.
    Start,
    Identify,
    Queues,
    Doorbells,
    Host,
    Events,
}

pub(super) struct BringUp {
    step: Step,
    ticket: Option<AdminTicket>,
    deadline_ms: u64,
    admin_timeout_ms: u64,
    want_queues: u16,
    info: Option<ControllerInfo>,
    queues: u16,
    buffers: Option<Arc<DoorbellBuffers>>,
    host: Option<HostId>,
}

impl BringUp {
    /// `want_queues`: IO queue pairs to ask for. `host`: who we are to reservations, which a reset makes it forget.
    pub fn new(want_queues: u16, admin_timeout_ms: u64, host: Option<HostId>) -> BringUp {
        BringUp {
            step: Step::Disable,
            ticket: None,
            deadline_ms: 0,
            admin_timeout_ms,
            want_queues,
            info: None,
            queues: 0,
            buffers: None,
            host,
        }
    }

    pub fn poll<T: Transport>(
        &mut self,
        transport: &T,
        admin: &mut AdminQueue,
        now_ms: u64,
    ) -> Poll<Result<Learned, ControllerError>> {
        loop {
            let moved = match self.step {
                Step::Disable | Step::Stop | Step::Start => self.registers(transport, admin, now_ms),
                _ => self.command(transport, admin, now_ms),
            };
            match moved {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
                Poll::Ready(Ok(None)) => {}
                Poll::Ready(Ok(Some(learned))) => return Poll::Ready(Ok(learned)),
            }
        }
    }

    fn registers<T: Transport>(
        &mut self,
        transport: &T,
        admin: &mut AdminQueue,
        now_ms: u64,
    ) -> Poll<Result<Option<Learned>, ControllerError>> {
        let status = ControllerStatus(transport.register(Register::Csts));
        if status.is_gone() {
            return Poll::Ready(Err(ControllerError::Gone));
        }
        let cap = Capabilities(transport.read64(Register::Cap as u32));
        let late = now_ms > self.deadline_ms;
        let waited_ms = cap.ready_timeout_ms();
        match self.step {
            Step::Disable => {
                let cc = Configuration(transport.register(Register::Cc));
                transport.set_register(Register::Cc, cc.disabled().0);
                self.go(Step::Stop, now_ms + waited_ms);
            }
            Step::Stop if !status.is_ready() => {
                admin.restart();
                let (submissions, completions) = admin.addresses(transport)?;
                transport.set_register(Register::Aqa, admin.attributes().0);
                transport.write64(Register::Asq as u32, submissions);
                transport.write64(Register::Acq as u32, completions);
                transport.set_register(Register::Cc, Configuration::enabled().0);
                self.go(Step::Start, now_ms + waited_ms);
            }
            Step::Start if status.is_fatal() => return Poll::Ready(Err(ControllerError::Fatal)),
            Step::Start if status.is_ready() => self.go(Step::Identify, now_ms),
            _ if late && self.step == Step::Stop => {
                return Poll::Ready(Err(ControllerError::NotReady { what: "disabled", waited_ms }));
            }
            _ if late => return Poll::Ready(Err(ControllerError::NotReady { what: "ready", waited_ms })),
            _ => return Poll::Pending,
        }
        Poll::Ready(Ok(None))
    }

    fn go(&mut self, step: Step, deadline_ms: u64) {
        (self.step, self.deadline_ms, self.ticket) = (step, deadline_ms, None);
    }

    fn command<T: Transport>(
        &mut self,
        transport: &T,
        admin: &mut AdminQueue,
        now_ms: u64,
    ) -> Poll<Result<Option<Learned>, ControllerError>> {
        let Some(ticket) = self.ticket else {
            self.ticket = Some(self.submit(transport, admin)?);
            self.deadline_ms = now_ms + self.admin_timeout_ms;
            return Poll::Ready(Ok(None));
        };
        admin.poll(transport);
        let Some((done, page)) = admin.take(ticket)? else {
            if ControllerStatus(transport.register(Register::Csts)).is_gone() {
                return Poll::Ready(Err(ControllerError::Gone));
            }
            if now_ms > self.deadline_ms {
                let (what, waited_ms) = (self.what(), self.admin_timeout_ms);
                return Poll::Ready(Err(ControllerError::Timeout { what, waited_ms }));
            }
            return Poll::Pending;
        };
        let mut bytes = [0; IDENTIFY_BYTES];
        if let Some(page) = &page {
            page.copy_to(&mut bytes);
        }
        Poll::Ready(self.answered(&done, &bytes, now_ms))
    }

    fn what(&self) -> &'static str {
        match self.step {
            Step::Identify => "identify controller",
            Step::Queues => "set features (number of queues)",
            Step::Doorbells => "doorbell buffer config",
            Step::Host => SET_HOST,
            _ => "set features (asynchronous events)",
        }
    }

    fn submit<T: Transport>(&self, transport: &T, admin: &mut AdminQueue) -> Result<AdminTicket, ControllerError> {
        match self.step {
            Step::Identify => admin.submit(Submission::identify(Cns::Controller, 0), Some(page()?), transport),
            Step::Queues => {
                let zero_based = u32::from(self.want_queues.max(1) - 1);
                let value = zero_based | zero_based << 16;
                admin.submit(Submission::set_features(Feature::NumberOfQueues, value), None, transport)
            }
            Step::Doorbells => {
                let buffers = self.buffers.as_ref().ok_or(ControllerError::NoMemory)?;
                let address = |pages: &vellum_base::dma::SharedPages| {
                    transport.address_of(pages.arena_offset(), pages.len()).ok_or(ControllerError::NoMemory)
                };
                let command = Submission::doorbell_buffer_config(address(&buffers.shadow)?, address(&buffers.events)?);
                admin.submit(command, None, transport)
            }
            Step::Host => {
                let page = host_page(self.host.unwrap_or_default())?;
                admin.submit(Submission::set_host_identifier(), Some(page), transport)
            }
            _ => {
                let command = Submission::set_features(Feature::AsyncEventConfiguration, AsyncEvent::WANTED);
                admin.submit(command, None, transport)
            }
        }
    }

    fn after_doorbells(&self) -> Step {
        if self.host.is_some() { Step::Host } else { Step::Events }
    }

    fn answered(
        &mut self,
        done: &Completion,
        bytes: &[u8; IDENTIFY_BYTES],
        now_ms: u64,
    ) -> Result<Option<Learned>, ControllerError> {
        let failed = ControllerError::Command { what: self.what(), status: done.status() };
        let succeeded = done.status().is_success();
        match self.step {
            Step::Identify if succeeded => {
                self.info = Some(ControllerInfo::parse(bytes)?);
                self.go(Step::Queues, now_ms);
            }
            Step::Queues if succeeded => {
                // The controller may grant more than was asked for, or less; both counts are zero-based.
                let granted = (done.result.get() & 0xffff).min(done.result.get() >> 16) + 1;
                self.queues = granted.min(u32::from(self.want_queues)) as u16;
                let wants_buffers = self.info.as_ref().is_some_and(|info| info.doorbell_buffers);
                if wants_buffers {
                    self.buffers = Some(Arc::new(DoorbellBuffers::new()?));
                }
                self.go(if wants_buffers { Step::Doorbells } else { self.after_doorbells() }, now_ms);
            }
            Step::Doorbells => {
                if !succeeded {
                    tracing::warn!(status = %done.status(), "the controller refuses doorbell buffers that it offers");
                    self.buffers = None;
                }
                self.go(self.after_doorbells(), now_ms);
            }
            Step::Host if succeeded => self.go(Step::Events, now_ms),
            Step::Events => {
                // Optional in old controllers; without it there are only the events that are always on.
                let info = self.info.take().ok_or(ControllerError::Nonsense { what: "no identity" })?;
                return Ok(Some(Learned { info, queues: self.queues, buffers: self.buffers.take() }));
            }
            _ => return Err(failed),
        }
        Ok(None)
    }
}
