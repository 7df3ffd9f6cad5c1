//! Locks: between the client's home, which takes them one by one, and the tables that own them.

use std::collections::BTreeMap;
use std::rc::Rc;

use vellum_base::{Bucket, Ino, ReactorId, Rid};
use vellum_link::{LinkError, Responder};
use vellum_proto::LockOutput;
use vellum_proto::locks::check_order;
use vellum_rt::{Class, now, spawn, timeout};
use vellum_wire::{ErrorCode, LockGrant, LockMode, LockName, LockWant, Request, Response};

use crate::client::{Client, OpenLock};
use crate::mesh::{Answer, Ask, Message};
use crate::reactor::{COORDINATOR, Reactor};

/// Bits of a group number: an inode number without its slot.
const GROUP_BITS: u32 = u64::BITS - Ino::SLOT_BITS;

/// A lock that can exist.
fn is_legal(name: LockName) -> bool {
    match name {
        LockName::Rename => true,
        LockName::Group(group) => group >> GROUP_BITS == 0,
    }
}

impl Reactor {
    pub(crate) fn owner_of(&self, name: LockName) -> ReactorId {
        match name {
            LockName::Rename => COORDINATOR,
            LockName::Group(group) => self.backend.reactor_of(Bucket(Ino::first_of_group(group).bucket())),
        }
    }

    pub(crate) fn by_owner<T>(&self, locks: Vec<T>, name: impl Fn(&T) -> LockName) -> BTreeMap<ReactorId, Vec<T>> {
        let mut by_owner: BTreeMap<ReactorId, Vec<T>> = BTreeMap::new();
        for lock in locks {
            by_owner.entry(self.owner_of(name(&lock))).or_default().push(lock);
        }
        by_owner
    }

    // ---- at the owner

    pub(crate) fn lock(self: &Rc<Self>, rid: Rid, request: u64, want: LockWant) {
        let asked = self.table.borrow_mut().request(rid, request, want);
        if let Err(error) = asked {
            let message = error.to_string();
            self.send(self.backend.home_of(rid), Message::LockFailed { rid, request, message });
        }
        self.drive_table();
    }

    pub(crate) fn drive_table(self: &Rc<Self>) {
        loop {
            let output = self.table.borrow_mut().poll_output();
            match output {
                Some(LockOutput::Granted { rid: Rid::ENGINE, request, grant }) => {
                    self.engine_granted(request, grant.name);
                }
                Some(LockOutput::Invalidate { rid: Rid::ENGINE, name, .. }) => self.engine_invalidated(name),
                Some(LockOutput::Granted { rid, request, grant }) => {
                    let opens = match grant.name {
                        LockName::Group(group) if grant.mode == LockMode::Write => {
                            self.opens.borrow().elsewhere_in(rid, group)
                        }
                        _ => Vec::new(),
                    };
                    self.send(self.backend.home_of(rid), Message::Granted { rid, request, grant, opens });
                }
                Some(LockOutput::Invalidate { rid, name, mode }) => {
                    self.send(self.backend.home_of(rid), Message::Invalidate { rid, name, mode });
                }
                None => break,
            }
        }
    }

    pub(crate) fn unlock_here(self: &Rc<Self>, rid: Rid, to: &[LockWant]) -> Answer {
        self.table.borrow_mut().unlock(rid, to);
        self.drive_table();
        Answer::Done
    }

    pub(crate) fn reassert_here(self: &Rc<Self>, rid: Rid, grants: Vec<LockGrant>) -> Answer {
        for grant in grants {
            let verdict = self.table.borrow_mut().reassert(rid, grant);
            if let Err(error) = verdict {
                return Answer::Refused(error.to_string());
            }
        }
        Answer::Done
    }

    // ---- at the home

    pub(crate) fn begin_lock(self: &Rc<Self>, client: &Rc<Client>, wants: Vec<LockWant>, responder: Responder) {
        if let Err(error) = check_order(&wants) {
            return responder.fail(ErrorCode::Malformed, error.to_string());
        }
        if !wants.iter().all(|want| is_legal(want.name)) {
            return responder.fail(ErrorCode::Malformed, "no such lock");
        }
        let id = client.next_lock.get();
        client.next_lock.set(id + 1);
        let grants = Vec::with_capacity(wants.len());
        let open = OpenLock { begun: now(), wants, grants, opens: Vec::new(), responder };
        client.locks.borrow_mut().insert(id, open);
        self.go_on(client, id);
    }

    /// Asks for the next lock, or answers.
    fn go_on(self: &Rc<Self>, client: &Rc<Client>, id: u64) {
        let next = {
            let locks = client.locks.borrow();
            let Some(open) = locks.get(&id) else { return };
            open.wants.get(open.grants.len()).copied()
        };
        if let Some(want) = next {
            return self.send_to_owner(want.name, Message::Lock { rid: client.rid, request: id, want });
        }
        let open = client.locks.borrow_mut().remove(&id);
        if let Some(OpenLock { begun, wants, grants, opens, responder }) = open {
            self.latencies.borrow_mut().locked(begun);
            // "Perhaps" is all that a confined client is told of what others have open in a group that is not only its own:
            // it asks for what it knows.
            let opens = if client.confined.is_some() && !opens.is_empty() { vec![Ino::NONE] } else { opens };
            self.reply(client, responder, Response::Granted { grants, opens });
            let released = client.order.borrow_mut().answered(wants.iter().map(|want| want.name));
            for (name, mode) in released {
                self.tell_invalidation(client, name, mode);
            }
        }
    }

