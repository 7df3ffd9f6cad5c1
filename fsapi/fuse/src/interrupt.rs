//! Requests that wait, and INTERRUPTs for them.
//!
//! The kernel sends INTERRUPT for every signal to a waiting caller, deadly or not, and then waits for the answer
//! whatever happens. So: a caller that is being killed gets its request dropped and EINTR at once, whatever it was; a
//! signal that has a handler ends only what POSIX lets end, because programs do not expect EINTR from stat or rename: READ
//! of something that waits; SETLKW ends by itself, as its lock may be granted in that very moment. Invariant: an entry is in the table exactly while its task exists.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Waker};

use crate::abi::Opcode;

/// One waiting request.
#[derive(Debug)]
pub struct Waiting {
    opcode: Opcode,
    pid: u32,
    told: Cell<bool>,
    cancelled: Cell<bool>,
    /// The request's task.
    task: RefCell<Option<Waker>>,
    /// Whoever awaits `until_interrupted` inside it.
    inner: RefCell<Option<Waker>>,
}

impl Waiting {
    /// True when the request was cancelled; else remembers whom to wake.
    pub fn poll_cancelled(&self, cx: &Context<'_>) -> bool {
        if self.cancelled.get() {
            return true;
        }
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
        false
    }

    fn wake(&self) {
        for waker in [self.inner.take(), self.task.borrow().clone()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// What became of an INTERRUPT.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Interrupted {
    /// The request will answer EINTR.
    Cancelled,
    /// The request knows and decides for itself.
    Told,
    /// Nobody waits under this number: already answered, or not yet begun.
    Unknown,
}

/// All waiting requests of a session, by `unique`.
#[derive(Debug, Default)]
pub struct Pending {
    waiting: RefCell<HashMap<u64, Rc<Waiting>>>,
}

impl Pending {
    pub fn len(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Those that somebody waits for: the kernel lets files go in the background, and an unmount does not wait for it.
    pub fn missed(&self) -> usize {
        let nobody = |w: &Waiting| matches!(w.opcode, Opcode::Release | Opcode::Releasedir);
        self.waiting.borrow().values().filter(|w| !nobody(w)).count()
    }

    pub fn insert(&self, unique: u64, opcode: Opcode, pid: u32) -> Rc<Waiting> {
        let waiting = Rc::new(Waiting {
            opcode,
            pid,
            told: Cell::new(false),
            cancelled: Cell::new(false),
            task: RefCell::default(),
            inner: RefCell::default(),
        });
        self.waiting.borrow_mut().insert(unique, waiting.clone());
        waiting
    }

    pub fn remove(&self, unique: u64) {
        self.waiting.borrow_mut().remove(&unique);
    }

    pub fn interrupt(&self, unique: u64) -> Interrupted {
        let Some(waiting) = self.waiting.borrow().get(&unique).cloned() else { return Interrupted::Unknown };
        waiting.told.set(true);
        let cancel = ends_on_any_signal(waiting.opcode) || is_dying(waiting.pid);
        waiting.cancelled.set(waiting.cancelled.get() || cancel);
        waiting.wake();
        if cancel { Interrupted::Cancelled } else { Interrupted::Told }
    }

    /// Cancels everything: the mount is gone.
    pub fn cancel_all(&self) {
        let all: Vec<Rc<Waiting>> = self.waiting.borrow().values().cloned().collect();
        for waiting in all {
            waiting.told.set(true);
            waiting.cancelled.set(true);
            waiting.wake();
        }
    }

    pub(crate) fn is_told(&self, unique: u64) -> bool {
        self.waiting.borrow().get(&unique).is_some_and(|w| w.told.get())
    }

    /// A request that is polled for the first time is not in the table yet; it is polled again when it is.
    pub(crate) fn poll_told(&self, unique: u64, cx: &Context<'_>) -> bool {
        let waiting = self.waiting.borrow();
        let Some(waiting) = waiting.get(&unique) else { return false };
        *waiting.inner.borrow_mut() = Some(cx.waker().clone());
        waiting.told.get()
    }
}

fn ends_on_any_signal(opcode: Opcode) -> bool {
    opcode == Opcode::Read
}

/// True when thread `pid` has a pending signal that will end it, or cannot be asked.
fn is_dying(pid: u32) -> bool {
    if pid == 0 {
        return true;
    }
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => status_says_dying(&status),
        Err(_) => true,
    }
}

/// Signals whose default action neither ends nor dumps: CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH.
const HARMLESS: u64 = bit(17) | bit(18) | bit(19) | bit(20) | bit(21) | bit(22) | bit(23) | bit(28);
const KILL: u64 = bit(9);

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// The kernel turns a deadly signal without core dump into a pending KILL of every thread; one with core dump stays
/// itself until it is taken.
fn status_says_dying(status: &str) -> bool {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or(0)
    };
    let pending = field("SigPnd") | field("ShdPnd");
    let survived = field("SigBlk") | field("SigIgn") | field("SigCgt") | HARMLESS;
    pending & (KILL | !survived) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, blocked: u64, caught: u64) -> String {
        format!(
            "Name:\tx\nSigQ:\t0/1\nSigPnd:\t{pending:016x}\nShdPnd:\t{:016x}\nSigBlk:\t{blocked:016x}\n\
             SigIgn:\t{:016x}\nSigCgt:\t{caught:016x}\n",
            0, 0
        )
    }

    #[test]
    fn a_deadly_signal_is_told_from_a_handled_one() {
        assert!(status_says_dying(&status(bit(9), u64::MAX, 0)), "KILL cannot be blocked");
        assert!(status_says_dying(&status(bit(3), 0, 0)), "QUIT without a handler");
        assert!(!status_says_dying(&status(bit(14), 0, bit(14))), "ALRM with a handler");
        assert!(!status_says_dying(&status(bit(17), 0, 0)), "CHLD by default");
        assert!(!status_says_dying(&status(0, 0, 0)));
        assert!(!status_says_dying(""));
    }

    #[test]
    fn only_what_waits_can_be_interrupted() {
        let pending = Pending::default();
        assert_eq!(pending.interrupt(4), Interrupted::Unknown);
        let me = std::process::id();
        let read = pending.insert(4, Opcode::Read, me);
        let create = pending.insert(6, Opcode::Create, me);
        assert_eq!(pending.interrupt(4), Interrupted::Cancelled);
        assert_eq!(pending.interrupt(6), Interrupted::Told, "this process is not being killed");
        assert!(read.cancelled.get() && !create.cancelled.get() && pending.is_told(6));
        pending.remove(4);
        pending.cancel_all();
        assert!(create.cancelled.get());
        assert_eq!(pending.len(), 1);
    }
}
