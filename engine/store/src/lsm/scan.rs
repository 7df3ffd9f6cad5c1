//! Scans: a merge over all sources, as of one epoch.
//!
//! A scan holds the state that it began with, so flushes, compactions and installs change nothing under it. It works in
//! synchronous stretches; when a block is missing it loads it and seeks all sources again at the key it stood at. While
//! it waits, the epoch it reads is registered, so that memtables keep the versions it needs.

use std::cell::{Ref, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{Epoch, Key, KeyRange};

use super::blocks::{Blocks, Stop};
use super::cursor::RunCursor;
use super::memtable::{Memtable, Version, Versions};
use super::ranges::Stamp;
use super::state::State;
use super::{LsmError, ScanPage, Shard};

/// Entries looked at between two chances to yield.
const STRETCH: usize = 512;
const MAX_AHEAD: usize = 16;
/// Deleted entries passed one by one before a seek over the rest of the deleted range.
const STEPS_BEFORE_SEEK: usize = 16;

impl Shard {
    /// Items of `range` as of epoch `at`, at most `max_items` and about `max_bytes` (at least one item). With a finite
    /// `at` the caller keeps it pinned in the environment until it has read the last page.
    pub async fn scan(
        &self,
        range: KeyRange,
        at: Epoch,
        max_items: usize,
        max_bytes: usize,
    ) -> Result<ScanPage, LsmError> {
        let state = self.state();
        let mut scan = Scan {
            position: Some(range.first),
            last: range.last,
            at,
            max_items,
            max_bytes,
            bytes: 0,
            page: ScanPage::default(),
        };
        let mut blocks = Blocks::new(&self.cache, &*self.env);
        let mut ahead = 0;
        let mut reading = None;
        if range.first > range.last {
            return Ok(scan.page);
        }
        loop {
            match scan.stretch(&state, &blocks, ahead) {
                Ok(true) => return Ok(scan.page),
                Ok(false) => {
                    reading.get_or_insert_with(|| self.read_at(at));
                    vellum_rt::yield_if_needed().await;
                }
                Err(stop) => {
                    reading.get_or_insert_with(|| self.read_at(at));
                    blocks.load(stop).await?;
                    // A scan that has begun to return items is likely to go on.
                    ahead = if scan.page.items.is_empty() { 0 } else { (ahead * 2 + 1).min(MAX_AHEAD) };
                }
            }
        }
    }
}

struct Scan {
    /// The first key that is not dealt with.
    position: Option<Key>,
    last: Key,
    at: Epoch,
    max_items: usize,
    max_bytes: usize,
    bytes: usize,
    page: ScanPage,
}

impl Scan {
    /// Works until the page is done (true), or a stretch is (false), or a block is missing.
    fn stretch(&mut self, state: &State, blocks: &Blocks<'_>, ahead: usize) -> Result<bool, Stop> {
        let Some(first) = self.position else { return Ok(true) };
        let range = KeyRange { first, last: self.last };
        let tables: Vec<(Ref<'_, Memtable>, Epoch)> = state.memtables(self.at).map(borrow).collect();
        let mut sources: Vec<Source<'_>> = Vec::with_capacity(tables.len() + state.runs.len() + state.levels.len());
        for (table, at) in &tables {
            if !table.is_empty() {
                sources.push(Source::Table(TableCursor::new(table, *at, &first)));
            }
        }
        for run in state.sorted_runs() {
            let segments = run.overlapping(&range);
            if !segments.is_empty() {
                let mut cursor = RunCursor::new(segments, &range, ahead);
                cursor.seek(&first, blocks)?;
                sources.push(Source::Run(Box::new(cursor)));
            }
        }
        let mut covered_in_row = 0;
        for _ in 0..STRETCH {
            let next = sources.iter().filter_map(Source::key).min().filter(|key| *key <= self.last);
            let Some(key) = next else {
                self.position = None;
                return Ok(true);
            };
            if self.position.is_none_or(|position| key < position)
                && let Some(stop) = sources.iter().filter(|source| source.key() == Some(key)).find_map(Source::disorder)
            {
                return Err(stop); // a segment whose keys do not ascend would be read for ever
            }
            self.position = Some(key);
            if self.page.items.len() >= self.max_items || self.bytes >= self.max_bytes {
                self.page.next = Some(key);
                return Ok(true);
            }
            let seen = newest(&mut sources, &key, self.at, blocks)?;
            covered_in_row = if seen.covered_by.is_some() { covered_in_row + 1 } else { 0 };
            for source in sources.iter_mut().filter(|source| source.key() == Some(key)) {
                source.pass(&key, blocks)?;
            }
            if let Some((by, end)) = seen.covered_by
                && covered_in_row > STEPS_BEFORE_SEEK
                && let Some(after) = end.successor()
            {
                for source in sources.iter_mut().skip(by + 1).filter(|s| s.key().is_some_and(|key| key < after)) {
                    source.seek_points(&after, blocks)?;
                }
            }
            self.position = key.successor();
            if let Some(value) = seen.value {
                self.bytes += Key::LEN + value.len();
                self.page.items.push((key, value));
            }
        }
        Ok(false)
    }
}

fn borrow<'a>((table, at): (&'a Rc<RefCell<Memtable>>, Epoch)) -> (Ref<'a, Memtable>, Epoch) {
    (table.borrow(), at)
}

