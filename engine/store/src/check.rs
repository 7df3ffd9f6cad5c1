//! The read-only checker: opens a filesystem without writing, and holds every structure against every other.
//!
//! Superblock, manifest, seals and parts are verified by opening; segments by reading all items. Then: every block is
//! used once, or by as many extents as it has owners, bitmaps say what extents say, index entries and inodes belong to each other,
//! names, positions, backrefs and link counts agree, and, when asked for, every block of data has its checksum.
//!
//! One scan is enough for a sound filesystem: what belongs together is summed up ([`balance`]), and looked up item by item
//! only when a sum is wrong ([`lookups`]).

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use vellum_base::{BlockRange, Ino, Key, Zone, crc32c};
use vellum_format::{Bitmap, ChunkUse, Dirent, Extent, FileKind, IndexKind, Inode, ItemKind, Owners, Value};
use vellum_nvme::{Device, Queue};

mod balance;
mod data_blocks;
mod lookups;
mod pages;

use self::balance::Balance;
use self::data_blocks::DataBlocks;
use self::lookups::Lookups;
use self::pages::{Page, Pages};
use crate::error::StoreError;
use crate::open::{Opened, RecoveryReport, open};
use crate::options::OpenOptions;
use crate::polled::PolledQueue;
use crate::space::RangeSet;
use crate::store::{Everyone, Store};

/// Problems that are kept; more are counted.
const MAX_PROBLEMS: usize = 1000;

#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// Read all file data and verify its checksums.
    pub data: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: String,
    pub detail: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.detail)
    }
}

#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    pub recovery: RecoveryReport,
    pub items: u64,
    pub inodes: u64,
    pub dirents: u64,
    pub extents: u64,
    pub data_blocks: u64,
    pub verified_blocks: u64,
    pub segments: u64,
    pub problems: Vec<Problem>,
    /// Problems found, the kept ones included.
    pub problem_count: u64,
}

impl CheckReport {
    fn add(&mut self, place: impl Into<String>, detail: impl ToString) {
        self.problem_count += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { place: place.into(), detail: detail.to_string() });
        }
    }
}

/// Checks the filesystem on `device`. `Err` when it cannot even be opened; that, too, names the place.
pub async fn check(
    device: &Arc<dyn Device>,
    queue: &Rc<dyn Queue>,
    options: CheckOptions,
) -> Result<CheckReport, StoreError> {
    verify(open(device, queue, OpenOptions { read_only: true, ..OpenOptions::default() }).await?, options).await
}

/// The same with one queue at a time: a device may grant no more.
pub async fn check_alone(device: &Arc<dyn Device>, options: CheckOptions) -> Result<CheckReport, StoreError> {
    let open_options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let opened = {
        let queue = PolledQueue::open(&**device, open_options.queue_depth, "device")?;
        open(device, &queue, open_options).await?
    };
    verify(opened, options).await
}

async fn verify(mut opened: Opened, options: CheckOptions) -> Result<CheckReport, StoreError> {
    let mut report = CheckReport { recovery: opened.report.clone(), ..CheckReport::default() };
    opened.report.repaired.iter().for_each(|place| report.add("a copy", place));
    let Some(seed) = opened.seeds.pop() else { return Err(StoreError::Closed) };
    let store = Store::start(seed, Rc::new(Everyone)).await?;
    let mut checker = Checker {
        store: store.clone(),
        options,
        report,
        blocks: RangeSet::default(),
        data: DataBlocks::default(),
        balance: Balance::default(),
    };
    checker.fixed_blocks()?;
    checker.all_items().await;
    checker.bitmaps();
    let Checker { mut report, balance, .. } = checker;
    if !balance.is_even() {
        let known = report.problem_count;
        Lookups::new(&store, &mut report).all_items().await;
        if report.problem_count == 0 {
            report.add("all items", "those that stand for each other do not add up, and yet each was found");
        }
        tracing::debug!(known, found = report.problem_count - known, "counterparts were looked up");
    }
    store.shutdown().await?;
    Ok(report)
}

struct Checker {
    store: Rc<Store>,
    options: CheckOptions,
    report: CheckReport,
    /// Everything that is in use.
    blocks: RangeSet,
    data: DataBlocks,
    balance: Balance,
}

/// What is gathered of the inode that the scan is at.
#[derive(Default)]
struct Gathered {
    ino: Ino,
    inode: Option<Inode>,
    backrefs: u32,
    entries: u64,
    subdirs: u32,
    items: u64,
    blocks: u64,
}

impl Checker {
    fn hold(&mut self, what: impl Fn() -> String, start: u64, len: u64) {
        if !self.blocks.insert(start, len) {
            self.report.add(what(), format!("blocks {start}+{len} are used by something else, too"));
        }
    }

