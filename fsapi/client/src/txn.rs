//! A transaction: changes that become visible, and later durable, together.

use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{Ino, ItemOp, Key, Zone};
use vellum_format::item::MAX_VALUE;
use vellum_wire::{LockMode, LockName};

use crate::batch::TxnId;
use crate::cache::{group_of, is_client_key};
use crate::lock::LockGuard;
use crate::stats::count;
use crate::{Client, ClientError, MAX_TXN_OPS, env};

/// Collects changes under a guard that holds the groups of all its keys in WRITE. Dropping it changes nothing.
pub struct Txn<'g> {
    client: Rc<Client>,
    guard: &'g LockGuard,
    seen: Seen,
    ops: Vec<ItemOp>,
}

/// A point in time: what is read after it knows of every extent that was torn before it.
#[derive(Clone, Copy, Debug)]
pub struct Seen(pub(crate) u64);

impl Txn<'_> {
    fn writable(&self, key: &Key) {
        assert!(is_client_key(key), "{key:?} is not a client's to write");
        let name = LockName::Group(group_of(key));
        assert!(self.guard.mode(name) == LockMode::Write, "{key:?} is written without its lock");
    }

    pub fn put(&mut self, key: Key, value: Bytes) {
        self.writable(&key);
        assert!(value.len() <= MAX_VALUE, "a value of {} bytes is several items", value.len());
        self.ops.push(ItemOp::Put { key, value });
    }

    pub fn delete(&mut self, key: Key) {
        self.writable(&key);
        self.ops.push(ItemOp::Delete { key });
    }

    /// All items of the inode in `Zone::Fs` die. Its extents must have been deleted one by one before, in this or in
    /// earlier transactions: that is what frees their blocks.
    pub fn delete_inode(&mut self, ino: Ino) {
        self.writable(&Key::new(vellum_base::Bucket(ino.bucket()), Zone::Fs, ino.0, 0, 0, 0, 0));
        self.ops.push(ItemOp::DeleteInode { ino });
    }

    pub fn len(&self) -> usize {
        self.ops.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Makes the changes, all of them at once: in the cache now, durable together later. Never waits.
    ///
    /// Errors: this client has failed or is fenced; [`ClientError::Moved`]: read again. Nothing was changed.
    pub fn commit(self) -> Result<TxnId, ClientError> {
        let Txn { client, guard: _, seen, ops } = self;
        client.check_alive()?;
        assert!(ops.len() <= MAX_TXN_OPS, "{} operations do not fit one transaction", ops.len());
        let ops = client.split_txn(seen, ops)?;
        let b = &client.batches;
        if ops.is_empty() {
            return Ok(TxnId(vellum_base::BatchNo(b.next.get().0 - 1)));
        }
        count(&client.counters.txns, 1);
        count(&client.counters.ops, ops.len() as u64);
        let bytes: usize = ops.iter().map(ItemOp::len_bytes).sum();
        let (open_ops, open_bytes) = {
            let open = b.open.borrow();
            (open.ops(), open.bytes())
        };
        if open_ops + ops.len() > client.options.batch_ops || open_bytes + bytes > client.options.batch_bytes {
            client.close_batch();
        }
        let number = b.next.get();
        let was_empty = b.open.borrow().is_empty();
        {
            let mut cache = client.cache.borrow_mut();
            let mut open = b.open.borrow_mut();
            for op in ops {
                cache.apply(&op, number);
                if let ItemOp::Put { key, value } = &op {
                    client.data.refer(key, value, number);
                }
                open.add(op);
            }
            if was_empty {
                open.since_ns = env::now_ns();
            }
        }
        let full = {
            let open = b.open.borrow();
            open.ops() >= client.options.batch_ops || open.bytes() >= client.options.batch_bytes
        };
        if full {
            client.close_batch();
        } else if was_empty {
            b.opened.wake_all();
        }
        client.evict();
        Ok(TxnId(number))
    }
}

impl Client {
    pub fn begin<'g>(self: &Rc<Self>, guard: &'g LockGuard) -> Txn<'g> {
        Txn { client: self.clone(), guard, seen: Seen(guard.era.0), ops: Vec::new() }
    }

    /// The mark for [`Self::begin_since`], to be taken before anything is read.
    pub fn seen(&self) -> Seen {
        Seen(self.data.era().0)
    }

    /// A transaction that relies on no extent that was read before `seen`, although its guard may be older: after
    /// [`ClientError::Moved`] it is enough to read again.
    pub fn begin_since<'g>(self: &Rc<Self>, guard: &'g LockGuard, seen: Seen) -> Txn<'g> {
        Txn { client: self.clone(), guard, seen, ops: Vec::new() }
    }
}
