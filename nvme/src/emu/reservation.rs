//! Reservations of a namespace (8.19): registrants, the holder, and who may do what.
//!
//! Hosts are told apart by their identifier, whatever controller they come through. A command is judged when it is
//! executed, so preempt-and-abort has nothing to abort: what a preempted host has queued is refused when its turn comes.
//! Not modelled: notifications, persistence over power loss (a model's reservations live as long as its subsystem), and
//! the host identifier 0, whose commands the specification allows and the model refuses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use zerocopy::{FromZeros, IntoBytes};

use super::data::{give, take};
use super::subsystem::Namespace;
use super::{Bus, Controller};
use crate::spec::{
    AcquireAction, IoOpcode, PAGE_BYTES, RegisterAction, RegistrantStatus, ReleaseAction, ReservationKeys,
    ReservationStatus, ReservationType, Status, Submission,
};

pub type Host = [u8; 16];

/// More hosts than one page of report has room for make no sense in a model.
const MAX_REGISTRANTS: usize = PAGE_BYTES / size_of::<RegistrantStatus>() - 1;
/// IEKEY: the own key is not compared.
const IGNORE_KEY: u32 = 1 << 3;

#[derive(Default)]
pub struct Reservations {
    /// Somebody holds one: the usual case, that nobody does, is one load.
    held: AtomicBool,
    table: Mutex<Table>,
}

impl Reservations {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy)]
struct Registrant {
    host: Host,
    key: u64,
    /// Through which it registered last.
    controller: u16,
}

#[derive(Default)]
struct Table {
    generation: u32,
    registrants: Vec<Registrant>,
    held: Option<(ReservationType, Host)>,
}

type Answer = Result<(), Status>;
const CONFLICT: Status = Status::RESERVATION_CONFLICT.with_do_not_retry();
const INVALID: Status = Status::INVALID_FIELD.with_do_not_retry();

impl Table {
    fn key_of(&self, host: &Host) -> Option<u64> {
        self.registrants.iter().find(|one| one.host == *host).map(|one| one.key)
    }

    /// The host is a registrant, with that key.
    fn check(&self, host: &Host, key: u64, ignore: bool) -> Answer {
        let known = self.key_of(host).ok_or(CONFLICT)?;
        if ignore || known == key { Ok(()) } else { Err(CONFLICT) }
    }

    fn holds(&self, host: &Host) -> bool {
        match self.held {
            Some((kind, _)) if kind.is_for_all_registrants() => self.key_of(host).is_some(),
            Some((_, holder)) => holder == *host,
            None => false,
        }
    }

    fn may(&self, host: &Host, write: bool) -> bool {
        let Some((kind, holder)) = self.held else { return true };
        holder == *host
            || kind.is_for_registrants() && self.key_of(host).is_some()
            || !write && !kind.is_exclusive_access()
    }

    /// A reservation ends with its holder, or with the last of all registrants.
    fn remove(&mut self, gone: impl Fn(&Registrant) -> bool) {
        self.registrants.retain(|one| !gone(one));
        self.generation = self.generation.wrapping_add(1);
        if let Some((kind, holder)) = self.held {
            let orphaned = if kind.is_for_all_registrants() {
                self.registrants.is_empty()
            } else {
                self.key_of(&holder).is_none()
            };
            if orphaned {
                self.held = None;
            }
        }
    }

