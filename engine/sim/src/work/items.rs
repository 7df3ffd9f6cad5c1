//! What a simulated client does: transactions on files that all clients share, reads of them, syncs; when it is fenced or
//! its node dies, a new one takes its place.
//!
//! Everything it reads and writes is told to the [`History`] at the moment at which the client library answers.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use vellum_base::prng::Prng;
use vellum_base::{BLOCK_SIZE, DmaBuf, Ino, Key, KeyRange, Rid, crc32c};
use vellum_client::{Client, ClientError, ClientOptions, ConnectOptions, LockGuard, LockMode, LockName};
use vellum_format::{Extent, ExtentHeader, Inode, ItemKind};
use vellum_rt::{random_u64, sleep};
use vellum_wire::ErrorCode;

use super::Shared;
use super::file::{self, File};

/// Pause before a client that is gone is replaced.
const REPLACE: Duration = Duration::from_millis(50);
const PAGE_ITEMS: usize = 64;
const MAX_FILE_BLOCKS: u64 = 12;

/// Why a client's life ended.
enum End {
    /// It is to be replaced.
    Lost,
    /// The device failed.
    Device(String),
    /// What no fault excuses.
    Wrong(String),
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> End {
        match error {
            ClientError::Fenced { .. } => End::Lost,
            other if matches!(other.code(), Some(ErrorCode::Io | ErrorCode::Corrupt)) => End::Device(other.to_string()),
            other => End::Wrong(other.to_string()),
        }
    }
}

/// A client's task for the whole run.
pub async fn live(shared: Rc<Shared>, index: usize) {
    while !shared.stop.get() {
        let (rid, name) = shared.begin_life(index);
        shared.history.borrow_mut().begin(rid, name.clone());
        let failures = shared.device_failures.get();
        let ended = one_life(&shared, rid).await;
        let device_failed = shared.excuses(failures);
        match ended {
            Ok(()) => {}
            Err(End::Lost) => shared.history.borrow_mut().dead(rid),
            Err(End::Device(_)) if device_failed => shared.history.borrow_mut().dead(rid),
            Err(End::Wrong(what) | End::Device(what)) => {
                shared.history.borrow_mut().dead(rid);
                shared.history.borrow_mut().violate("end", format!("{name}: {what}"));
            }
        }
        sleep(REPLACE).await;
    }
    shared.finish(index);
}

async fn one_life(shared: &Rc<Shared>, rid: Rid) -> Result<(), End> {
    let mut prng = Prng::new(random_u64());
    let link = ConnectOptions {
        timers: shared.timers,
        open_within: None,
        insecure_network: true,
        ..ConnectOptions::default()
    };
    // Small bounds are reached.
    let options = ClientOptions {
        rid: Some(rid),
        cache_bytes: 8 << 10 << prng.below(8),
        large_group_items: 16,
        max_idle_locks: 2 + prng.below(20) as usize,
        batch_ops: 32,
        batch_delay: Duration::from_micros(200 + prng.below(10_000)),
        max_retained_batches: 8,
        ..ClientOptions::default()
    };
    let client = Client::connect(shared.address(), None, link, options).await?;
    let worker = Worker { client: client.clone(), shared: shared.clone(), rid, last_batch: Cell::new(0) };
    let ended = worker.work(&mut prng).await;
    match ended {
        Ok(()) => {
            if prng.one_in(2) {
                worker.sync().await?;
            }
            client.farewell().await?;
            shared.history.borrow_mut().durable(rid, worker.last_batch.get());
            Ok(())
        }
        Err(end) => {
            client.abort();
            shared.checks.borrow_mut().reach.died(rid);
            Err(end)
        }
    }
}

struct Worker {
    client: Rc<Client>,
    shared: Rc<Shared>,
    rid: Rid,
    last_batch: Cell<u64>,
}

/// Locks in use, told to the history as long as it lives.
struct Held {
    guard: LockGuard,
    shared: Rc<Shared>,
    used: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.history.borrow_mut().unuse(self.used);
    }
}

impl Worker {
    async fn work(&self, prng: &mut Prng) -> Result<(), End> {
        let rounds = 5 + prng.below(200);
        for _ in 0..rounds {
            if self.shared.stop.get() {
                break;
            }
            match prng.below(10) {
                0..=4 => self.change(prng).await?,
                5..=7 => self.look(prng).await?,
                8 => self.create(prng).await?,
                _ => self.sync().await?,
            }
            if prng.one_in(self.shared.pause_one_in) {
                sleep(Duration::from_micros(prng.below(20_000))).await;
            }
        }
        Ok(())
    }

    async fn sync(&self) -> Result<(), End> {
        let last = self.last_batch.get();
        self.client.sync().await?;
        self.shared.history.borrow_mut().durable(self.rid, last);
        Ok(())
    }

    async fn lock(&self, inos: &[Ino], mode: LockMode) -> Result<Held, End> {
        let names: BTreeSet<LockName> = inos.iter().map(|ino| LockName::of(*ino)).collect();
        let wants: Vec<(LockName, LockMode)> = names.into_iter().map(|name| (name, mode)).collect();
        let guard = self.client.lock(&wants).await?;
        let used = self.shared.history.borrow_mut().in_use(self.rid, guard.names());
        Ok(Held { guard, shared: self.shared.clone(), used })
    }

    fn some_files(&self, prng: &mut Prng) -> Vec<Ino> {
        let files = self.shared.files.borrow();
        let mut some: Vec<Ino> = (0..1 + prng.below(3))
            .filter_map(|_| files.get(prng.below(files.len().max(1) as u64) as usize).copied())
            .collect();
        some.sort_unstable();
        some.dedup();
        some
    }

