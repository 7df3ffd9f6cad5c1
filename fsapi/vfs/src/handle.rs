//! Open files and directories.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use vellum_base::Ino;

use crate::data::read_ahead::{Budget, ReadAhead};
use crate::error::{Result, VfsError};
use crate::file::File;
use crate::types::{FileHandle, OpenFlags};

pub(crate) struct Handle {
    pub ino: Ino,
    pub flags: OpenFlags,
    pub file: Rc<File>,
    /// The file's error count when this handle reported last.
    pub seen_error: Cell<u32>,
    /// Something was read through it: the access time is due at release.
    pub was_read: Cell<bool>,
    pub read_ahead: ReadAhead,
}

pub(crate) struct Handles {
    next: Cell<u64>,
    by_number: RefCell<HashMap<u64, Rc<Handle>>>,
    read_ahead: Rc<Budget>,
}

impl Handles {
    /// Their read-ahead has so many bytes at most, all together.
    pub fn new(read_ahead_bytes: usize) -> Handles {
        Handles { next: Cell::default(), by_number: RefCell::default(), read_ahead: Budget::new(read_ahead_bytes) }
    }

    /// Lets read-ahead that nobody takes go when there is no room for more.
    pub fn make_room(&self) {
        if self.read_ahead.wants_sweep() {
            self.by_number.borrow().values().for_each(|handle| handle.read_ahead.leave_if_idle());
        }
    }

    /// Counts as one more opener of the file.
    pub fn add(&self, file: Rc<File>, flags: OpenFlags) -> FileHandle {
        file.opens.set(file.opens.get() + 1);
        let number = self.next.get() + 1;
        self.next.set(number);
        let handle = Handle {
            ino: file.ino,
            flags,
            seen_error: Cell::new(file.error_seq()),
            file,
            was_read: Cell::new(false),
            read_ahead: ReadAhead::new(&self.read_ahead),
        };
        self.by_number.borrow_mut().insert(number, Rc::new(handle));
        FileHandle(number)
    }

    pub fn get(&self, handle: FileHandle) -> Result<Rc<Handle>> {
        self.by_number.borrow().get(&handle.0).cloned().ok_or(VfsError::BADF)
    }

    pub fn remove(&self, handle: FileHandle) -> Result<Rc<Handle>> {
        let removed = self.by_number.borrow_mut().remove(&handle.0).ok_or(VfsError::BADF)?;
        removed.file.opens.set(removed.file.opens.get() - 1);
        Ok(removed)
    }

    pub fn len(&self) -> usize {
        self.by_number.borrow().len()
    }
}
