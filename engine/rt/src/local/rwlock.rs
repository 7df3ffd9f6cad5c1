//! Many readers or one writer, across awaits; first come, first served, so that neither side starves.

use std::cell::{Ref, RefCell, RefMut};
use std::fmt;
use std::ops::{Deref, DerefMut};

use super::semaphore::{Permit, Semaphore};

/// A writer takes all of them.
const READERS: usize = usize::MAX >> 4;

pub struct RwLock<T> {
    readers: Semaphore,
    value: RefCell<T>,
}

impl<T> RwLock<T> {
    pub fn new(value: T) -> RwLock<T> {
        RwLock { readers: Semaphore::new(READERS), value: RefCell::new(value) }
    }

    pub async fn read(&self) -> ReadGuard<'_, T> {
        let permit = self.readers.acquire(1).await;
        ReadGuard { value: self.value.borrow(), _permit: permit }
    }

    pub async fn write(&self) -> WriteGuard<'_, T> {
        let permit = self.readers.acquire(READERS).await;
        WriteGuard { value: self.value.borrow_mut(), _permit: permit }
    }

    pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        let permit = self.readers.try_acquire(1)?;
        Some(ReadGuard { value: self.value.borrow(), _permit: permit })
    }

    pub fn try_write(&self) -> Option<WriteGuard<'_, T>> {
        let permit = self.readers.try_acquire(READERS)?;
        Some(WriteGuard { value: self.value.borrow_mut(), _permit: permit })
    }
}

/// Field order matters: the borrow ends before the permit wakes the next owner.
#[must_use]
pub struct ReadGuard<'a, T> {
    value: Ref<'a, T>,
    _permit: Permit<'a>,
}

/// Field order matters: the borrow ends before the permit wakes the next owner.
#[must_use]
pub struct WriteGuard<'a, T> {
    value: RefMut<'a, T>,
    _permit: Permit<'a>,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RwLock({} wait)", self.readers.waiting())
    }
}