    /// The file as the client sees it, with its items.
    async fn read(&self, held: &Held, ino: Ino) -> Result<(Option<File>, Vec<(Key, Bytes)>), End> {
        let (mut range, mut items) = (KeyRange::of_inode(ino), Vec::new());
        loop {
            let page = self.client.scan(&held.guard, range, PAGE_ITEMS).await?;
            items.extend(page.items);
            match page.next {
                Some(next) => range.first = next,
                None => break,
            }
        }
        let file = file::decode(&items).map_err(|e| End::Wrong(format!("{ino}: {e}")))?;
        self.shared.history.borrow_mut().read(self.rid, ino, file.as_ref());
        Ok((file, items))
    }

    /// Reads files whole, blocks included.
    async fn look(&self, prng: &mut Prng) -> Result<(), End> {
        let inos = self.some_files(prng);
        let held = self.lock(&inos, LockMode::Read).await?;
        for ino in inos {
            let (_, items) = self.read(&held, ino).await?;
            for (key, value) in items.iter().filter(|(key, _)| key.kind() == ItemKind::Extent as u8) {
                let extent = Extent::decode(value).map_err(|e| End::Wrong(e.to_string()))?;
                let Some(range) = extent.header.blocks() else { continue };
                let data = self.client.read_blocks(&[range]).await?;
                let found: Vec<u32> = data.chunks(BLOCK_SIZE).map(crc32c).collect();
                if found != extent.checksums {
                    // Blocks are verified by whoever reads them, against the checksums in their extents.
                    let what = format!("{key:?} at {range:?}: {found:x?}, expected {:x?}", extent.checksums);
                    return Err(End::Device(what));
                }
            }
        }
        Ok(())
    }

    async fn create(&self, prng: &mut Prng) -> Result<(), End> {
        if self.shared.files.borrow().len() >= self.shared.max_files {
            return Ok(());
        }
        let near = self.some_files(prng);
        let dir = near.first().copied().unwrap_or(Ino::ROOT);
        let ino = self.client.alloc_ino(dir, false).await?;
        let mut both = vec![dir, ino];
        both.retain(|ino| *ino != Ino::ROOT);
        self.change_files(&both, prng).await?;
        self.shared.files.borrow_mut().push(ino);
        Ok(())
    }

    async fn change(&self, prng: &mut Prng) -> Result<(), End> {
        self.change_files(&self.some_files(prng), prng).await
    }

    /// One transaction that gives each of the files a new version.
    async fn change_files(&self, inos: &[Ino], prng: &mut Prng) -> Result<(), End> {
        self.client.reserve(64).await?;
        let held = self.lock(inos, LockMode::Write).await?;
        let (mut before, mut written) = (Vec::new(), Vec::new());
        for ino in inos {
            before.push(self.read(&held, *ino).await?);
            written.push(if prng.one_in(3) { Some(self.write(prng).await?) } else { None });
        }
        let mut txn = self.client.begin(&held.guard);
        let mut changes = Vec::new();
        for ((ino, (old, items)), data) in inos.iter().zip(before).zip(written) {
            if old.is_none() && self.shared.history.borrow().was_written(*ino) {
                // Inode numbers are not used again.
                self.shared.files.borrow_mut().retain(|file| file != ino);
                continue;
            }
            let extents = items.iter().map(|(key, _)| *key).filter(|key| key.kind() == ItemKind::Extent as u8);
            let dies = old.is_some() && data.is_none() && prng.one_in(20);
            if dies || data.is_some() {
                extents.for_each(|key| txn.delete(key));
            }
            if dies {
                txn.delete_inode(*ino);
                changes.push((*ino, None));
                continue;
            }
            let mut new = File { stamp: self.shared.history.borrow_mut().stamp(), ..old.unwrap_or_default() };
            if prng.one_in(2) {
                let mut text = vec![0; 1 + prng.below(900) as usize];
                prng.fill(&mut text);
                new.text = Some(text.clone().into());
                txn.put(file::text_key(*ino), text.into());
            } else if new.text.is_some() && prng.one_in(4) {
                new.text = None;
                txn.delete(file::text_key(*ino));
            }
            if let Some(extents) = data {
                new.blocks.clear();
                let mut block = prng.below(5);
                for extent in extents {
                    let first = block;
                    for checksum in &extent.checksums {
                        new.blocks.insert(block, *checksum);
                        block += 1;
                    }
                    txn.put(Extent::key(*ino, first, extent.header.len_blocks), extent.encode());
                }
            }
            txn.put(Inode::key(*ino), new.inode().encode());
            changes.push((*ino, Some(new)));
        }
        let id = txn.commit()?;
        self.last_batch.set(id.0.0);
        self.shared.history.borrow_mut().commit(self.rid, id.0.0, changes);
        drop(held);
        if prng.one_in(8) {
            self.client.sync_txn(id).await?;
            self.shared.history.borrow_mut().durable(self.rid, id.0.0);
        }
        Ok(())
    }

    /// Blocks for a file.
    async fn write(&self, prng: &mut Prng) -> Result<Vec<Extent>, End> {
        let mut data = DmaBuf::new((1 + prng.below(MAX_FILE_BLOCKS)) as usize * BLOCK_SIZE);
        prng.fill(&mut data);
        let data = data.freeze();
        let ranges = self.client.write_blocks(data.clone()).await?;
        let mut checksums = data.chunks(BLOCK_SIZE).map(crc32c);
        let extents = ranges.iter().map(|range| {
            let header = ExtentHeader { start: range.start, len_blocks: range.len_blocks, offline: false };
            Extent { header, checksums: checksums.by_ref().take(range.len_blocks as usize).collect() }
        });
        Ok(extents.collect())
    }
}