    fn register(&mut self, new: Registrant, action: RegisterAction, ignore: bool, current: u64) -> Answer {
        let host = new.host;
        match action {
            RegisterAction::Register => match self.key_of(&host) {
                Some(key) if key == new.key => return Ok(()),
                Some(_) => return Err(CONFLICT),
                None if self.registrants.len() == MAX_REGISTRANTS => return Err(CONFLICT),
                None => self.registrants.push(new),
            },
            RegisterAction::Unregister => {
                self.check(&host, current, ignore)?;
                self.remove(|one| one.host == host);
                return Ok(());
            }
            RegisterAction::Replace => {
                self.check(&host, current, ignore)?;
                self.registrants.iter_mut().filter(|one| one.host == host).for_each(|one| *one = new);
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn acquire(&mut self, host: Host, action: AcquireAction, kind: ReservationType, keys: ReservationKeys) -> Answer {
        self.check(&host, keys.current.get(), false)?;
        match action {
            AcquireAction::Acquire => match self.held {
                None => self.held = Some((kind, host)),
                Some((now, _)) if now == kind && self.holds(&host) => {}
                Some(_) => return Err(CONFLICT),
            },
            AcquireAction::Preempt | AcquireAction::PreemptAndAbort => self.preempt(host, kind, keys.other.get())?,
        }
        Ok(())
    }

    /// 8.19.7: who preempts the holder's key holds the reservation then.
    fn preempt(&mut self, host: Host, kind: ReservationType, key: u64) -> Answer {
        let others = |one: &Registrant| one.host != host;
        match self.held {
            Some((now, _)) if now.is_for_all_registrants() && key == 0 => {
                self.remove(others);
                self.held = Some((kind, host));
            }
            Some((now, holder)) if !now.is_for_all_registrants() && self.key_of(&holder) == Some(key) => {
                self.remove(|one| others(one) && one.key == key);
                self.held = Some((kind, host));
            }
            _ if key == 0 => return Err(INVALID),
            _ if !self.registrants.iter().any(|one| one.key == key) => return Err(CONFLICT),
            _ => self.remove(|one| others(one) && one.key == key),
        }
        Ok(())
    }

    fn release(&mut self, host: Host, action: ReleaseAction, kind: Option<ReservationType>, key: u64) -> Answer {
        self.check(&host, key, false)?;
        match (action, self.held) {
            (ReleaseAction::Clear, _) => self.remove(|_| true),
            (ReleaseAction::Release, Some((now, _))) if self.holds(&host) => {
                if kind != Some(now) {
                    return Err(INVALID);
                }
                self.held = None;
            }
            (ReleaseAction::Release, _) => {}
        }
        Ok(())
    }

    /// The extended status data structure (7.8).
    fn report(&self, out: &mut [u8]) {
        let mut head = ReservationStatus::new_zeroed();
        head.generation = self.generation.into();
        head.kind = self.held.map_or(0, |(kind, _)| kind as u8);
        head.registrants = (self.registrants.len() as u16).into();
        let mut all = head.as_bytes().to_vec();
        for one in &self.registrants {
            let status = RegistrantStatus::new(one.controller, self.holds(&one.host), one.key, one.host);
            all.extend_from_slice(status.as_bytes());
        }
        out.iter_mut().zip(all).for_each(|(place, byte)| *place = byte);
    }
}

impl<B: Bus> Controller<B> {
    /// Refuses what another host's reservation forbids (8.19.5).
    #[inline]
    pub(super) fn check_reservation(&self, ns: &Namespace, write: bool) -> Answer {
        if !ns.reservations.held.load(Ordering::Acquire) {
            return Ok(());
        }
        let host = self.admin_state().host;
        if ns.reservations.table().may(&host, write) { Ok(()) } else { Err(CONFLICT) }
    }

    pub(super) fn reservation(&self, ns: &Namespace, opcode: IoOpcode, command: &Submission) -> Answer {
        if !self.config().reservations {
            return Err(Status::INVALID_OPCODE.with_do_not_retry());
        }
        if opcode == IoOpcode::ReservationReport {
            return self.report_reservation(ns, command);
        }
        let host = self.admin_state().host;
        if host == Host::default() {
            return Err(INVALID);
        }
        let cdw10 = command.cdw10.get();
        let ignore = cdw10 & IGNORE_KEY != 0;
        let kind = ReservationType::from_id((cdw10 >> 8) as u8);
        let mut keys = ReservationKeys::default();
        let len = if opcode == IoOpcode::ReservationRelease { 8 } else { size_of::<ReservationKeys>() };
        take(self.bus(), command, &mut keys.as_mut_bytes()[..len])?;
        let mut table = ns.reservations.table();
        let answer = match opcode {
            IoOpcode::ReservationRegister => {
                let action = RegisterAction::from_cdw10(cdw10).ok_or(INVALID)?;
                let new = Registrant { host, key: keys.other.get(), controller: self.id() };
                table.register(new, action, ignore, keys.current.get())
            }
            IoOpcode::ReservationAcquire => {
                let action = AcquireAction::from_cdw10(cdw10).ok_or(INVALID)?;
                table.acquire(host, action, kind.ok_or(INVALID)?, keys)
            }
            _ => {
                let action = ReleaseAction::from_cdw10(cdw10).ok_or(INVALID)?;
                table.release(host, action, kind, keys.current.get())
            }
        };
        ns.reservations.held.store(table.held.is_some(), Ordering::Release);
        answer
    }

    fn report_reservation(&self, ns: &Namespace, command: &Submission) -> Answer {
        if command.cdw11.get() & 1 == 0 {
            return Err(Status::HOST_ID_INCONSISTENT.with_do_not_retry()); // long identifiers want the extended form
        }
        let len = usize::try_from(command.cdw10.get()).unwrap_or(usize::MAX).saturating_add(1).saturating_mul(4);
        if len > PAGE_BYTES {
            return Err(INVALID);
        }
        let mut bytes = [0; PAGE_BYTES];
        ns.reservations.table().report(&mut bytes);
        give(self.bus(), command, &bytes[..len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ReservationType::*;

    const A: Host = [1; 16];
    const B: Host = [2; 16];
    const C: Host = [3; 16];

    fn keys(current: u64, other: u64) -> ReservationKeys {
        ReservationKeys { current: current.into(), other: other.into() }
    }

    fn registered(hosts: &[(Host, u64)]) -> Table {
        let mut table = Table::default();
        for (host, key) in hosts {
            let new = Registrant { host: *host, key: *key, controller: 1 };
            table.register(new, RegisterAction::Register, false, 0).unwrap();
        }
        table
    }

    /// Whether holder A, registrant B and stranger C may read and write.
    fn rights(kind: ReservationType) -> [(bool, bool); 3] {
        let mut table = registered(&[(A, 10), (B, 20)]);
        table.acquire(A, AcquireAction::Acquire, kind, keys(10, 0)).unwrap();
        [A, B, C].map(|host| (table.may(&host, false), table.may(&host, true)))
    }

    #[test]
    fn each_type_gives_the_rights_of_the_specification() {
        const ALL: (bool, bool) = (true, true);
        const READ: (bool, bool) = (true, false);
        const NONE: (bool, bool) = (false, false);
        assert_eq!(rights(WriteExclusive), [ALL, READ, READ]);
        assert_eq!(rights(ExclusiveAccess), [ALL, NONE, NONE]);
        assert_eq!(rights(WriteExclusiveRegistrantsOnly), [ALL, ALL, READ]);
        assert_eq!(rights(ExclusiveAccessRegistrantsOnly), [ALL, ALL, NONE]);
        assert_eq!(rights(WriteExclusiveAllRegistrants), [ALL, ALL, READ]);
        assert_eq!(rights(ExclusiveAccessAllRegistrants), [ALL, ALL, NONE]);
    }

    #[test]
    fn the_key_is_what_a_host_proves_itself_with() {
        let mut table = registered(&[(A, 10)]);
        let acquire = AcquireAction::Acquire;
        assert_eq!(table.acquire(A, acquire, WriteExclusive, keys(11, 0)), Err(CONFLICT), "a wrong key");
        assert_eq!(table.acquire(B, acquire, WriteExclusive, keys(10, 0)), Err(CONFLICT), "no registrant");
        let other = Registrant { host: A, key: 12, controller: 1 };
        assert_eq!(table.register(other, RegisterAction::Register, false, 0), Err(CONFLICT), "it has a key");
        table.register(other, RegisterAction::Replace, true, 0).unwrap();
        table.acquire(A, acquire, WriteExclusive, keys(12, 0)).unwrap();
        table.acquire(A, acquire, WriteExclusive, keys(12, 0)).expect("it holds that already");
        assert_eq!(table.acquire(A, acquire, ExclusiveAccess, keys(12, 0)), Err(CONFLICT), "not in place");
    }

    #[test]
    fn who_preempts_the_holder_holds_and_who_is_preempted_is_a_stranger() {
        let mut table = registered(&[(A, 10), (B, 20), (C, 30)]);
        table.acquire(A, AcquireAction::Acquire, WriteExclusiveRegistrantsOnly, keys(10, 0)).unwrap();
        let preempt = |table: &mut Table, by, own, victim| {
            table.acquire(by, AcquireAction::PreemptAndAbort, WriteExclusiveRegistrantsOnly, keys(own, victim))
        };
        preempt(&mut table, B, 20, 30).unwrap();
        assert!(!table.may(&C, true) && table.holds(&A), "a registrant was preempted, not the holder");
        preempt(&mut table, B, 20, 10).unwrap();
        assert!(!table.may(&A, true) && table.may(&A, false) && table.holds(&B));
        assert_eq!(preempt(&mut table, A, 10, 20), Err(CONFLICT), "it is no registrant any more");
        assert_eq!(preempt(&mut table, B, 20, 10), Err(CONFLICT), "nobody has that key");
    }

    #[test]
    fn a_reservation_ends_with_its_holder_or_with_the_last_of_all() {
        let leave = |table: &mut Table, host, key| {
            let new = Registrant { host, key: 0, controller: 1 };
            table.register(new, RegisterAction::Unregister, false, key).unwrap();
            table.held.is_some()
        };
        for (kind, after_holder) in [(WriteExclusiveRegistrantsOnly, false), (WriteExclusiveAllRegistrants, true)] {
            let mut table = registered(&[(A, 10), (B, 20)]);
            table.acquire(A, AcquireAction::Acquire, kind, keys(10, 0)).unwrap();
            assert_eq!(leave(&mut table, A, 10), after_holder, "{kind}");
            assert!(!leave(&mut table, B, 20), "{kind}");
        }
        let mut table = registered(&[(A, 10), (B, 20)]);
        table.acquire(A, AcquireAction::Acquire, WriteExclusive, keys(10, 0)).unwrap();
        table.release(B, ReleaseAction::Release, Some(WriteExclusive), 20).expect("nothing to release");
        assert!(table.holds(&A));
        assert_eq!(table.release(A, ReleaseAction::Release, Some(ExclusiveAccess), 10), Err(INVALID));
        table.release(B, ReleaseAction::Clear, None, 20).unwrap();
        assert!(table.held.is_none() && table.registrants.is_empty());
    }

    #[test]
    fn all_registrants_are_preempted_by_the_key_nobody_has() {
        let mut table = registered(&[(A, 10), (B, 20), (C, 30)]);
        table.acquire(A, AcquireAction::Acquire, WriteExclusiveAllRegistrants, keys(10, 0)).unwrap();
        table.acquire(B, AcquireAction::Preempt, WriteExclusive, keys(20, 0)).unwrap();
        assert!(table.holds(&B) && !table.may(&A, true) && !table.may(&C, true));
    }
}
