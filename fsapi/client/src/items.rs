//! Reading items: from the cache, else from the engine into the cache.

use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{Epoch, Ino, Key, KeyRange, View};
use vellum_wire::{LockMode, LockName, Request, Response};

use crate::cache::{Known, group_of};
use crate::lock::LockGuard;
use crate::stats::count;
use crate::{Client, ClientError};

/// What one scan of the engine brings at most, however little is asked for: the rest is read ahead.
const SCAN_ITEMS: usize = 512;
const SCAN_BYTES: u32 = 128 << 10;

/// Items that one eviction looks at, at most: twice what a scan brings, so that the cache shrinks while it is too full.
const EVICT_ITEMS: usize = 2 * SCAN_ITEMS;

/// Items of a range, ascending.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ScanPage {
    pub items: Vec<(Key, Bytes)>,
    /// Where the following page begins; `None` at the range's end.
    pub next: Option<Key>,
}

/// Entries of an index, and how far it was complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkPage {
    pub entries: Vec<(u64, Ino)>,
    pub next: Option<(u64, Ino)>,
    /// The durable epoch of this page: everything at or below it was seen.
    pub through: Epoch,
}

/// While it lives, nothing is evicted from the groups of the items that are on their way.
struct Fetch<'a> {
    client: &'a Client,
    groups: Vec<u64>,
}

impl<'a> Fetch<'a> {
    fn new(client: &'a Client, mut groups: Vec<u64>) -> Fetch<'a> {
        groups.sort_unstable();
        groups.dedup();
        let mut cache = client.cache.borrow_mut();
        groups.iter().for_each(|g| cache.fetch_begins(*g));
        drop(cache);
        Fetch { client, groups }
    }
}

impl Drop for Fetch<'_> {
    fn drop(&mut self) {
        let mut cache = self.client.cache.borrow_mut();
        self.groups.iter().for_each(|g| cache.fetch_ends(*g));
    }
}

impl Client {
    fn readable(&self, guard: &LockGuard, key: &Key) {
        let name = LockName::Group(group_of(key));
        assert!(guard.mode(name).covers(LockMode::Read), "{key:?} is read without its lock");
    }

    /// The item as of now, own changes included.
    pub async fn get(self: &Rc<Self>, guard: &LockGuard, key: Key) -> Result<Option<Bytes>, ClientError> {
        self.readable(guard, &key);
        self.lease().await?;
        let known = self.cache.borrow_mut().lookup(&key);
        match known {
            Known::Present(value) => {
                count(&self.counters.item_hits, 1);
                Ok(Some(value))
            }
            Known::Absent => {
                count(&self.counters.item_hits, 1);
                Ok(None)
            }
            Known::No => Ok(self.fetch(&[key]).await?.pop().flatten()),
        }
    }

    /// Several items, with at most one request for all that are not cached.
    pub async fn get_many(self: &Rc<Self>, guard: &LockGuard, keys: &[Key]) -> Result<Vec<Option<Bytes>>, ClientError> {
        keys.iter().for_each(|key| self.readable(guard, key));
        self.lease().await?;
        let missing: Vec<Key> = {
            let mut cache = self.cache.borrow_mut();
            keys.iter().filter(|key| cache.lookup(key) == Known::No).copied().collect()
        };
        count(&self.counters.item_hits, (keys.len() - missing.len()) as u64);
        // All values are of one moment: nothing is evicted until those that are fetched have come.
        let _fetch = Fetch::new(self, keys.iter().map(group_of).collect());
        if !missing.is_empty() {
            self.fetch(&missing).await?;
        }
        let mut cache = self.cache.borrow_mut();
        keys.iter()
            .map(|key| match cache.lookup(key) {
                Known::Present(value) => Ok(Some(value)),
                Known::Absent => Ok(None),
                Known::No => Err(ClientError::Protocol { request: "Get" }),
            })
            .collect()
    }

    async fn fetch(self: &Rc<Self>, keys: &[Key]) -> Result<Vec<Option<Bytes>>, ClientError> {
        count(&self.counters.item_misses, keys.len() as u64);
        let _fetch = Fetch::new(self, keys.iter().map(group_of).collect());
        let request = Request::Get { keys: keys.to_vec(), view: View::Applied };
        match self.port.call(request, None).await?.body {
            Response::Items { values } if values.len() == keys.len() => {
                self.lease().await?; // the answer may have lain there while this process slept
                let mut cache = self.cache.borrow_mut();
                let current = keys.iter().zip(values).map(|(key, value)| cache.fetched(*key, value)).collect();
                drop(cache);
                self.evict();
                Ok(current)
            }
            Response::Error(e) => Err(ClientError::Engine(e)),
            _ => Err(ClientError::Protocol { request: "Get" }),
        }
    }

