//! From a greeting to a session at the rid's home.

use std::rc::Rc;

use vellum_base::{BatchNo, Mutant, Rid, Term, mutant, probe};
use vellum_format::{ClientIdentity, Principal};
use vellum_keys::Subtree;
use vellum_link::{Peer, Session, Socket, Stranger, bridge, refuse};
use vellum_proto::server::judge;
use vellum_rt::channel;
use vellum_rt::{Class, spawn};
use vellum_wire::{Body, Frame, Greeted, PROTOCOL, Refusal, WireError};

use crate::client::{Client, Phase};
use crate::confine::{self, Confined};
use crate::fact::Fact;
use crate::identity::{Access, Who, admits, who};
use crate::mesh::Message;
use crate::reactor::Reactor;

impl Reactor {
    /// A socket that greeted on this reactor: it is handed to the home of its rid.
    pub(crate) async fn welcome(self: &Rc<Self>, stranger: Stranger) {
        let who = who(&stranger.peer, &stranger.greeting, self.own_uid());
        if let Principal::Uid(uid) = who.identity.principal
            && !self.may_connect(uid)
        {
            tracing::warn!(uid, "a user that may not connect");
            return;
        }
        if who.identity.worker.is_some() && !who.access.node {
            tracing::warn!(principal = ?who.identity.principal, "no node: its workers are not believed");
            return stranger.refuse(Refusal::NoWorker).await;
        }
        let home = self.backend.home_of(stranger.greeting.rid);
        if home == self.me {
            return self.admit(stranger, who).await;
        }
        let first = stranger.greeting_frame();
        let (tx, rx) = bridge(first, stranger.reader, stranger.writer, stranger.guard);
        self.send(home, Message::Adopt { tx, rx, who: Box::new(who) });
    }

    fn may_connect(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own_uid() || self.options.allowed_uids.contains(&uid)
    }

    fn own_uid(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }

    pub(crate) fn adopt(self: &Rc<Self>, tx: channel::Sender<Frame>, rx: channel::Receiver<Frame>, who: Who) {
        let reactor = self.clone();
        spawn(Class::Request, "adopt", async move {
            let (mut reader, writer, guard) = Socket::InProcess { tx, rx }.split();
            if let Ok(Frame { body: Body::Greeting(greeting), ack, .. }) = reader.recv_greeting().await {
                let peer = Peer::SameProcess; // of the bridge; who is behind it came along
                reactor.admit(Stranger { greeting, ack, peer, reader, writer, guard }, who).await;
            }
        })
        .detach();
    }

    async fn admit(self: &Rc<Self>, stranger: Stranger, who: Who) {
        let (rid, access) = (stranger.greeting.rid, who.access);
        let client = match self.client_for(&stranger, who).await {
            Ok(client) => client,
            Err(refusal) => {
                tracing::info!(%rid, ?refusal, "refused");
                return stranger.refuse(refusal).await;
            }
        };
        // A greeting that is answered begins a lease, as a keepalive does: a leader that was stopped and deposed must not
        // welcome into a term that is over whoever waited in its sockets. It has not written its block; a leader that only
        // has a slow device is found again.
        if !self.may_begin_leases() {
            tracing::info!(%rid, "not welcomed: the device has not taken our block for a while");
            return stranger.refuse(Refusal::NotServing).await;
        }
        let greeted = self.greeted(&client, access);
        if client.phase.get() != Phase::Leaving {
            let fresh = stranger.greeting.term == Term(0);
            probe::tell(|| Fact::Greeted { term: greeted.term, rid, fresh });
        }
        client.session.set_durable(greeted.durable, false);
        let Stranger { greeting, ack, reader, writer, guard, .. } = stranger;
        match client.session.attach(reader, writer, guard, (&greeting, ack), greeted) {
            Ok(()) => client.access.set(access),
            Err((refusal, writer, guard)) => {
                tracing::info!(%rid, ?refusal, "refused");
                refuse(writer, guard, refusal).await;
            }
        }
    }

