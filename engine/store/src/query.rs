//! Reading items: gets, scans and index walks, over all reactors.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use vellum_base::{Bucket, Epoch, Ino, Key, KeyRange, ReactorId, View};
use vellum_format::{IndexKind, Value};

use crate::error::StoreError;
use crate::lsm::ScanPage;
use crate::mesh::{Answer, Request};
use crate::reads::Pin;
use crate::store::Store;

const NEWEST: Epoch = Epoch(u64::MAX);
/// Entries that one bucket's cursor reads at once.
const WALK_PAGE: usize = 64;
/// Items of a scan that cost about as much as a get.
const ITEMS_PER_TOUCH: u32 = 8;

/// A page of an index walk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalkPage {
    /// (sequence, inode), ascending.
    pub entries: Vec<(u64, Ino)>,
    /// Where to go on; `None` when nothing is left up to the end that was asked for, as of `through`.
    pub next: Option<(u64, Ino)>,
    /// The durable epoch that the page is as of: nothing at or before it will appear later.
    pub through: Epoch,
}

impl Store {
    /// The epoch to read at, held as long as the pin lives, or nothing for the newest.
    ///
    /// What is applied and not durable is lost when the store has failed: from then on everybody sees what is durable, though
    /// the writer of the rest has let go of its locks.
    fn pin_for(&self, view: View) -> Option<Pin> {
        (view == View::Durable || self.failed.borrow().is_some()).then(|| self.pins.pin(self.durable.get()))
    }

    /// Whether something read without a pin may since have been lost.
    fn lost_since(&self, pin: &Option<Pin>) -> bool {
        pin.is_none() && self.failed.borrow().is_some()
    }

    pub async fn get(self: &Rc<Self>, keys: &[Key], view: View) -> Result<Vec<Option<Value>>, StoreError> {
        loop {
            let pin = self.pin_for(view);
            let at = pin.as_ref().map_or(NEWEST, |p| p.epoch);
            match self.get_at(keys, at).await {
                Err(StoreError::Moved) => self.until_moved().await,
                _ if self.lost_since(&pin) => {}
                done => return done,
            }
        }
    }

    async fn get_at(self: &Rc<Self>, keys: &[Key], at: Epoch) -> Result<Vec<Option<Value>>, StoreError> {
        if keys.iter().all(|key| self.reactor_of(key.bucket()) == self.me) {
            return self.get_here(keys, at).await;
        }
        let mut by_owner: BTreeMap<ReactorId, Vec<usize>> = BTreeMap::new();
        for (i, key) in keys.iter().enumerate() {
            by_owner.entry(self.reactor_of(key.bucket())).or_default().push(i);
        }
        let calls: Vec<_> = by_owner
            .iter()
            .filter(|(owner, _)| **owner != self.me)
            .map(|(owner, places)| {
                let keys = places.iter().map(|i| keys[*i]).collect();
                (places, self.mesh.call(*owner, Request::Get { keys, at }))
            })
            .collect();
        let mut out = vec![None; keys.len()];
        if let Some(places) = by_owner.get(&self.me) {
            for i in places {
                out[*i] = self.shard(&keys[*i])?.get(&keys[*i], at).await?;
            }
        }
        for (places, call) in calls {
            match call.await {
                Ok(Ok(Answer::Values(values))) => places.iter().zip(values).for_each(|(i, v)| out[*i] = v),
                Ok(Err(e)) => return Err(e),
                _ => return Err(StoreError::Closed),
            }
        }
        Ok(out)
    }

    pub(crate) async fn get_here(&self, keys: &[Key], at: Epoch) -> Result<Vec<Option<Value>>, StoreError> {
        let mut out = Vec::with_capacity(keys.len());
        for key in keys {
            out.push(self.shard(key)?.get(key, at).await?);
        }
        Ok(out)
    }

    /// Items of a range in key order, also over several reactors. A page may be shorter than it could be.
    pub async fn scan(
        self: &Rc<Self>,
        range: KeyRange,
        max_items: usize,
        max_bytes: usize,
        view: View,
    ) -> Result<ScanPage, StoreError> {
        loop {
            let pin = self.pin_for(view);
            let at = pin.as_ref().map_or(NEWEST, |p| p.epoch);
            match self.scan_at(range, max_items, max_bytes, at).await {
                Err(StoreError::Moved) => self.until_moved().await,
                _ if self.lost_since(&pin) => {}
                done => return done,
            }
        }
    }

    async fn scan_at(
        self: &Rc<Self>,
        range: KeyRange,
        max_items: usize,
        max_bytes: usize,
        at: Epoch,
    ) -> Result<ScanPage, StoreError> {
        let owner = self.reactor_of(range.first.bucket());
        // The part of the range up to the first bucket of somebody else.
        let mut last_bucket = range.first.bucket().0;
        while last_bucket < range.last.bucket().0 && self.reactor_of(Bucket(last_bucket + 1)) == owner {
            last_bucket += 1;
        }
        let mut part = range;
        part.last = range.last.min(KeyRange::of_buckets(Bucket(0), Bucket(last_bucket)).last);
        let mut page = if owner == self.me {
            self.scan_here(part, at, max_items, max_bytes).await?
        } else {
            match self.ask(owner, Request::Scan { range: part, at, max_items, max_bytes }).await? {
                Answer::Page { items, next } => ScanPage { items, next },
                _ => return Err(StoreError::Closed),
            }
        };
        if page.next.is_none() && part.last < range.last {
            page.next = part.last.successor();
        }
        Ok(page)
    }

