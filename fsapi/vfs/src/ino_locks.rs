//! Locks between the operations of one gateway, one per inode.
//!
//! The engine's locks are leases between clients; two operations of the same client share a lease. What orders those two
//! is here: shared or exclusive, first come first served. Rules that exclude deadlock: an operation takes its leases
//! first and its inode locks after them, both in ascending order, and never waits for a lease while it has an inode lock.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use vellum_base::Ino;

/// Inode numbers are well spread by one multiplication; the default hasher costs more than the lock.
#[derive(Default, Clone, Copy)]
pub struct InoHasher(u64);

impl Hasher for InoHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

pub type InoMap<V> = HashMap<Ino, V, BuildHasherDefault<InoHasher>>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mode {
    Shared,
    Exclusive,
}

#[derive(Default)]
pub struct InoLocks {
    entries: RefCell<InoMap<Entry>>,
}

#[derive(Default)]
struct Entry {
    readers: u32,
    writer: bool,
    queue: VecDeque<Waiter>,
    next_ticket: u64,
}

struct Waiter {
    ticket: u64,
    mode: Mode,
    granted: bool,
    waker: Waker,
}

impl Entry {
    fn admits(&self, mode: Mode) -> bool {
        !self.writer && (mode == Mode::Shared || self.readers == 0)
    }

    fn take(&mut self, mode: Mode) {
        match mode {
            Mode::Shared => self.readers += 1,
            Mode::Exclusive => self.writer = true,
        }
    }

    fn give_back(&mut self, mode: Mode) {
        match mode {
            Mode::Shared => self.readers -= 1,
            Mode::Exclusive => self.writer = false,
        }
        self.grant_waiting();
    }

    /// Grants stay in the queue until their waiter is polled, so that a waiter which is dropped can give back.
    fn grant_waiting(&mut self) {
        for i in 0..self.queue.len() {
            let (mode, granted) = (self.queue[i].mode, self.queue[i].granted);
            if granted {
                continue;
            }
            if !self.admits(mode) {
                break;
            }
            self.take(mode);
            self.queue[i].granted = true;
            self.queue[i].waker.wake_by_ref();
        }
    }

    fn is_idle(&self) -> bool {
        self.readers == 0 && !self.writer && self.queue.is_empty()
    }
}

impl InoLocks {
    pub fn acquire(self: &Rc<Self>, ino: Ino, mode: Mode) -> Acquire {
        Acquire { locks: self.clone(), ino, mode, ticket: None, done: false }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    fn with_entry<R>(&self, ino: Ino, f: impl FnOnce(&mut Entry) -> R) -> R {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.entry(ino).or_default();
        let result = f(entry);
        if entry.is_idle() {
            entries.remove(&ino);
        }
        result
    }
}

/// Waits for one lock.
pub struct Acquire {
    locks: Rc<InoLocks>,
    ino: Ino,
    mode: Mode,
    ticket: Option<u64>,
    done: bool,
}

impl Future for Acquire {
    type Output = InoLock;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<InoLock> {
        let this = self.get_mut();
        let (mode, ticket) = (this.mode, &mut this.ticket);
        let taken = this.locks.with_entry(this.ino, |entry| match *ticket {
            None if entry.queue.is_empty() && entry.admits(mode) => {
                entry.take(mode);
                true
            }
            None => {
                *ticket = Some(entry.next_ticket);
                let waiter = Waiter { ticket: entry.next_ticket, mode, granted: false, waker: cx.waker().clone() };
                entry.next_ticket += 1;
                entry.queue.push_back(waiter);
                false
            }
            Some(mine) => match entry.queue.iter().position(|w| w.ticket == mine) {
                Some(at) if entry.queue[at].granted => {
                    entry.queue.remove(at);
                    true
                }
                Some(at) => {
                    entry.queue[at].waker.clone_from(cx.waker());
                    false
                }
                None => unreachable!("a waiter stays queued until it is polled or dropped"),
            },
        });
        if !taken {
            return Poll::Pending;
        }
        this.done = true;
        Poll::Ready(InoLock { locks: this.locks.clone(), ino: this.ino, mode })
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let (Some(mine), false) = (self.ticket, self.done) else { return };
        let mode = self.mode;
        self.locks.with_entry(self.ino, |entry| {
            let Some(at) = entry.queue.iter().position(|w| w.ticket == mine) else { return };
            let granted = entry.queue.remove(at).is_some_and(|w| w.granted);
            if granted {
                entry.give_back(mode);
            } else {
                entry.grant_waiting(); // it may have stood in front of compatible ones
            }
        });
    }
}

/// A held lock; dropping gives it back.
pub struct InoLock {
    locks: Rc<InoLocks>,
    pub ino: Ino,
    mode: Mode,
}

impl Drop for InoLock {
    fn drop(&mut self) {
        let mode = self.mode;
        self.locks.with_entry(self.ino, |entry| entry.give_back(mode));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<F: Future + Unpin>(f: &mut F) -> Option<F::Output> {
        match Pin::new(f).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(out) => Some(out),
            Poll::Pending => None,
        }
    }

    #[test]
    fn readers_share_writers_exclude_and_order_is_kept() {
        let locks = Rc::new(InoLocks::default());
        let mut a = locks.acquire(Ino(1), Mode::Shared);
        let mut b = locks.acquire(Ino(1), Mode::Shared);
        let (a, b) = (poll(&mut a).unwrap(), poll(&mut b).unwrap());
        let mut writer = locks.acquire(Ino(1), Mode::Exclusive);
        assert!(poll(&mut writer).is_none());
        let mut late = locks.acquire(Ino(1), Mode::Shared);
        assert!(poll(&mut late).is_none(), "a late reader does not pass a waiting writer");
        drop(a);
        assert!(poll(&mut writer).is_none());
        drop(b);
        let held = poll(&mut writer).unwrap();
        assert!(poll(&mut late).is_none());
        drop(held);
        drop(poll(&mut late).unwrap());
        assert_eq!(locks.len(), 0, "idle locks take no memory");
    }

    #[test]
    fn a_dropped_waiter_blocks_nobody_whether_granted_or_not() {
        let locks = Rc::new(InoLocks::default());
        let held = poll(&mut locks.acquire(Ino(1), Mode::Shared)).unwrap();
        let mut writer = locks.acquire(Ino(1), Mode::Exclusive);
        assert!(poll(&mut writer).is_none());
        let mut reader = locks.acquire(Ino(1), Mode::Shared);
        assert!(poll(&mut reader).is_none());
        drop(writer);
        let reader = poll(&mut reader).unwrap();
        let mut writer = locks.acquire(Ino(1), Mode::Exclusive);
        assert!(poll(&mut writer).is_none());
        drop((held, reader));
        drop(writer); // granted, never polled again
        drop(poll(&mut locks.acquire(Ino(1), Mode::Exclusive)).unwrap());
        assert_eq!(locks.len(), 0);
    }
}
