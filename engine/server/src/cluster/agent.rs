//! The driver of the quorum's machine: its clock, its socket, its block on the device, and what it asks for.
//!
//! One loop owns the socket. It takes every datagram that is queued before it lets a timeout be believed (scenario 27).
//! Whatever takes time (blocks, fences, the engine) runs in tasks beside it, so that heartbeats go on (scenario 26).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vellum_base::Term;
use vellum_format::quorum::SlotBlock;
use vellum_nvme::Queue;
use vellum_proto::Time;
use vellum_proto::quorum::{FenceTarget, Quorum, QuorumOutput};
use vellum_rt::channel::{Receiver, Sender};
use vellum_rt::local::Notify;
use vellum_rt::net::Datagram;
use vellum_rt::{Class, JoinHandle, now, spawn, timeout};
use vellum_store::Deposed;
use vellum_wire::{MAX_DATAGRAM, QuorumDatagram, QuorumMessage};

use super::blocks::{Membership, read_blocks, write_block};
use super::change::SlotChanges;
use super::fencer::FenceOrder;
use super::gate::Question;
use super::gone::GoneSlots;
use super::leadership::Engine;
use super::member::{Member, MemberProgress};
use super::status::quorum_status;
use crate::first::{First, first_of};
use crate::plan::NodeError;

/// Datagrams taken in a row; then the time is looked at, whoever floods us.
const DRAIN: usize = 1024;
/// How often a member that would leave asks.
const ASK: Duration = Duration::from_millis(50);
/// Datagrams that wait to be sent; more are lost, as in a network.
const OUTGOING: usize = 256;

/// Confirmations that are waited for: the round, and who asked.
type Asked = RefCell<Vec<(u64, Sender<Result<(), Deposed>>)>>;

pub(super) struct Agent {
    pub member: Arc<Member>,
    members: RefCell<Membership>,
    pub(super) queue: Rc<dyn Queue>,
    pub(super) quorum: RefCell<Quorum>,
    pub engine: Engine,
    outgoing: RefCell<VecDeque<(SocketAddr, Vec<u8>)>>,
    asked: Asked,
    fencing: RefCell<Option<JoinHandle<()>>>,
    driving: Cell<bool>,
    changed: Notify,
    end: RefCell<Option<Result<(), NodeError>>>,
    pub(super) changes: SlotChanges,
    pub(super) gone: Arc<GoneSlots>,
}

pub(super) fn time() -> Time {
    Time(now().0)
}

impl Agent {
    pub fn new(
        member: Arc<Member>,
        members: Membership,
        queue: Rc<dyn Queue>,
        quorum: Quorum,
        engine: Engine,
    ) -> Rc<Agent> {
        Rc::new(Agent {
            member,
            members: RefCell::new(members),
            queue,
            quorum: RefCell::new(quorum),
            engine,
            outgoing: RefCell::default(),
            asked: RefCell::default(),
            fencing: RefCell::default(),
            driving: Cell::new(false),
            changed: Notify::new(),
            end: RefCell::default(),
            changes: SlotChanges::default(),
            gone: Arc::default(),
        })
    }

    /// Until the member has left, or must not be one.
    pub async fn run(self: &Rc<Self>, socket: Datagram) -> Result<(), NodeError> {
        self.drive();
        let mut buf = [0u8; MAX_DATAGRAM + 1];
        loop {
            for _ in 0..DRAIN {
                match timeout(Duration::ZERO, socket.recv_from(&mut buf)).await {
                    Ok(received) => self.take(received, &buf),
                    Err(_) => break,
                }
            }
            let next = self.quorum.borrow().next_timeout();
            if next.is_some_and(|at| at <= time()) {
                self.input(Quorum::handle_timeout);
            }
            self.send_outgoing(&socket).await;
            let end = self.end.borrow_mut().take();
            if let Some(end) = end {
                return end;
            }
            let changed = self.changed.notified();
            let next = self.quorum.borrow().next_timeout();
            let left = next.map_or(Duration::from_secs(3600), |at| at - time());
            let event = timeout(left, first_of(socket.recv_from(&mut buf), changed)).await;
            if let Ok(First::A(received)) = event {
                self.take(received, &buf);
            }
        }
    }

