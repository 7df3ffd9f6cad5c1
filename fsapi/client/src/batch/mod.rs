//! Batches: how changes leave, atomically, in order, each once; and when they are safe.
//!
//! A transaction joins the open batch whole. The batch is closed by size, by age, by a sync or by a lock that goes; it
//! gets the next gapless number, is sent, and is kept until the epoch that applied it is durable, because a new leader
//! may not know it. Invariants: transactions are in batches in the order of their commits; a key stands once in a
//! batch; the open batch has the number after the last closed one.

mod open;
mod pipeline;
mod sync;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use vellum_base::{BatchNo, Epoch, ItemOp, Term};

pub(crate) use open::OpenBatch;

use crate::wait::WakeList;

/// Number of the batch that holds a transaction: durable with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TxnId(pub BatchNo);

/// A closed batch that is not known to be durable.
pub(crate) struct Retained {
    pub number: BatchNo,
    /// With provisional block addresses: the places of its data are filled in at each sending.
    pub ops: Rc<Vec<ItemOp>>,
    pub bytes: usize,
    pub sent: bool,
    /// Where it was applied. An epoch means something in its term only.
    pub applied: Option<(Term, Epoch)>,
}

pub(crate) struct Batches {
    pub open: RefCell<OpenBatch>,
    /// Number of the open batch.
    pub next: Cell<BatchNo>,
    pub retained: RefCell<VecDeque<Retained>>,
    pub retained_bytes: Cell<usize>,
    /// All batches up to here are durable.
    pub durable: Cell<BatchNo>,
    pub in_flight: Cell<usize>,
    pub syncs_in_flight: Cell<usize>,
    /// What the newest sync request in flight asks for.
    pub sync_asked: Cell<BatchNo>,
    /// Something became durable, was answered, or failed.
    pub progress: WakeList,
    /// The open batch got its first change.
    pub opened: WakeList,
}

impl Batches {
    pub fn new(last: BatchNo) -> Batches {
        Batches {
            open: RefCell::default(),
            next: Cell::new(last.next()),
            retained: RefCell::default(),
            retained_bytes: Cell::new(0),
            durable: Cell::new(last),
            in_flight: Cell::new(0),
            syncs_in_flight: Cell::new(0),
            sync_asked: Cell::new(last),
            progress: WakeList::default(),
            opened: WakeList::default(),
        }
    }
}
