//! Client records and inode groups: what the engine itself keeps durable before it answers.

use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{BatchNo, Bucket, Epoch, Ino, Mutant, Rid, View, mutant, probe};
use vellum_format::Record;
use vellum_format::system::{self, LastBatch};
use vellum_rt::local::Mutex;

use crate::error::StoreError;
use crate::fact::Fact;
use crate::mesh::{Answer, Request};
use crate::store::Store;

const NEWEST: Epoch = Epoch(u64::MAX);
/// Inode groups of one bucket that are taken durably at once. What a crash leaves of them is never used.
const GROUPS_AHEAD: u64 = 256;

/// What a client that (re)connects is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RidState {
    pub last_batch: BatchNo,
}

impl Store {
    /// Makes the client's record, durably, if it is not there; `identity` is what the server wants to find again.
    pub async fn open_rid(self: &Rc<Self>, rid: Rid, identity: &[u8]) -> Result<RidState, StoreError> {
        let identity = Bytes::copy_from_slice(identity);
        match self.ask(self.home_of(rid), Request::OpenRid { rid, identity }).await? {
            Answer::Rid(last_batch) => Ok(RidState { last_batch }),
            _ => Err(StoreError::Closed),
        }
    }

    pub(crate) async fn open_rid_here(self: &Rc<Self>, rid: Rid, identity: Bytes) -> Result<BatchNo, StoreError> {
        let (client, batch) = (system::client_key(rid), system::batch_key(rid));
        let found = self.get(&[client, batch], View::Applied).await?;
        if !matches!(found.first(), Some(Some(_))) {
            let epoch = self.commit_records(vec![Record::Put { key: client, value: identity }]).await?;
            probe::tell(|| Fact::RecordMade { term: self.term, rid, epoch });
            if !mutant::active(Mutant::RecordBeforeDurable) {
                self.wait_durable(epoch).await?;
            }
        } else if !matches!(self.get(&[client], View::Durable).await?.first(), Some(Some(_))) {
            // Made by an attempt whose answer was lost, or that failed: it must be durable before this one is answered.
            // (Found by the simulation: N5 after a flush had failed.)
            let open = self.epochs.borrow().open();
            self.wait_durable(open).await?;
        }
        match found.get(1) {
            Some(Some(value)) => {
                Ok(LastBatch::decode(value).map_err(|error| StoreError::Item { key: batch, error })?.number)
            }
            _ => Ok(BatchNo(0)),
        }
    }

    /// Forgets a client, durably: its pending blocks, its batch number and, last, its record.
    pub async fn close_rid(self: &Rc<Self>, rid: Rid) -> Result<(), StoreError> {
        self.forget_pending(rid).await?;
        self.ask(self.home_of(rid), Request::CloseRid { rid }).await?;
        Ok(())
    }

    pub(crate) async fn close_rid_here(self: &Rc<Self>, rid: Rid) -> Result<(), StoreError> {
        let keys = [system::batch_key(rid), system::client_key(rid)];
        let epoch = self.commit_records(keys.map(|key| Record::Delete { key }).to_vec()).await?;
        self.home.forget(rid);
        self.wait_durable(epoch).await?;
        probe::tell(|| Fact::RecordGone { term: self.term, rid });
        Ok(())
    }

    /// All clients that have a record, with their identities.
    pub async fn rids(self: &Rc<Self>) -> Result<Vec<(Rid, Bytes)>, StoreError> {
        let mut out = Vec::new();
        for b in 0..=255u8 {
            let mut range = system::range(Bucket(b));
            loop {
                let page = self.scan(range, 1024, 1 << 20, View::Applied).await?;
                for (key, value) in page.items {
                    out.extend(system::rid_of_client_key(&key).map(|rid| (rid, value)));
                }
                match page.next {
                    Some(next) => range.first = next,
                    None => break,
                }
            }
        }
        Ok(out)
    }

    /// A group of inode numbers that nobody had before or will get again. Groups go round all buckets; `near` is a hint
    /// that is not used yet. With a root it is noted, durably, that the group belongs to clients confined to that one.
    pub async fn alloc_group(self: &Rc<Self>, _near: Option<Ino>, root: Option<Ino>) -> Result<u64, StoreError> {
        let bucket = Bucket((self.next_group.get() % 256) as u8);
        self.next_group.set(self.next_group.get() + 1);
        loop {
            match self.ask(self.reactor_of(bucket), Request::AllocGroup { bucket, root }).await {
                Ok(Answer::Group(group)) => return Ok(group),
                Err(StoreError::Moved) => self.until_moved().await,
                Err(e) => return Err(e),
                Ok(_) => return Err(StoreError::Closed),
            }
        }
    }

    pub(crate) async fn alloc_group_here(
        self: &Rc<Self>,
        bucket: Bucket,
        root: Option<Ino>,
    ) -> Result<u64, StoreError> {
        self.shard(&system::group_key(bucket))?;
        let group = self.next_group_of(bucket).await?;
        if let Some(root) = root {
            let record = Record::Put { key: system::root_key(group), value: system::encode_counter(root.0) };
            let epoch = self.commit_own(&[record]).await?;
            // Batches that use the group may be sent again to the next leader, which asks whose it is.
            self.wait_durable(epoch).await?;
        }
        Ok(group)
    }

    async fn next_group_of(self: &Rc<Self>, bucket: Bucket) -> Result<u64, StoreError> {
        let lock = self.group_locks.borrow_mut().entry(bucket).or_insert_with(|| Rc::new(Mutex::new(()))).clone();
        let _turn = lock.lock().await;
        let known = self.groups.borrow().get(&bucket).copied();
        let (next, end) = match known {
            Some((next, end)) if next < end => (next, end),
            _ => self.more_groups(bucket).await?,
        };
        self.groups.borrow_mut().insert(bucket, (next + 1, end));
        let group = (u64::from(bucket.0) << (56 - Ino::SLOT_BITS)) | next;
        probe::tell(|| Fact::GroupGiven { term: self.term, group });
        Ok(group)
    }

    async fn more_groups(self: &Rc<Self>, bucket: Bucket) -> Result<(u64, u64), StoreError> {
        let key = system::group_key(bucket);
        let taken = match self.shard(&key)?.get(&key, NEWEST).await? {
            Some(value) => system::decode_counter(&value).map_err(|error| StoreError::Item { key, error })?,
            None => 1, // group 0 of bucket 0 is the root's
        };
        let end = taken + GROUPS_AHEAD;
        let epoch = self.commit_own(&[Record::Put { key, value: system::encode_counter(end) }]).await?;
        if !mutant::active(Mutant::GroupsBeforeDurable) {
            self.wait_durable(epoch).await?;
        }
        Ok((taken, end))
    }
}
