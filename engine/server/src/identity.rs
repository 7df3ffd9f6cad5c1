//! Who a client is, and what follows: whose rid it is, whether it can come back at all, what it may do.
//!
//! A client has no access to the device: once its process is gone, nothing that it held can be used, and it needs no
//! other fence. So a client whose process is known to be gone is not waited for. A worker has the device: see
//! [`crate::crew`] for when it is known to be quiet.

use vellum_format::{ClientIdentity, Origin, Principal, WorkerMark};
use vellum_keys::{Role, Subject, Subtree};
use vellum_link::Peer;
use vellum_wire::{Greeting, Request};

use crate::process;

/// What a socket says of who is behind it.
pub(crate) struct Who {
    pub identity: ClientIdentity,
    pub access: Access,
    /// The directory that its certificate confines it to.
    pub path: Option<Subtree>,
}

pub(crate) fn who(peer: &Peer, greeting: &Greeting, own_uid: u32) -> Who {
    let path = match peer {
        Peer::Known(subject) => subject.path.clone(),
        Peer::SameProcess | Peer::Anybody | Peer::Local(_) => None,
    };
    Who { identity: greeting_as(identity_of(peer), greeting), access: access_of(peer, own_uid), path }
}

/// What a client may do, by the certificate or the user that its current socket came with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Access {
    pub read_only: bool,
    /// It may be handed work on the device itself: a node's certificate, or a process that can open the device anyway.
    pub node: bool,
}

impl Access {
    /// Why this client must not ask for that.
    pub(crate) fn refuses(self, request: &Request) -> Option<&'static str> {
        let changes = match request {
            Request::Commit { .. } | Request::WriteData | Request::AllocGroup { .. } => true,
            Request::Lock { wants } => wants.iter().any(|want| want.mode == vellum_wire::LockMode::Write),
            Request::Reassert { locks, .. } => locks.iter().any(|grant| grant.mode == vellum_wire::LockMode::Write),
            _ => false,
        };
        (self.read_only && changes).then_some("this client's certificate is read-only")
    }
}

fn access_of(peer: &Peer, own_uid: u32) -> Access {
    match peer {
        // Without keys nobody is told from anybody else, and whoever reaches the port may change everything anyway.
        Peer::SameProcess | Peer::Anybody => Access { read_only: false, node: true },
        Peer::Local(cred) => Access { read_only: false, node: cred.uid == 0 || cred.uid == own_uid },
        Peer::Known(Subject { role, read_only, .. }) => Access { read_only: *read_only, node: *role == Role::Node },
    }
}

fn identity_of(peer: &Peer) -> ClientIdentity {
    let (principal, origin) = match peer {
        Peer::Anybody => (Principal::Anybody, Origin::Elsewhere),
        Peer::SameProcess => (Principal::Engine, Origin::Engine),
        Peer::Local(cred) => {
            (Principal::Uid(cred.uid), process::running(cred.pid).map_or(Origin::Elsewhere, Origin::Process))
        }
        Peer::Known(subject) => {
            (Principal::Certificate(format!("{}/{}", subject.role.as_str(), subject.name)), Origin::Elsewhere)
        }
    };
    ClientIdentity { principal, origin, worker: None }
}

/// With what the greeting says.
fn greeting_as(identity: ClientIdentity, greeting: &Greeting) -> ClientIdentity {
    let worker = greeting.is_worker().then(|| WorkerMark { slot: greeting.slot() });
    ClientIdentity { worker, ..identity }
}

/// There is one worker of a slot at a time, and else one of a process or a certificate.
pub(crate) fn is_same_worker(one: &ClientIdentity, other: &ClientIdentity) -> bool {
    let (Some(a), Some(b)) = (one.worker, other.worker) else { return false };
    match (a.slot, b.slot) {
        (Some(a), Some(b)) => a == b,
        (None, None) => match (one.origin, other.origin) {
            (Origin::Process(a), Origin::Process(b)) => a == b,
            _ => matches!(one.principal, Principal::Certificate(_)) && one.principal == other.principal,
        },
        _ => false,
    }
}

/// True only when it is certain.
pub(crate) fn process_is_gone(identity: &ClientIdentity) -> bool {
    matches!(identity.origin, Origin::Process(process) if process::is_gone(&process))
}

/// The engine's own process was it.
pub(crate) fn is_this_process(identity: &ClientIdentity) -> bool {
    match identity.origin {
        Origin::Engine => true,
        Origin::Process(process) => process::running(std::process::id()) == Some(process),
        Origin::Elsewhere => false,
    }
}

