//! The value of a client record: whose rid it is, and whether its client can come back at all.
//!
//! One encoding per identity; what is not understood is an error, and a rid of such a record is nobody's.

use bytes::Bytes;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::item::ItemError;

/// 1 knew uids alone, and is not read any more.
pub const IDENTITY_VERSION: u8 = 2;
/// Longest name of a certificate's subject, with its role.
pub const MAX_SUBJECT: usize = 72;

pub const BY_ANYBODY: u8 = 0;
pub const BY_ENGINE: u8 = 1;
pub const BY_UID: u8 = 2;
pub const BY_CERTIFICATE: u8 = 3;

pub const FROM_ELSEWHERE: u8 = 0;
pub const FROM_ENGINE: u8 = 1;
pub const FROM_PROCESS: u8 = 2;

/// What proved who a client is. A rid belongs to the one that first used it, for ever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Principal {
    /// Plain TCP on loopback: everybody on the host.
    Anybody,
    /// A client in the engine's own process.
    Engine,
    /// The peer of a unix socket.
    Uid(u32),
    /// The role and name in a certificate, as `client/NAME`: a renewed certificate is the same one.
    Certificate(String),
}

/// A process, so named that it is never taken for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessId {
    /// Of the host, and the number of its pid namespace: within both a pid and a start time mean one process.
    pub boot: [u8; 16],
    pub namespace: u64,
    pub pid: u32,
    /// In ticks after boot.
    pub start: u64,
}

/// Where a client lives, as far as its end can be seen from the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Only its connection tells.
    Elsewhere,
    /// In the engine's own process: it ends with that.
    Engine,
    /// In a process of the engine's host.
    Process(ProcessId),
}

/// Of a client that has the device and runs compactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkerMark {
    /// Its slot, when it is a quorum member.
    pub slot: Option<u8>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientIdentity {
    pub principal: Principal,
    pub origin: Origin,
    /// None: a client without the device.
    pub worker: Option<WorkerMark>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    version: u8,
    principal: u8,
    origin: u8,
    subject_len: u8,
    uid: U32,
    boot: [u8; 16],
    namespace: U64,
    start: U64,
    pid: U32,
    /// 0: no worker; 1: one without a slot; else its slot plus 2.
    worker: u8,
    reserved: [u8; 3],
    subject: [u8; MAX_SUBJECT],
}

const _: () = assert!(size_of::<Raw>() == ClientIdentity::LEN);
const _: () = assert!(MAX_SUBJECT <= u8::MAX as usize);

impl ClientIdentity {
    pub const LEN: usize = 120;

    /// # Panics
    /// When a subject is longer than [`MAX_SUBJECT`].
    pub fn encode(&self) -> Bytes {
        let (principal, uid, subject) = match &self.principal {
            Principal::Anybody => (BY_ANYBODY, 0, ""),
            Principal::Engine => (BY_ENGINE, 0, ""),
            Principal::Uid(uid) => (BY_UID, *uid, ""),
            Principal::Certificate(subject) => (BY_CERTIFICATE, 0, subject.as_str()),
        };
        assert!(subject.len() <= MAX_SUBJECT, "a subject is bounded where it is read");
        let none = ProcessId { boot: [0; 16], namespace: 0, pid: 0, start: 0 };
        let (origin, process) = match self.origin {
            Origin::Elsewhere => (FROM_ELSEWHERE, none),
            Origin::Engine => (FROM_ENGINE, none),
            Origin::Process(process) => (FROM_PROCESS, process),
        };
        let mut raw = Raw {
            version: IDENTITY_VERSION,
            principal,
            origin,
            subject_len: subject.len() as u8,
            uid: uid.into(),
            boot: process.boot,
            namespace: process.namespace.into(),
            start: process.start.into(),
            pid: process.pid.into(),
            worker: self.worker.map_or(0, |worker| worker.slot.map_or(1, |slot| slot.min(u8::MAX - 2) + 2)),
            reserved: [0; 3],
            subject: [0; MAX_SUBJECT],
        };
        raw.subject[..subject.len()].copy_from_slice(subject.as_bytes());
        Bytes::copy_from_slice(raw.as_bytes())
    }

