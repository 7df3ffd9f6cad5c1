//! Who a client is, as its durable record keeps it: whose rid it is, and whether it can come back at all.
//!
//! A client has no access to the device: once its process is gone, nothing that it held can be used, and it needs no
//! other fence. So a client whose process is known to be gone is not waited for. A worker has the device: see
//! [`crate::crew`] for when it is known to be quiet.

use bytes::{BufMut, Bytes, BytesMut};
use vellum_link::Peer;
use vellum_wire::Greeting;

use crate::process::Process;

const VERSION: u8 = 1;
const ELSEWHERE: u8 = 0;
const SAME_PROCESS: u8 = 1;
const PROCESS: u8 = 2;
/// In the byte of the kind: it is a worker, and its slot plus one (0: none).
const WORKER: u8 = 0x80;
const SLOT_SHIFT: u32 = 3;
const SLOT_MASK: u8 = 0xf << SLOT_SHIFT;
/// "No uid": -1 is nobody's.
const NO_UID: u32 = u32::MAX;

/// Where a client lives, as far as its end can be seen from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// Only its connection tells.
    Elsewhere,
    /// In the engine's own process: it ends with that.
    SameProcess,
    /// In a process of the engine's host.
    Process(Process),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    /// Of the unix socket that brought the rid first; other users can't take it.
    pub uid: Option<u32>,
    pub origin: Origin,
    /// It has the device, and runs compactions.
    pub is_worker: bool,
    /// Of a worker that is a quorum member, as it says.
    pub slot: Option<u8>,
}

impl Identity {
    pub(crate) fn of(peer: &Peer) -> Identity {
        match peer {
            Peer::Remote => Identity::client(None, Origin::Elsewhere),
            Peer::SameProcess => Identity::client(None, Origin::SameProcess),
            Peer::Local(cred) => {
                let origin = Process::running(cred.pid).map_or(Origin::Elsewhere, Origin::Process);
                Identity::client(Some(cred.uid), origin)
            }
        }
    }

    fn client(uid: Option<u32>, origin: Origin) -> Identity {
        Identity { uid, origin, is_worker: false, slot: None }
    }

    /// With what the greeting says.
    pub(crate) fn greeting_as(self, greeting: &Greeting) -> Identity {
        Identity { is_worker: greeting.is_worker(), slot: greeting.slot(), ..self }
    }

    /// It may run compactions: the engine's own user or root, and whoever may connect over the network.
    pub(crate) fn may_work(&self, own_uid: u32) -> bool {
        self.uid.is_none_or(|uid| uid == 0 || uid == own_uid)
    }

    /// There is one worker of a slot at a time, and else one of a process.
    pub(crate) fn is_same_worker(&self, other: &Identity) -> bool {
        if !self.is_worker || !other.is_worker {
            return false;
        }
        match (self.slot, other.slot) {
            (Some(one), Some(other)) => one == other,
            (None, None) => matches!((self.origin, other.origin), (Origin::Process(a), Origin::Process(b)) if a == b),
            _ => false,
        }
    }

    /// True only when it is certain.
    pub(crate) fn process_is_gone(&self) -> bool {
        matches!(self.origin, Origin::Process(process) if process.is_gone())
    }

    pub(crate) fn is_this_process(&self) -> bool {
        matches!(self.origin, Origin::Process(process) if Process::running(std::process::id()) == Some(process))
    }

    /// A rid belongs to the uid and the process that first used it. Who comes without a uid may be anybody.
    pub(crate) fn admits(&self, other: &Identity) -> bool {
        let same_uid = match (self.uid, other.uid) {
            (Some(bound), Some(now)) => bound == now,
            _ => true,
        };
        let same_process = match (self.origin, other.origin) {
            // Seen from another namespace the same process has another number.
            (Origin::Process(bound), Origin::Process(now)) => bound == now || !bound.is_same_view(&now),
            _ => true,
        };
        same_uid && same_process && (self.is_worker, self.slot) == (other.is_worker, other.slot)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        let kind = match self.origin {
            Origin::Elsewhere => ELSEWHERE,
            Origin::SameProcess => SAME_PROCESS,
            Origin::Process(_) => PROCESS,
        };
        let slot = self.slot.map_or(0, |slot| slot + 1) << SLOT_SHIFT & SLOT_MASK;
        out.put_u8(kind | slot | if self.is_worker { WORKER } else { 0 });
        out.put_u32_le(self.uid.unwrap_or(NO_UID));
        if let Origin::Process(process) = self.origin {
            process.encode(&mut out);
        }
        out.freeze()
    }