    fn chunk_use(&self, block: u64) -> ChunkUse {
        let chunk = (block / u64::from(self.store.superblock().chunk_blocks)) as usize;
        let Some(central) = &self.store.central else { return ChunkUse::Free };
        central.manifest.state().chunks.get(chunk).copied().unwrap_or_default()
    }

    fn fixed_blocks(&mut self) -> Result<(), StoreError> {
        let Some(central) = self.store.central.clone() else { return Err(StoreError::Closed) };
        let state = central.manifest.state();
        let chunk_blocks = u64::from(self.store.superblock().chunk_blocks);
        for (i, used) in state.chunks.iter().enumerate() {
            if matches!(used, ChunkUse::Fixed | ChunkUse::Log | ChunkUse::SealLog) {
                self.hold(|| format!("chunk {i} ({used:?})"), i as u64 * chunk_blocks, chunk_blocks);
            }
        }
        for problem in state.shard_problems() {
            self.report.add("shards", problem);
        }
        for meta in state.segments() {
            self.report.segments += 1;
            for r in meta.ranges.iter().chain(&meta.mirror) {
                self.hold(|| format!("segment {}", meta.id), r.start.0, r.len_blocks.into());
                if self.chunk_use(r.start.0) != ChunkUse::Segment {
                    self.report.add(format!("segment {}", meta.id), format!("{} is in no chunk for segments", r.start));
                }
            }
        }
        Ok(())
    }

    async fn all_items(&mut self) {
        let mut pages = Pages::new(&self.store);
        let mut at = Gathered::default();
        while let Some(page) = pages.next().await {
            let items = match page {
                Page::Items(items) => items,
                Page::Gap { what, why } => {
                    at = Gathered::default(); // what is missing of it is no second problem
                    self.report.add(what, why);
                    continue;
                }
            };
            for (key, value) in items {
                self.report.items += 1;
                if key.zone() == Some(Zone::Fs) && Ino(key.first()) != at.ino || key.zone() != Some(Zone::Fs) {
                    self.end_inode(&std::mem::take(&mut at));
                }
                if key.zone() == Some(Zone::Fs) {
                    at.ino = Ino(key.first());
                    at.items += 1;
                }
                // Something that the item refers to cannot be read.
                if let Err(e) = self.item(&key, &value, &mut at).await {
                    self.report.add(format!("item {key:?}"), e);
                }
            }
        }
        self.end_inode(&at);
    }

    async fn item(&mut self, key: &Key, value: &Value, at: &mut Gathered) -> Result<(), StoreError> {
        let place = || format!("item {key:?}");
        match key.zone() {
            Some(Zone::Fs) => match ItemKind::from_u8(key.kind()) {
                Some(ItemKind::Inode) => match Inode::decode(value) {
                    Ok(inode) => at.inode = Some(inode),
                    Err(e) => self.report.add(place(), e),
                },
                Some(ItemKind::Extent) => self.extent(key, value, at).await?,
                Some(kind @ (ItemKind::Dirent | ItemKind::Readdir | ItemKind::Backref)) => {
                    match Dirent::decode(value) {
                        Ok(d) => self.dirent(key, kind, &d, at),
                        Err(e) => self.report.add(place(), e),
                    }
                }
                Some(_) => {}
                None => self.report.add(place(), "no such kind of item"),
            },
            Some(Zone::Index) => {
                let (seq, ino) = IndexKind::entry(key);
                self.balance.index_entry(IndexKind::from_u8(key.first() as u8), seq, ino);
            }
            Some(Zone::Orphan) => match lookups::inode(&self.store, Ino(key.first())).await? {
                Some(inode) if inode.nlink == 0 => {}
                Some(inode) => self.report.add(place(), format!("the orphan has {} names", inode.nlink)),
                None => self.report.add(place(), "the orphan has no inode"),
            },
            Some(Zone::Space) => {
                let Some((chunk, _)) = Bitmap::place(key).or_else(|| Owners::place(key)) else {
                    self.report.add(place(), "no bitmap's key, nor one of owners");
                    return Ok(());
                };
                let first = u64::from(chunk.0) * u64::from(self.store.superblock().chunk_blocks);
                let is_current = self.chunk_use(first) == ChunkUse::Data(key.bucket().0);
                // Else it is of an earlier grant of the chunk.
                if is_current && let Err(e) = self.data.item(key, value) {
                    self.report.add(place(), e);
                }
            }
            Some(Zone::System) => {}
            None => self.report.add(place(), "no such zone"),
        }
        Ok(())
    }

