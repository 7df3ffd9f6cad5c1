//! Pages of lock recovery in work: the last is done only after all before it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use vellum_rt::local::Notify;

#[derive(Default)]
pub(crate) struct Pages {
    next: Cell<u64>,
    open: RefCell<BTreeSet<u64>>,
    changed: Notify,
}

impl Pages {
    pub(crate) fn begin(&self) -> u64 {
        let page = self.next.get();
        self.next.set(page + 1);
        self.open.borrow_mut().insert(page);
        page
    }

    pub(crate) fn end(&self, page: u64) {
        self.open.borrow_mut().remove(&page);
        self.changed.notify_all();
    }

    /// Waits until no page that began before `page` is open.
    pub(crate) async fn before(&self, page: u64) {
        loop {
            let changed = self.changed.notified();
            if self.open.borrow().first().is_none_or(|first| *first >= page) {
                return;
            }
            changed.await;
        }
    }
}