    pub(crate) fn granted(self: &Rc<Self>, rid: Rid, request: u64, grant: LockGrant, opens: Vec<Ino>) {
        // A client that is gone has its locks released by its reclaim, which is on its way to the owner.
        let Some(client) = self.client(rid) else { return };
        let known = match client.locks.borrow_mut().get_mut(&request) {
            Some(open) => {
                open.grants.push(grant);
                open.add_opens(opens);
                true
            }
            None => false,
        };
        if known {
            client.order.borrow_mut().granted(grant.name);
            self.go_on(&client, request);
        }
    }

    /// The locks before this one stay granted: the client did not hear of them, so they are taken back here.
    pub(crate) fn lock_failed(self: &Rc<Self>, rid: Rid, request: u64, message: String) {
        let Some(client) = self.client(rid) else { return };
        let open = client.locks.borrow_mut().remove(&request);
        if let Some(OpenLock { grants, responder, .. }) = open {
            tracing::warn!(%rid, message, "a lock request failed half-way: the client is given up");
            responder.fail(ErrorCode::Busy, message);
            if !grants.is_empty() {
                client.session.evict();
            }
        }
    }

    pub(crate) fn invalidate(self: &Rc<Self>, rid: Rid, name: LockName, mode: LockMode) {
        let Some(client) = self.client(rid) else { return };
        let now = client.order.borrow_mut().may_invalidate(name, mode);
        if now {
            self.tell_invalidation(&client, name, mode);
        }
    }

    fn tell_invalidation(self: &Rc<Self>, client: &Rc<Client>, name: LockName, mode: LockMode) {
        let call = client.session.call(Request::Invalidate { name, mode });
        let (reactor, client) = (self.clone(), client.clone());
        spawn(Class::Request, "invalidation", async move {
            match timeout(reactor.options.limits.invalidation, call).await {
                Ok(Ok(reply)) if reply.body == Response::Invalidated => {
                    reactor.send_to_owner(name, Message::Invalidated { rid: client.rid, name });
                }
                Ok(Err(LinkError::Closed)) => {} // the session ended: its reclaim gives the lock back
                other => {
                    tracing::warn!(rid = %client.rid, ?name, ?other, "invalidation not answered: the client is given up");
                    client.session.evict();
                }
            }
        })
        .detach();
    }

    pub(crate) fn unlock(self: &Rc<Self>, client: &Rc<Client>, to: Vec<LockWant>, responder: Responder) {
        if !to.iter().all(|want| is_legal(want.name)) {
            return responder.fail(ErrorCode::Malformed, "no such lock");
        }
        let rid = client.rid;
        let asked: Vec<_> = self
            .by_owner(to, |want| want.name)
            .into_iter()
            .map(|(owner, to)| self.ask(owner, Ask::Unlock { rid, to }))
            .collect();
        let (reactor, client) = (self.clone(), client.clone());
        // Answered when it is done: what waits to be done belongs to a request that counts.
        spawn(Class::Request, "unlock", async move {
            for answer in asked {
                answer.await;
            }
            reactor.reply(&client, responder, Response::Unlocked);
        })
        .detach();
    }

    /// One page of lock recovery. The last one waits for those before it.
    pub(crate) fn reassert(
        self: &Rc<Self>,
        client: &Rc<Client>,
        locks: Vec<LockGrant>,
        last: bool,
        responder: Responder,
    ) {
        if !locks.iter().all(|grant| is_legal(grant.name)) {
            return responder.fail(ErrorCode::Malformed, "no such lock");
        }
        let rid = client.rid;
        // Sent at once, so that the pages reach each table in their order.
        let asked: Vec<_> = self
            .by_owner(locks, |grant| grant.name)
            .into_iter()
            .map(|(owner, grants)| self.ask(owner, Ask::Reassert { rid, grants }))
            .collect();
        let page = client.pages.begin();
        let (reactor, client) = (self.clone(), client.clone());
        spawn(Class::Request, "reassert", async move {
            let mut refused = None;
            for answer in asked {
                if let Answer::Refused(why) = answer.await {
                    refused = Some(why);
                }
            }
            if let Some(why) = refused {
                tracing::warn!(%rid, why, "lock recovery refused: the client is given up");
                responder.fail(ErrorCode::NotPermitted, why);
                client.session.evict();
                return;
            }
            if last {
                client.pages.before(page).await;
                reactor.has_recovered(&client);
            }
            client.pages.end(page);
            reactor.reply(&client, responder, Response::Reasserted);
        })
        .detach();
    }
}