    /// Items of a range within one lock group, own changes included. A page may be shorter than `max` and still have a
    /// next one. What was read is remembered as a whole: also which keys of the range do not exist.
    pub async fn scan(
        self: &Rc<Self>,
        guard: &LockGuard,
        range: KeyRange,
        max: usize,
    ) -> Result<ScanPage, ClientError> {
        self.readable(guard, &range.first);
        let group = group_of(&range.first);
        assert_eq!(group, group_of(&range.last), "a scan stays within one group");
        self.lease().await?;
        let mut range = range;
        loop {
            let known = self.cache.borrow_mut().scan(group, range, max.max(1));
            match known {
                Some((items, Some(next))) if items.is_empty() => range.first = next,
                Some((items, next)) => {
                    count(&self.counters.scan_hits, 1);
                    return Ok(ScanPage { items, next });
                }
                None => {
                    self.evict(); // before the fetch: the group itself may be what fills the cache
                    let _fetch = Fetch::new(self, vec![group]);
                    self.fetch_range(group, range, max).await?;
                    let known = self.cache.borrow_mut().scan(group, range, max.max(1));
                    match known {
                        Some((items, Some(next))) if items.is_empty() => range.first = next,
                        Some((items, next)) => return Ok(ScanPage { items, next }),
                        None => return Err(ClientError::Protocol { request: "Scan" }),
                    }
                }
            }
        }
    }

    async fn fetch_range(self: &Rc<Self>, group: u64, range: KeyRange, max: usize) -> Result<(), ClientError> {
        count(&self.counters.scan_misses, 1);
        let max_items = max.max(SCAN_ITEMS) as u32;
        let request = Request::Scan { range, max_items, max_bytes: SCAN_BYTES, view: View::Applied };
        let ScanPage { items, next } = self.scan_request(request, range).await?;
        self.lease().await?; // as in fetch
        let last = next.and_then(|next| next.predecessor()).unwrap_or(range.last);
        self.cache.borrow_mut().fetched_range(group, KeyRange { first: range.first, last }, items);
        Ok(())
    }

    async fn scan_request(&self, request: Request, range: KeyRange) -> Result<ScanPage, ClientError> {
        match self.port.call(request, None).await?.body {
            Response::Scanned { items, next } => {
                let inside = items.iter().all(|(key, _)| range.contains(key) && next.is_none_or(|n| *key < n));
                let ascending = items.windows(2).all(|w| w[0].0 < w[1].0);
                let onward = next.is_none_or(|next| next > range.first && next <= range.last);
                if inside && ascending && onward {
                    Ok(ScanPage { items, next })
                } else {
                    Err(ClientError::Protocol { request: "Scan" })
                }
            }
            Response::Error(e) => Err(ClientError::Engine(e)),
            _ => Err(ClientError::Protocol { request: "Scan" }),
        }
    }

    /// Items as the engine has them, past cache and locks: what is durable, or what is applied.
    pub async fn get_at(&self, keys: Vec<Key>, view: View) -> Result<Vec<Option<Bytes>>, ClientError> {
        self.check_alive()?;
        let len = keys.len();
        match self.port.call(Request::Get { keys, view }, None).await?.body {
            Response::Items { values } if values.len() == len => Ok(values),
            Response::Error(e) => Err(ClientError::Engine(e)),
            _ => Err(ClientError::Protocol { request: "Get" }),
        }
    }

    /// As [`Client::get_at`], for a range of any groups. Pages are of different moments.
    pub async fn scan_at(&self, range: KeyRange, max: usize, view: View) -> Result<ScanPage, ClientError> {
        self.check_alive()?;
        let request = Request::Scan { range, max_items: max.max(1) as u32, max_bytes: SCAN_BYTES, view };
        self.scan_request(request, range).await
    }

    /// Entries of an index with `from <= (seq, ino)` and `seq <= to_seq`, ascending, durable ones only.
    pub async fn walk(
        &self,
        index: vellum_format::IndexKind,
        from: (u64, Ino),
        to_seq: u64,
        max: usize,
    ) -> Result<WalkPage, ClientError> {
        self.check_alive()?;
        let request =
            Request::Walk { index: index as u8, from_seq: from.0, from_ino: from.1, to_seq, max: max.max(1) as u32 };
        match self.port.call(request, None).await?.body {
            Response::Walked { entries, next, through } => {
                let ascending = entries.windows(2).all(|w| w[0] < w[1]);
                let inside = entries.iter().all(|e| *e >= from && e.0 <= to_seq);
                if ascending && inside && next.is_none_or(|n| n > from) {
                    Ok(WalkPage { entries, next, through })
                } else {
                    Err(ClientError::Protocol { request: "Walk" })
                }
            }
            Response::Error(e) => Err(ClientError::Engine(e)),
            _ => Err(ClientError::Protocol { request: "Walk" }),
        }
    }

    /// Keeps the cache within its bound.
    pub(crate) fn evict(&self) {
        let (options, durable) = (&self.options, self.batches.durable.get());
        let mut cache = self.cache.borrow_mut();
        let evicted = cache.evict(options.cache_bytes, options.large_group_items, EVICT_ITEMS, durable);
        drop(cache);
        if !evicted.is_empty() {
            count(&self.counters.evictions, evicted.len() as u64);
            for group in evicted {
                self.know_unused_inodes(group, LockMode::Read);
            }
        }
    }
}