    /// A scan over this reactor's shards; it may end at a shard's end.
    pub(crate) async fn scan_here(
        &self,
        range: KeyRange,
        at: Epoch,
        max_items: usize,
        max_bytes: usize,
    ) -> Result<ScanPage, StoreError> {
        let shard = self.shard(&range.first)?;
        let mut part = range;
        part.last = range.last.min(shard.range().last);
        let mut page = shard.scan(part, at, max_items, max_bytes).await?;
        shard.touch(part.first.bucket(), page.items.len() as u32 / ITEMS_PER_TOUCH);
        if page.next.is_none() && part.last < range.last {
            page.next = part.last.successor();
        }
        Ok(page)
    }

    /// Index entries from `from` to sequence `to`, oldest first, merged over all buckets, as of the durable epoch.
    pub async fn walk(
        self: &Rc<Self>,
        index: IndexKind,
        from: (u64, Ino),
        to: u64,
        max: usize,
    ) -> Result<WalkPage, StoreError> {
        let pin = self.pins.pin(self.durable.get());
        let max = max.clamp(1, 16_384);
        loop {
            match self.walk_at(index, (from, to), max, pin.epoch).await {
                Err(StoreError::Moved) => self.until_moved().await,
                done => return done,
            }
        }
    }

    /// Each bucket is asked for once, of the reactor that has it: else [`StoreError::Moved`].
    async fn walk_at(
        self: &Rc<Self>,
        index: IndexKind,
        (from, to): ((u64, Ino), u64),
        max: usize,
        at: Epoch,
    ) -> Result<WalkPage, StoreError> {
        let mut by_owner: BTreeMap<ReactorId, Vec<Bucket>> = BTreeMap::new();
        for bucket in (0..=255).map(Bucket) {
            by_owner.entry(self.reactor_of(bucket)).or_default().push(bucket);
        }
        let here = by_owner.remove(&self.me).unwrap_or_default();
        let mut entries = Vec::new();
        let mut more = false;
        let calls: Vec<_> = by_owner
            .into_iter()
            .map(|(owner, buckets)| self.mesh.call(owner, Request::Walk { index, from, to, max, at, buckets }))
            .collect();
        let (mine, mine_more) = self.walk_here(index, (from, to), max, at, &here).await?;
        entries.extend(mine);
        more |= mine_more;
        for call in calls {
            match call.await {
                Ok(Ok(Answer::Entries { entries: theirs, more: theirs_more })) => {
                    entries.extend(theirs);
                    more |= theirs_more;
                }
                Ok(Err(e)) => return Err(e),
                _ => return Err(StoreError::Closed),
            }
        }
        // Each list holds its owner's first `max`, so the first `max` of all of them are right.
        entries.sort_unstable();
        more |= entries.len() > max;
        entries.truncate(max);
        let next = entries.last().filter(|_| more).map(|(seq, ino)| match ino.0.checked_add(1) {
            Some(ino) => (*seq, Ino(ino)),
            None => (seq.saturating_add(1), Ino::NONE),
        });
        Ok(WalkPage { entries, next, through: at })
    }

    /// The first `max` entries of these buckets, all of this reactor, and whether there are more.
    pub(crate) async fn walk_here(
        &self,
        index: IndexKind,
        (from, to): ((u64, Ino), u64),
        max: usize,
        at: Epoch,
        buckets: &[Bucket],
    ) -> Result<(Vec<(u64, Ino)>, bool), StoreError> {
        let mut cursors = BTreeMap::new();
        let mut heads: BTreeSet<((u64, Ino), u8)> = BTreeSet::new();
        for bucket in buckets.iter().copied() {
            let b = bucket.0;
            let range =
                KeyRange { first: index.key_in(bucket, from.0, from.1), last: index.key_in(bucket, to, Ino(u64::MAX)) };
            let mut cursor = Cursor { rest: Some(range), page: Vec::new().into_iter() };
            if let Some(head) = self.advance(&mut cursor, at).await? {
                heads.insert((head, b));
                cursors.insert(b, cursor);
            }
        }
        let mut out = Vec::new();
        while let Some((entry, b)) = heads.pop_first() {
            if out.len() == max {
                return Ok((out, true));
            }
            out.push(entry);
            let Some(cursor) = cursors.get_mut(&b) else { continue };
            if let Some(head) = self.advance(cursor, at).await? {
                heads.insert((head, b));
            }
        }
        Ok((out, false))
    }

    async fn advance(&self, cursor: &mut Cursor, at: Epoch) -> Result<Option<(u64, Ino)>, StoreError> {
        loop {
            if let Some(key) = cursor.page.next() {
                return Ok(Some(IndexKind::entry(&key)));
            }
            let Some(range) = cursor.rest else { return Ok(None) };
            let page = self.shard(&range.first)?.scan(range, at, WALK_PAGE, 1 << 20).await?;
            cursor.rest = page.next.map(|first| KeyRange { first, last: range.last });
            cursor.page = page.items.into_iter().map(|(key, _)| key).collect::<Vec<_>>().into_iter();
        }
    }
}

/// One bucket's entries, page by page.
struct Cursor {
    rest: Option<KeyRange>,
    page: std::vec::IntoIter<Key>,
}