    pub fn decode(value: &[u8]) -> Result<ClientIdentity, ItemError> {
        const WHAT: &str = "client identity";
        let wrong = |what, found: u64| ItemError::Value { what, found };
        let raw = Raw::ref_from_bytes(value).map_err(|_| ItemError::Length {
            what: WHAT,
            expected: ClientIdentity::LEN,
            found: value.len(),
        })?;
        if raw.version != IDENTITY_VERSION {
            return Err(wrong("client identity's version", raw.version.into()));
        }
        let len = usize::from(raw.subject_len);
        let subject = raw.subject.get(..len).and_then(|subject| std::str::from_utf8(subject).ok());
        let subject = subject.ok_or_else(|| wrong("client identity's subject", raw.subject_len.into()))?;
        let principal = match raw.principal {
            BY_ANYBODY => Principal::Anybody,
            BY_ENGINE => Principal::Engine,
            BY_UID => Principal::Uid(raw.uid.get()),
            BY_CERTIFICATE => Principal::Certificate(subject.to_owned()),
            found => return Err(wrong("client identity's principal", found.into())),
        };
        let origin = match raw.origin {
            FROM_ELSEWHERE => Origin::Elsewhere,
            FROM_ENGINE => Origin::Engine,
            FROM_PROCESS => Origin::Process(ProcessId {
                boot: raw.boot,
                namespace: raw.namespace.get(),
                pid: raw.pid.get(),
                start: raw.start.get(),
            }),
            found => return Err(wrong("client identity's origin", found.into())),
        };
        let worker = raw.worker.checked_sub(1).map(|rest| WorkerMark { slot: rest.checked_sub(1) });
        let identity = ClientIdentity { principal, origin, worker };
        // Fields that mean nothing here are zeros.
        if identity.encode() != value {
            return Err(wrong(WHAT, raw.principal.into()));
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<ClientIdentity> {
        let process = ProcessId { boot: [7; 16], namespace: 1 << 40, pid: 77, start: 1 << 33 };
        let longest = "c".repeat(MAX_SUBJECT);
        let principals = [
            Principal::Anybody,
            Principal::Engine,
            Principal::Uid(0),
            Principal::Uid(u32::MAX),
            Principal::Certificate("client/gw".into()),
            Principal::Certificate(longest),
        ];
        let origins = [Origin::Elsewhere, Origin::Engine, Origin::Process(process)];
        let pairs = principals.iter().flat_map(|principal| origins.iter().map(move |origin| (principal, origin)));
        let workers = [None, Some(WorkerMark { slot: None }), Some(WorkerMark { slot: Some(14) })];
        pairs
            .flat_map(|(principal, origin)| {
                workers.map(|worker| ClientIdentity { principal: principal.clone(), origin: *origin, worker })
            })
            .collect()
    }

    #[test]
    fn identities_survive_their_record() {
        for identity in all() {
            assert_eq!(ClientIdentity::decode(&identity.encode()), Ok(identity));
        }
    }

    #[test]
    fn a_record_that_was_changed_or_cut_is_no_other_identity() {
        for identity in all() {
            let whole = identity.encode();
            for cut in 0..whole.len() {
                assert!(ClientIdentity::decode(&whole[..cut]).is_err());
            }
            for bit in 0..8 * whole.len() {
                let mut other = whole.to_vec();
                other[bit / 8] ^= 1 << (bit % 8);
                if let Ok(other) = ClientIdentity::decode(&other) {
                    assert_ne!(other, identity, "one encoding per identity");
                }
            }
        }
        assert!(ClientIdentity::decode(&1000u32.to_le_bytes()).is_err(), "version 0");
        assert!(ClientIdentity::decode(&[1, 0, 0, 0, 0, 0]).is_err(), "version 1");
    }
}