    async fn client_for(
        self: &Rc<Self>,
        stranger: &Stranger,
        Who { identity, access, path }: Who,
    ) -> Result<Rc<Client>, Refusal> {
        let (rid, greeting) = (stranger.greeting.rid, &stranger.greeting);
        if self.stopping.get() {
            return Err(Refusal::NotServing);
        }
        judge(greeting, self.backend.fsid())?;
        if let Some(client) = self.client(rid) {
            let same = admits(&client.identity, &identity) && client.is_confined_to(path.as_ref());
            return if same { Ok(client) } else { Err(Refusal::Fenced) };
        }
        if greeting.term == self.backend.term() {
            return Err(Refusal::Fenced); // it was reclaimed, or it said farewell
        }
        // Its record is going: one that never heard of it (term 0) would be let in and then lose it. (Found by the
        // simulation: F1, cluster seed 8.)
        if self.reclaiming.borrow().contains(&rid) {
            return Err(Refusal::NotServing);
        }
        if self.evicted.borrow().contains(&rid) {
            return Err(Refusal::Fenced);
        }
        let known = self.known.borrow().get(&rid).cloned();
        match &known {
            // A record of the term before, and the client knows of it or (term 0) never heard the answer.
            Some(Some(bound)) if admits(bound, &identity) => {}
            Some(_) => return Err(Refusal::Fenced),
            // N6: it had a term, and has no record any more.
            None if greeting.term != Term(0) && !mutant::active(Mutant::AdmitFenced) => return Err(Refusal::Fenced),
            None => {}
        }
        if known.is_none() {
            self.check_room(&identity.principal)?;
        }
        // Two sockets of one new rid at once: the second comes back later.
        if self.admitting.borrow().contains_key(&rid) {
            return Err(Refusal::NotServing);
        }
        self.admitting.borrow_mut().insert(rid, identity.principal.clone());
        self.tell_mounted();
        let opened = self.open(rid, &identity, path, greeting.term).await;
        self.admitting.borrow_mut().remove(&rid);
        self.tell_mounted();
        let (last, confined) = opened?;
        // It may have been given up, or the node stopped, while the record was read.
        if self.stopping.get() {
            return Err(Refusal::NotServing);
        }
        if known.is_some() && self.known.borrow_mut().remove(&rid).is_none() {
            return Err(Refusal::Fenced);
        }
        let phase = if greeting.term == Term(0) { Phase::Serving } else { Phase::Recovering };
        let bound = known.clone().flatten().unwrap_or(identity);
        let client = self.new_client(rid, (bound, access), confined, (phase, last));
        if known.is_some() && phase == Phase::Serving {
            self.has_recovered(&client); // it holds nothing
        }
        Ok(client)
    }

    /// The client's newest batch, after its record was made; and its walls.
    async fn open(
        self: &Rc<Self>,
        rid: Rid,
        identity: &ClientIdentity,
        path: Option<Subtree>,
        term: Term,
    ) -> Result<(BatchNo, Option<Rc<Confined>>), Refusal> {
        let not_serving = |error: WireError| {
            tracing::warn!(%rid, %error, "no client record could be made");
            Refusal::NotServing
        };
        let confined = match path {
            None => None,
            // Names may be older than what was acknowledged, until all clients have come back.
            Some(_) if term == Term(0) && self.table.borrow().is_recovering() => return Err(Refusal::NotServing),
            Some(path) => {
                let root = confine::find(&self.backend, &path).await.map_err(not_serving)??;
                Some(Confined::new(self.backend.clone(), path, root))
            }
        };
        let last = self.backend.open_rid(rid, identity.encode()).await.map_err(not_serving)?;
        Ok((last, confined))
    }

    /// Room for one more client, of all and of those with this identity: one that takes what it can get leaves the rest
    /// to others. (Homes are spread by rid, so each reactor judges for its share.)
    fn check_room(&self, principal: &Principal) -> Result<(), Refusal> {
        let share = |limit: u32| (limit as usize).div_ceil(self.mesh.reactors());
        let limits = &self.options.limits;
        let (clients, admitting) = (self.clients.borrow(), self.admitting.borrow());
        if clients.len() + admitting.len() >= share(limits.clients) {
            return Err(Refusal::TooManyClients { limit: limits.clients });
        }
        let principals = clients.values().map(|client| &client.identity.principal).chain(admitting.values());
        let same = principals.filter(|other| *other == principal).count();
        if same >= share(limits.clients_per_identity) {
            return Err(Refusal::TooManyClients { limit: limits.clients_per_identity });
        }
        Ok(())
    }

    fn new_client(
        self: &Rc<Self>,
        rid: Rid,
        who: (ClientIdentity, Access),
        confined: Option<Rc<Confined>>,
        (phase, last): (Phase, BatchNo),
    ) -> Rc<Client> {
        let weak = Rc::downgrade(self);
        let handler = Rc::new(move |request, payload, responder| {
            if let Some(reactor) = weak.upgrade()
                && let Some(client) = reactor.client(rid)
            {
                reactor.dispatch(&client, request, payload, responder);
            }
        });
        let weak = Rc::downgrade(self);
        let expired = move || {
            if let Some(reactor) = weak.upgrade() {
                reactor.reclaim_expired(rid);
            }
        };
        let term = self.backend.term();
        let session = Session::new(rid, term, self.options.limits.window(), self.options.timers, handler, expired);
        if self.options.quorum.is_some() {
            session.leave_keepalives();
        }
        let client = Client::new(rid, session, who, confined, (phase, last));
        spawn(Class::Request, "commits", client.commits.clone().run()).detach();
        self.clients.borrow_mut().insert(rid, client.clone());
        self.tell_mounted();
        self.watch_process(&client);
        client
    }

    fn greeted(&self, client: &Client, access: Access) -> Greeted {
        let timers = &self.options.timers;
        let ms = |d: std::time::Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
        Greeted {
            fsid: self.backend.fsid(),
            term: self.backend.term(),
            protocol: PROTOCOL,
            format: self.backend.format(),
            last_batch: client.applied.get(),
            durable: self.backend.durable_epoch(),
            lease_ms: ms(timers.lease),
            keepalive_ms: ms(timers.keepalive),
            max_requests: self.options.limits.requests,
            max_data_bytes: self.options.limits.data_bytes,
            read_only: access.read_only,
            root: client.root(),
        }
    }
}