struct Seen {
    value: Option<Bytes>,
    /// The source whose range tombstone hides the key, and that range's last key.
    covered_by: Option<(usize, Key)>,
}

/// What a reader at `at` sees of `key`: the first source, from new to old, that says anything about it decides.
fn newest(sources: &mut [Source<'_>], key: &Key, at: Epoch, blocks: &Blocks<'_>) -> Result<Seen, Stop> {
    for (rank, source) in sources.iter_mut().enumerate() {
        let deleted = source.deleted(key, at, blocks)?;
        let point = if source.key() == Some(*key) { source.visible(key, at, blocks)? } else { None };
        match (point, deleted) {
            (Some((stamp, value)), deleted) if deleted.is_none_or(|(by, _)| !covers(by, stamp)) => {
                return Ok(Seen { value, covered_by: None });
            }
            (_, Some((_, end))) => return Ok(Seen { value: None, covered_by: Some((rank, end)) }),
            _ => {}
        }
    }
    Ok(Seen { value: None, covered_by: None })
}

/// Whether a range deletion hides a write of the same source. (Stamps of segments have no sequence.)
fn covers(deletion: Stamp, write: Stamp) -> bool {
    deletion > write
}

enum Source<'a> {
    Table(TableCursor<'a>),
    Run(Box<RunCursor>),
}

impl Source<'_> {
    fn key(&self) -> Option<Key> {
        match self {
            Source::Table(cursor) => cursor.current.as_ref().map(|(key, _)| **key),
            Source::Run(cursor) => cursor.key(),
        }
    }

    fn disorder(&self) -> Option<Stop> {
        match self {
            Source::Table(_) => None,
            Source::Run(cursor) => cursor.disorder(),
        }
    }

    fn seek_points(&mut self, key: &Key, blocks: &Blocks<'_>) -> Result<(), Stop> {
        match self {
            Source::Table(cursor) => {
                cursor.seek(key);
                Ok(())
            }
            Source::Run(cursor) => cursor.seek_points(key, blocks),
        }
    }

    fn deleted(&mut self, key: &Key, at: Epoch, blocks: &Blocks<'_>) -> Result<Option<(Stamp, Key)>, Stop> {
        match self {
            Source::Table(cursor) => Ok(cursor.deleted(key)),
            Source::Run(cursor) => Ok(cursor.deleted(key, at, blocks)?.map(|(epoch, end)| ((epoch, 0), end))),
        }
    }

    /// The newest version of `key`, which the source stands at, that is visible.
    fn visible(&mut self, key: &Key, at: Epoch, blocks: &Blocks<'_>) -> Result<Option<(Stamp, Option<Bytes>)>, Stop> {
        match self {
            Source::Table(cursor) => Ok(cursor.visible()),
            Source::Run(cursor) => {
                while cursor.key() == Some(*key) {
                    if let Some((epoch, value)) = cursor.entry().filter(|(epoch, _)| *epoch <= at) {
                        return Ok(Some(((epoch, 0), value.map(Bytes::copy_from_slice))));
                    }
                    cursor.step(blocks)?;
                }
                Ok(None)
            }
        }
    }

    /// Leaves `key` behind.
    fn pass(&mut self, key: &Key, blocks: &Blocks<'_>) -> Result<(), Stop> {
        match self {
            Source::Table(cursor) => cursor.step(),
            Source::Run(cursor) => {
                while cursor.key() == Some(*key) {
                    cursor.step(blocks)?;
                }
            }
        }
        Ok(())
    }
}

struct TableCursor<'a> {
    table: &'a Memtable,
    at: Epoch,
    rest: super::memtable::Points<'a>,
    current: Option<(&'a Key, &'a Versions)>,
}

impl<'a> TableCursor<'a> {
    fn new(table: &'a Memtable, at: Epoch, key: &Key) -> TableCursor<'a> {
        let mut rest = table.from(key);
        let current = rest.next();
        TableCursor { table, at, rest, current }
    }

    fn seek(&mut self, key: &Key) {
        *self = TableCursor::new(self.table, self.at, key);
    }

    fn step(&mut self) {
        self.current = self.rest.next();
    }

    fn deleted(&self, key: &Key) -> Option<(Stamp, Key)> {
        let (_, fragment) = self.table.tombstones.covering(key)?;
        fragment.stamps().find(|stamp| stamp.0 <= self.at).map(|stamp| (stamp, fragment.last))
    }

    fn visible(&self) -> Option<(Stamp, Option<Bytes>)> {
        let version: &Version = self.current?.1.at(self.at)?;
        Some((version.stamp(), self.table.value(version.value).map(Bytes::copy_from_slice)))
    }
}