    /// Old records are empty, or only a uid. What is not understood says nothing about the process.
    pub(crate) fn decode(bytes: &[u8]) -> Identity {
        let uid_of = |bytes: &[u8; 4]| Some(u32::from_le_bytes(*bytes)).filter(|uid| *uid != NO_UID);
        if let Ok(uid) = <&[u8; 4]>::try_from(bytes) {
            return Identity::client(uid_of(uid), Origin::Elsewhere);
        }
        let Some((&[VERSION, kind, a, b, c, d], rest)) = bytes.split_first_chunk::<6>() else {
            return Identity::client(None, Origin::Elsewhere);
        };
        let is_worker = kind & WORKER != 0;
        let slot = ((kind & SLOT_MASK) >> SLOT_SHIFT).checked_sub(1);
        let origin = match kind & !(WORKER | SLOT_MASK) {
            SAME_PROCESS => Origin::SameProcess,
            PROCESS => Process::decode(rest).map_or(Origin::Elsewhere, Origin::Process),
            _ => Origin::Elsewhere,
        };
        Identity { uid: uid_of(&[a, b, c, d]), origin, is_worker, slot }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_their_record_and_old_records_are_read() {
        let me = Process::running(std::process::id()).unwrap();
        for origin in [Origin::Elsewhere, Origin::SameProcess, Origin::Process(me)] {
            for uid in [None, Some(0), Some(1000)] {
                for (is_worker, slot) in [(false, None), (true, None), (true, Some(0)), (true, Some(14))] {
                    let identity = Identity { uid, origin, is_worker, slot };
                    assert_eq!(Identity::decode(&identity.encode()), identity);
                }
            }
        }
        let elsewhere = |uid| Identity::client(uid, Origin::Elsewhere);
        assert_eq!(Identity::decode(&[]), elsewhere(None));
        assert_eq!(Identity::decode(&1000u32.to_le_bytes()), elsewhere(Some(1000)));
        assert_eq!(Identity::decode(&[9, 2, 0, 0, 0, 0, 1, 2, 3]), elsewhere(None), "a later version");
        let whole = Identity::client(Some(7), Origin::Process(me)).encode();
        for cut in 6..whole.len() {
            assert_eq!(Identity::decode(&whole[..cut]), elsewhere(Some(7)), "cut at {cut}");
        }
    }

    #[test]
    fn a_rid_belongs_to_a_uid_and_a_process() {
        let me = Process::running(std::process::id()).unwrap();
        let init = Process::running(1).unwrap();
        let of = |uid, process| Identity::client(uid, Origin::Process(process));
        assert!(of(Some(1), me).admits(&of(Some(1), me)));
        assert!(!of(Some(1), me).admits(&of(Some(2), me)));
        assert!(!of(Some(1), me).admits(&of(Some(1), init)));
        assert!(of(Some(1), me).admits(&Identity::client(None, Origin::SameProcess)));
        assert!(Identity::client(Some(1), Origin::Elsewhere).admits(&of(Some(1), me)));
        let worker = |process, slot| Identity { is_worker: true, slot, ..of(Some(0), process) };
        assert!(!of(Some(0), me).admits(&worker(me, None)), "a rid is one or the other");
        assert!(
            worker(me, None).is_same_worker(&worker(me, None)) && !worker(me, None).is_same_worker(&of(Some(0), me))
        );
        assert!(worker(me, Some(3)).is_same_worker(&worker(init, Some(3))), "a slot has one process at a time");
        assert!(!worker(me, Some(3)).is_same_worker(&worker(me, Some(4))));
        assert!(worker(me, None).is_this_process() && !worker(init, None).is_this_process());
        assert!(worker(me, None).may_work(5) && !of(Some(7), me).may_work(5) && of(Some(5), me).may_work(5));
    }
}
