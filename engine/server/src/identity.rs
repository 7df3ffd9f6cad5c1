//! Who a client is, as its durable record keeps it: whose rid it is, and whether it can come back at all.
//!
//! A client has no access to the device: once its process is gone, nothing that it held can be used, and it needs no
//! other fence. So a client whose process is known to be gone is not waited for.

use bytes::{BufMut, Bytes, BytesMut};
use vellum_link::Peer;

use crate::process::Process;

const VERSION: u8 = 1;
const ELSEWHERE: u8 = 0;
const SAME_PROCESS: u8 = 1;
const PROCESS: u8 = 2;
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
}

impl Identity {
    pub(crate) fn of(peer: &Peer) -> Identity {
        match peer {
            Peer::Remote => Identity { uid: None, origin: Origin::Elsewhere },
            Peer::SameProcess => Identity { uid: None, origin: Origin::SameProcess },
            Peer::Local(cred) => {
                let origin = Process::running(cred.pid).map_or(Origin::Elsewhere, Origin::Process);
                Identity { uid: Some(cred.uid), origin }
            }
        }
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
        same_uid && same_process
    }

    /// Root, the engine's own user, and this process itself may give clients up.
    pub(crate) fn may_administer(&self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        self.origin == Origin::SameProcess || self.uid.is_some_and(|uid| uid == 0 || uid == own)
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let uid = self.uid.map_or(String::new(), |uid| format!("uid {uid}"));
        match self.origin {
            Origin::SameProcess => "in the engine's process".into(),
            Origin::Process(process) => format!("{uid}, pid {}", process.pid()),
            Origin::Elsewhere if self.uid.is_some() => uid,
            Origin::Elsewhere => "elsewhere".into(),
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        let kind = match self.origin {
            Origin::Elsewhere => ELSEWHERE,
            Origin::SameProcess => SAME_PROCESS,
            Origin::Process(_) => PROCESS,
        };
        out.put_u8(kind);
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
            return Identity { uid: uid_of(uid), origin: Origin::Elsewhere };
        }
        let Some((&[VERSION, kind, a, b, c, d], rest)) = bytes.split_first_chunk::<6>() else {
            return Identity { uid: None, origin: Origin::Elsewhere };
        };
        let origin = match kind {
            SAME_PROCESS => Origin::SameProcess,
            PROCESS => Process::decode(rest).map_or(Origin::Elsewhere, Origin::Process),
            _ => Origin::Elsewhere,
        };
        Identity { uid: uid_of(&[a, b, c, d]), origin }
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
                let identity = Identity { uid, origin };
                assert_eq!(Identity::decode(&identity.encode()), identity);
            }
        }
        let elsewhere = |uid| Identity { uid, origin: Origin::Elsewhere };
        assert_eq!(Identity::decode(&[]), elsewhere(None));
        assert_eq!(Identity::decode(&1000u32.to_le_bytes()), elsewhere(Some(1000)));
        assert_eq!(Identity::decode(&[9, 2, 0, 0, 0, 0, 1, 2, 3]), elsewhere(None), "a later version");
        let whole = Identity { uid: Some(7), origin: Origin::Process(me) }.encode();
        for cut in 6..whole.len() {
            assert_eq!(Identity::decode(&whole[..cut]), elsewhere(Some(7)), "cut at {cut}");
        }
    }

    #[test]
    fn a_rid_belongs_to_a_uid_and_a_process() {
        let me = Process::running(std::process::id()).unwrap();
        let init = Process::running(1).unwrap();
        let of = |uid, process| Identity { uid, origin: Origin::Process(process) };
        assert!(of(Some(1), me).admits(&of(Some(1), me)));
        assert!(!of(Some(1), me).admits(&of(Some(2), me)));
        assert!(!of(Some(1), me).admits(&of(Some(1), init)));
        assert!(of(Some(1), me).admits(&Identity { uid: None, origin: Origin::SameProcess }));
        assert!(Identity { uid: Some(1), origin: Origin::Elsewhere }.admits(&of(Some(1), me)));
    }
}