const _: () = assert!("client/".len() + vellum_keys::Name::MAX_LEN <= vellum_format::identity::MAX_SUBJECT);

/// Whether `now` may use a rid that `bound` was the first to use: the same principal, and where both were seen, the same
/// process. (Seen from another namespace the same process has another number.)
pub(crate) fn admits(bound: &ClientIdentity, now: &ClientIdentity) -> bool {
    let same_process = match (bound.origin, now.origin) {
        (Origin::Process(bound), Origin::Process(now)) => bound == now || !process::is_same_view(&bound, &now),
        _ => true,
    };
    bound.principal == now.principal && same_process && bound.worker == now.worker
}

/// For people.
pub(crate) fn describe(identity: &ClientIdentity) -> String {
    let who = match &identity.principal {
        Principal::Anybody => "anybody on loopback".to_owned(),
        Principal::Engine => return "the engine's process".to_owned(),
        Principal::Uid(uid) => format!("uid {uid}"),
        Principal::Certificate(subject) => subject.clone(),
    };
    match identity.origin {
        Origin::Process(process) => format!("{who}, pid {}", process.pid),
        _ => who,
    }
}

#[cfg(test)]
mod tests {
    use vellum_format::ProcessId;
    use vellum_wire::{LockMode, LockName, LockWant};

    use super::*;

    fn of(principal: Principal, process: ProcessId) -> ClientIdentity {
        ClientIdentity { principal, origin: Origin::Process(process), worker: None }
    }

    #[test]
    fn a_rid_belongs_to_a_principal_and_a_process() {
        let me = process::running(std::process::id()).unwrap();
        let init = process::running(1).unwrap();
        assert!(admits(&of(Principal::Uid(1), me), &of(Principal::Uid(1), me)));
        assert!(!admits(&of(Principal::Uid(1), me), &of(Principal::Uid(1), init)));
        let elsewhere = ProcessId { boot: [7; 16], ..init };
        assert!(admits(&of(Principal::Uid(1), me), &of(Principal::Uid(1), elsewhere)), "it can't be told");
        let principals = [
            Principal::Anybody,
            Principal::Engine,
            Principal::Uid(0),
            Principal::Uid(1),
            Principal::Certificate("client/a".into()),
            Principal::Certificate("node/a".into()),
        ];
        for (i, bound) in principals.iter().enumerate() {
            for (j, now) in principals.iter().enumerate() {
                let with = |principal: &Principal| ClientIdentity {
                    principal: principal.clone(),
                    origin: Origin::Elsewhere,
                    worker: None,
                };
                assert_eq!(admits(&with(bound), &with(now)), i == j, "{bound:?} {now:?}");
            }
        }
    }

    #[test]
    fn one_worker_is_told_from_another() {
        let me = process::running(std::process::id()).unwrap();
        let init = process::running(1).unwrap();
        let client = of(Principal::Uid(0), me);
        let worker =
            |process, slot| ClientIdentity { worker: Some(WorkerMark { slot }), ..of(Principal::Uid(0), process) };
        assert!(!admits(&client, &worker(me, None)), "a rid is one or the other");
        assert!(is_same_worker(&worker(me, None), &worker(me, None)));
        assert!(!is_same_worker(&worker(me, None), &client) && !is_same_worker(&worker(me, None), &worker(init, None)));
        assert!(is_same_worker(&worker(me, Some(3)), &worker(init, Some(3))), "a slot has one process at a time");
        assert!(!is_same_worker(&worker(me, Some(3)), &worker(me, Some(4))));
        assert!(is_this_process(&client) && !is_this_process(&of(Principal::Uid(0), init)));
        assert!(!process_is_gone(&client));
    }

    #[test]
    fn a_read_only_client_changes_nothing() {
        let looks = Access { read_only: true, node: false };
        let wants = |mode| vec![LockWant { name: LockName::Rename, mode }];
        assert!(looks.refuses(&Request::WriteData).is_some());
        assert!(looks.refuses(&Request::AllocGroup { near: None }).is_some());
        assert!(looks.refuses(&Request::Lock { wants: wants(LockMode::Write) }).is_some());
        assert!(looks.refuses(&Request::Lock { wants: wants(LockMode::Read) }).is_none());
        assert!(looks.refuses(&Request::StatFs).is_none() && looks.refuses(&Request::Farewell).is_none());
        assert!(Access { read_only: false, node: false }.refuses(&Request::WriteData).is_none());
    }
}