    fn take(self: &Rc<Self>, received: std::io::Result<(usize, SocketAddr)>, buf: &[u8]) {
        let (len, from) = match received {
            Ok(received) => received,
            Err(error) => return tracing::debug!(%error, "receiving from members"),
        };
        let Some(bytes) = buf.get(..len) else { return };
        match QuorumDatagram::decode(bytes, &*self.member.options.auth) {
            Ok(datagram) if self.is_for_us(&datagram, from) => {
                self.input(|quorum, now| quorum.handle_message(now, datagram.from, datagram.message));
            }
            Ok(datagram) => tracing::debug!(%from, slot = %datagram.from, "a datagram that is not from a member to us"),
            Err(error) => tracing::debug!(%from, %error, "no datagram of a member"),
        }
    }

    fn is_for_us(&self, datagram: &QuorumDatagram, from: SocketAddr) -> bool {
        datagram.fsid == self.members.borrow().fsid
            && datagram.to == self.member.options.slot
            && self.members.borrow().address(datagram.from) == Some(from)
    }

    async fn send_outgoing(&self, socket: &Datagram) {
        loop {
            let Some((to, bytes)) = self.outgoing.borrow_mut().pop_front() else { return };
            // Tried once: a full socket, or an unreachable host, is a lost datagram.
            match timeout(Duration::ZERO, socket.send_to(&bytes, to)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%to, %error, "sending to a member"),
                Err(_) => tracing::debug!(%to, "the socket is full"),
            }
        }
    }

    /// One input of the machine, and what follows from it.
    pub fn input(self: &Rc<Self>, input: impl FnOnce(&mut Quorum, Time)) {
        {
            let mut quorum = self.quorum.borrow_mut();
            quorum.set_mounted(self.engine.is_mounted());
            input(&mut quorum, time());
        }
        self.drive();
    }

    /// Asks until this member may leave, has stayed long enough, or is told once more. False when it is to end at once.
    pub async fn wait_let_go(self: &Rc<Self>, told_again: &mut Receiver<()>) -> bool {
        let slot = self.member.options.slot;
        tracing::info!(%slot, "told to leave");
        let until = now() + self.member.options.stay;
        loop {
            self.input(Quorum::ask_to_leave);
            if self.quorum.borrow().is_leaving() {
                return true;
            }
            match timeout(ASK, told_again.recv()).await {
                Ok(None) => return false,
                Err(_) if now() < until => {}
                told => {
                    let why = if told.is_ok() { "it was told again" } else { "it has stayed long enough" };
                    tracing::warn!(%slot, why, "leaves, though no majority may stay: calls on mounts wait for one");
                    return true;
                }
            }
        }
    }

    fn drive(self: &Rc<Self>) {
        if self.driving.replace(true) {
            return; // the outer call goes on
        }
        loop {
            let output = self.quorum.borrow_mut().poll_output();
            match output {
                Some(output) => self.carry_out(output),
                None => break,
            }
        }
        self.driving.set(false);
        self.changed.notify_one();
    }

    fn carry_out(self: &Rc<Self>, output: QuorumOutput) {
        let slot = self.member.options.slot;
        match output {
            QuorumOutput::Send { to, message } => self.send(to, message),
            QuorumOutput::Write { seq, block } => self.write(seq, block),
            QuorumOutput::ReadBlocks => {
                let agent = self.clone();
                spawn(Class::Commit, "read slot blocks", async move {
                    agent.read_members().await;
                    let blocks = read_blocks(&agent.queue, &agent.members()).await;
                    agent.note_lives(&blocks);
                    agent.input(|quorum, now| quorum.handle_blocks(now, &blocks));
                })
                .detach();
            }
            QuorumOutput::Fence { term, targets } => self.fence(term, targets),
            QuorumOutput::Lead { term } => {
                tracing::info!(%slot, %term, "elected, and nobody else leads: the engine starts");
                self.lead(term);
            }
            QuorumOutput::StopLeading { term, why } => {
                tracing::warn!(%slot, %term, %why, "the leadership is over");
                self.stop_leading(term, why);
            }
            QuorumOutput::RoundConfirmed { round } => self.confirm(round),
            QuorumOutput::Stopped => *self.end.borrow_mut() = Some(Ok(())),
            QuorumOutput::Failed { why } => *self.end.borrow_mut() = Some(Err(NodeError::Member(why))),
        }
    }

    fn send(&self, to: vellum_base::Slot, message: QuorumMessage) {
        let Some(address) = self.members.borrow().address(to) else { return };
        let fsid = self.members.borrow().fsid;
        let datagram = QuorumDatagram { fsid, from: self.member.options.slot, to, message };
        let mut outgoing = self.outgoing.borrow_mut();
        if outgoing.len() < OUTGOING {
            outgoing.push_back((address, datagram.encode(&*self.member.options.auth)));
        }
    }

    fn write(self: &Rc<Self>, seq: u64, block: SlotBlock) {
        let agent = self.clone();
        spawn(Class::Commit, "write slot block", async move {
            let began = now();
            match write_block(&agent.queue, &agent.members(), &block).await {
                Ok(()) => {
                    let alone = agent.members().slots().count() < 2;
                    agent.member.handle.note_written(began.0, alone);
                    agent.input(|quorum, at| quorum.handle_written(at, seq, began.elapsed()));
                }
                Err(error) if error.is_taken_away() => agent.fenced(&error),
                Err(error) => {
                    tracing::warn!(slot = %block.slot, %error, "writing our block");
                    agent.input(|quorum, at| quorum.handle_write_failed(at, seq, &error.to_string()));
                }
            }
        })
        .detach();
    }

    /// The device is another's: the engine's operations stop first, then this member ends. A new one may register anew.
    fn fenced(self: &Rc<Self>, error: &vellum_nvme::DeviceError) {
        tracing::error!(slot = %self.member.options.slot, %error, "this node was fenced: the member ends");
        self.engine.kill();
        self.refuse_confirmations("this node was fenced");
        self.end.borrow_mut().get_or_insert(Err(NodeError::Fenced(error.to_string())));
        self.changed.notify_one();
    }

    fn fence(self: &Rc<Self>, term: Term, targets: Vec<FenceTarget>) {
        let agent = self.clone();
        let task = spawn(Class::Request, "fence", async move {
            let mut result = Ok(());
            for target in targets {
                let order = FenceOrder {
                    target,
                    address: agent.members().address(target.slot),
                    by: agent.member.options.slot,
                    for_term: term,
                };
                tracing::warn!(%order, %term, "fencing");
                if let Err(error) = agent.member.options.fencer.fence(order).await {
                    tracing::error!(%order, %term, %error, "the fence failed");
                    result = Err(format!("{order}: {error}"));
                    break;
                }
                agent.gone.note(target.slot, term);
            }
            agent.input(|quorum, now| quorum.handle_fenced(now, term, result));
        });
        if let Some(before) = self.fencing.borrow_mut().replace(task) {
            before.cancel(); // for a term that is over; its answer would be ignored
        }
    }

    fn confirm(&self, round: u64) {
        let mut asked = self.asked.borrow_mut();
        let (confirmed, rest) = std::mem::take(&mut *asked).into_iter().partition(|(of, _)| *of <= round);
        *asked = rest;
        let confirmed: Vec<_> = confirmed;
        for (_, answer) in confirmed {
            let _ = answer.try_send(Ok(())); // who asked may be gone
        }
    }

    /// Nobody is told any more that this node leads.
    pub fn refuse_confirmations(&self, why: &str) {
        for (_, answer) in self.asked.take() {
            let _ = answer.try_send(Err(Deposed(why.to_owned())));
        }
    }

    pub fn answer(self: &Rc<Self>, question: Question) {
        match question {
            Question::Leads { answer } if self.engine.may_acknowledge() => {
                let round = self.quorum.borrow_mut().begin_round(time());
                self.asked.borrow_mut().push((round, answer));
                self.drive();
            }
            Question::Leads { answer } => {
                let _ = answer.try_send(Err(Deposed("another leader may be elected".into())));
            }
            Question::Status { answer } => {
                let status = self.quorum.borrow().status(time());
                let _ = answer.try_send(quorum_status(&status, &self.members()));
            }
            Question::Judge { edit, answer } => self.judge(edit, answer),
            Question::Changed { answer } => self.changed(answer),
        }
    }

    /// Who is a member, as this one knows.
    pub fn members(&self) -> Membership {
        self.members.borrow().clone()
    }

    pub(super) fn set_members(&self, members: Membership) {
        if members.slots().count() > 1 && self.members().slots().count() < 2 {
            self.member.handle.note_written(now().0, false);
        }
        *self.members.borrow_mut() = members;
    }

    pub fn tell(&self, progress: MemberProgress) {
        (self.member.progress)(progress);
    }
}