    async fn extent(&mut self, key: &Key, value: &Value, at: &mut Gathered) -> Result<(), StoreError> {
        self.report.extents += 1;
        let place = format!("extent {key:?}");
        let extent = match Extent::decode(value) {
            Ok(extent) => extent,
            Err(e) => {
                self.report.add(place, e);
                return Ok(());
            }
        };
        let Some(blocks) = extent.header.blocks() else { return Ok(()) };
        let (start, len) = (blocks.start.0, u64::from(blocks.len_blocks));
        at.blocks += len;
        self.report.data_blocks += len;
        if !self.data.hold(&mut self.blocks, start, len) {
            self.report.add(place.clone(), format!("blocks {start}+{len} are used by something else, too"));
        }
        self.expect_data_chunk(start, &place);
        self.expect_data_chunk(start + len - 1, &place);
        if self.options.data {
            self.data(&place, blocks, &extent.checksums).await?;
        }
        Ok(())
    }

    fn expect_data_chunk(&mut self, block: u64, place: &str) {
        if !matches!(self.chunk_use(block), ChunkUse::Data(_)) {
            self.report.add(place, format!("block {block} is in no chunk for data"));
        }
    }

    async fn data(&mut self, place: &str, blocks: BlockRange, checksums: &[u32]) -> Result<(), StoreError> {
        let data = self.store.read_data(&[blocks]).await?;
        for (i, (block, expected)) in data.chunks(vellum_base::BLOCK_SIZE).zip(checksums).enumerate() {
            self.report.verified_blocks += 1;
            let found = crc32c(block);
            if found != *expected {
                let at = blocks.start.0 + i as u64;
                self.report.add(place, format!("block {at}: checksum {found:#010x}, expected {expected:#010x}"));
            }
        }
        Ok(())
    }

    fn dirent(&mut self, key: &Key, kind: ItemKind, d: &Dirent, at: &mut Gathered) {
        let owner = Ino(key.first());
        let (own_key, whose) = match kind {
            ItemKind::Dirent => {
                self.report.dirents += 1;
                at.entries += 1;
                at.subdirs += u32::from(d.kind == FileKind::Directory);
                (Dirent::key_by_name(owner, &d.name, d.pos), "name")
            }
            ItemKind::Readdir => (Dirent::key_by_pos(owner, d.pos), "position"),
            _ => {
                at.backrefs += 1;
                (Dirent::key_backref(owner, d.ino, d.pos), "entry")
            }
        };
        if *key != own_key {
            self.report.add(lookups::entry_place(key, kind, d), format!("its key is not its {whose}'s"));
            return; // where it should be it is missing, and counted so
        }
        match kind {
            ItemKind::Dirent => self.balance.by_name(owner, d),
            ItemKind::Readdir => self.balance.by_position(owner, d),
            _ => self.balance.backref(owner, d),
        }
    }

    fn end_inode(&mut self, at: &Gathered) {
        if at.items == 0 {
            return;
        }
        let place = || lookups::inode_place(at.ino);
        let Some(inode) = &at.inode else {
            self.report.add(place(), format!("{} items and no inode", at.items));
            return;
        };
        self.report.inodes += 1;
        let expected = if inode.is_dir() { 2 + at.subdirs } else { at.backrefs };
        let orphan_dir = inode.is_dir() && inode.nlink == 0;
        if inode.nlink != expected && !orphan_dir {
            self.report.add(place(), format!("{} links, and {expected} were found", inode.nlink));
        }
        if inode.is_dir() && inode.size != at.entries {
            self.report.add(place(), format!("size {}, and it has {} entries", inode.size, at.entries));
        }
        if inode.online_blocks != at.blocks {
            self.report.add(place(), format!("{} blocks, and its extents have {}", inode.online_blocks, at.blocks));
        }
        self.balance.named(at.ino, inode.kind(), at.backrefs);
        for (kind, seq) in lookups::index_entries(inode) {
            self.balance.inode_seq(kind, seq, at.ino);
        }
    }

    /// Bits, counts of owners and extents say the same.
    fn bitmaps(&mut self) {
        let chunk_blocks = self.store.superblock().chunk_blocks;
        let data_chunks: Vec<u32> = match &self.store.central {
            Some(c) => {
                let state = c.manifest.state();
                let data = state.chunks.iter().enumerate().filter(|(_, u)| matches!(u, ChunkUse::Data(_)));
                data.map(|(i, _)| i as u32).collect()
            }
            None => Vec::new(),
        };
        for chunk in data_chunks {
            for at in 0..chunk_blocks {
                let block = u64::from(chunk) * u64::from(chunk_blocks) + u64::from(at);
                for detail in self.data.problems(chunk, at, self.blocks.contains(block, 1), block) {
                    self.report.add(format!("block {block}"), detail);
                }
            }
        }
    }
}
