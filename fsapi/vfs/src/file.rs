//! What this gateway knows about the inodes that are open or have data in memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use vellum_base::Ino;

use crate::data::buffer::Buffer;
use crate::error::VfsError;
use crate::gate::Gate;

pub(crate) struct File {
    pub ino: Ino,
    /// Handles on it in this gateway.
    pub opens: Cell<u32>,
    /// It has lost its last name: it dies with the last handle.
    pub unlinked: Cell<bool>,
    /// It was made without a name, and may get one.
    pub linkable: Cell<bool>,
    pub buffer: RefCell<Buffer>,
    /// Opened when flights land, are committed, or may start again.
    pub changed: Gate,
    /// Counts failed write-backs; each handle reports once what happened since it looked last.
    error_seq: Cell<u32>,
    error: Cell<VfsError>,
}

impl File {
    fn new(ino: Ino) -> File {
        File {
            ino,
            opens: Cell::default(),
            unlinked: Cell::default(),
            linkable: Cell::default(),
            buffer: RefCell::default(),
            changed: Gate::default(),
            error_seq: Cell::default(),
            error: Cell::new(VfsError::IO),
        }
    }

    pub fn fail(&self, error: VfsError) {
        self.error.set(error);
        self.error_seq.set(self.error_seq.get().wrapping_add(1));
    }

    pub fn error_seq(&self) -> u32 {
        self.error_seq.get()
    }

    /// What failed since `seen`, once.
    pub fn error_since(&self, seen: &Cell<u32>) -> Result<(), VfsError> {
        if seen.replace(self.error_seq.get()) == self.error_seq.get() { Ok(()) } else { Err(self.error.get()) }
    }

    fn is_idle(&self) -> bool {
        self.opens.get() == 0 && self.buffer.borrow().is_clean()
    }
}

/// By inode number, so that those of a lock group are neighbours.
#[derive(Default)]
pub(crate) struct Files {
    by_ino: RefCell<BTreeMap<Ino, Rc<File>>>,
}

impl Files {
    pub fn get(&self, ino: Ino) -> Option<Rc<File>> {
        self.by_ino.borrow().get(&ino).cloned()
    }

    pub fn get_or_new(&self, ino: Ino) -> Rc<File> {
        self.by_ino.borrow_mut().entry(ino).or_insert_with(|| Rc::new(File::new(ino))).clone()
    }

    pub fn forget_if_idle(&self, file: &File) {
        let mut by_ino = self.by_ino.borrow_mut();
        if file.is_idle() && by_ino.get(&file.ino).is_some_and(|known| std::ptr::eq(&**known, file)) {
            by_ino.remove(&file.ino);
        }
    }

    /// Files of an inode group, ascending.
    pub fn of_group(&self, group: u64) -> Vec<Rc<File>> {
        let range = Ino::first_of_group(group)..=Ino::last_of_group(group);
        self.by_ino.borrow().range(range).map(|(_, file)| file.clone()).collect()
    }

    pub fn all(&self) -> Vec<Rc<File>> {
        self.by_ino.borrow().values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.by_ino.borrow().len()
    }
}
