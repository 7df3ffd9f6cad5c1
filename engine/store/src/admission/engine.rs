//! Commits of the engine's own that change clients' items: without a session, a turn or a batch number.

use std::collections::BTreeMap;
use std::rc::Rc;

use vellum_base::{Epoch, ItemOp, Key, ReactorId, Rid};
use vellum_format::Value;

use super::home::{Attempt, Held};
use crate::error::CommitError;
use crate::mesh::Refused;
use crate::store::Store;

impl Store {
    /// Makes changes of the engine's own: [`Rid::ENGINE`] may write the keys, all of this reactor, and new blocks are pending
    /// for it. Only where the items are `expected` still; `None` when they are not. There is no batch number: what a crash
    /// takes is not sent again.
    pub(crate) async fn commit_engine(
        self: &Rc<Self>,
        ops: Vec<ItemOp>,
        expected: &[(Key, Value)],
    ) -> Result<Option<Epoch>, CommitError> {
        self.home.running.set(self.home.running.get() + 1);
        let result = self.commit_engine_once(ops, expected).await;
        self.home.running.set(self.home.running.get() - 1);
        self.room.notify_all();
        result
    }

    async fn commit_engine_once(
        self: &Rc<Self>,
        ops: Vec<ItemOp>,
        expected: &[(Key, Value)],
    ) -> Result<Option<Epoch>, CommitError> {
        let by_owner = BTreeMap::from([(self.me, ops)]);
        loop {
            self.check_writable()?;
            match self.attempt_engine(&by_owner, expected).await? {
                Some(Attempt::Done(epoch)) => return Ok(Some(epoch)),
                Some(Attempt::Moved) => self.until_moved().await,
                Some(Attempt::Busy) => self.wait_for_room().await,
                None => return Ok(None),
            }
        }
    }

    async fn attempt_engine(
        self: &Rc<Self>,
        by_owner: &BTreeMap<ReactorId, Vec<ItemOp>>,
        expected: &[(Key, Value)],
    ) -> Result<Option<Attempt>, CommitError> {
        let rid = Rid::ENGINE;
        let ops = by_owner.get(&self.me).map_or(&[][..], Vec::as_slice);
        let reserved = match self.reserve(rid, ops).await? {
            Ok(reserved) => reserved,
            Err(Refused::No(e)) => return Err(e),
            Err(_) => return Ok(Some(Attempt::Busy)),
        };
        let mut held = vec![Held { store: self.clone(), reactor: self.me, token: reserved.token, applied: false }];
        // From here on nobody else changes these inodes.
        let keys: Vec<Key> = expected.iter().map(|(key, _)| *key).collect();
        let found = self.get_here(&keys, Epoch(u64::MAX)).await?;
        if found.iter().zip(expected).any(|(found, (_, expected))| found.as_ref() != Some(expected)) {
            return Ok(None);
        }
        let changes = self.block_changes(rid, by_owner, &reserved.released)?;
        if let Some(attempt) = self.reserve_blocks(rid, changes, &mut held).await? {
            return Ok(Some(attempt));
        }
        if self.epochs.borrow().open() < reserved.least_epoch {
            return Ok(Some(Attempt::Busy));
        }
        self.check_failed()?;
        let epoch = self.apply_held(held);
        self.mark_dirty(epoch);
        Ok(Some(Attempt::Done(epoch)))
    }
}
