//! What is on the device, for people: superblock, manifest, log, items, space. Never writes.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use vellum_base::{Key, KeyRange, View, Zone};
use vellum_format::{
    Bitmap, ChunkUse, Dirent, Extent, IndexKind, Inode, ItemKind, Owners, Record, Superblock, Value, log, system,
};
use vellum_nvme::{Device, Queue};

use crate::error::StoreError;
use crate::manifest;
use crate::open::open;
use crate::options::OpenOptions;
use crate::recovery::read_run;
use crate::store::{Everyone, Store};
use crate::superblock;

/// Named values in order; lists are values with numbered names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    pub title: String,
    pub fields: Vec<(String, String)>,
}

impl Dump {
    fn new(title: &str) -> Dump {
        Dump { title: title.into(), fields: Vec::new() }
    }

    fn add(&mut self, name: impl Into<String>, value: impl ToString) {
        self.fields.push((name.into(), value.to_string()));
    }
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        let width = self.fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0).min(40);
        self.fields.iter().try_for_each(|(name, value)| writeln!(f, "  {name:<width$}  {value}"))
    }
}

pub async fn superblock(queue: &Rc<dyn Queue>) -> Result<Dump, StoreError> {
    let found = superblock::read(queue).await?;
    let sb = found.superblock;
    let mut d = Dump::new("superblock");
    d.add("fsid", sb.fsid);
    d.add("generation", sb.generation);
    d.add("format version", sb.format_version);
    d.add("features", format!("{:?}", sb.features));
    d.add("blocks", sb.blocks);
    d.add("chunks", format!("{} of {} blocks", sb.chunks(), sb.chunk_blocks));
    d.add("copy", sb.copy);
    d.add("slots area", format!("{} +{}", sb.slots_area.start, sb.slots_area.len_blocks));
    for (area, copies) in sb.manifest.iter().enumerate() {
        for (copy, r) in copies.iter().enumerate() {
            d.add(format!("manifest area {area} copy {copy}"), format!("{} +{}", r.start, r.len_blocks));
        }
    }
    d.add("manifest generation", sb.manifest_generation);
    d.add("metadata copies", sb.metadata_copies);
    d.add("created", sb.created);
    for (i, slot) in sb.slots.iter().enumerate().filter(|(_, s)| !s.is_empty()) {
        d.add(format!("slot {i}"), String::from_utf8_lossy(slot));
    }
    found.bad.iter().for_each(|(at, e)| d.add(format!("bad copy at {at}"), e));
    Ok(d)
}

pub async fn manifest(queue: &Rc<dyn Queue>) -> Result<Dump, StoreError> {
    let sb = superblock::read(queue).await?.superblock;
    let found = manifest::read(queue, &sb).await?;
    let s = &found.state;
    let mut d = Dump::new("manifest");
    d.add("generation", found.file.generation);
    d.add("records", found.records);
    d.add("term", s.term);
    d.add("next segment, log", format!("{}, {}", s.next_segment, s.next_log));
    d.add("base", format!("seal {} hash {:016x} epoch {}", s.base_number, s.base_hash, s.base_epoch));
    let count = |f: fn(&ChunkUse) -> bool| s.chunks.iter().filter(|c| f(c)).count();
    d.add("chunks free", count(|c| *c == ChunkUse::Free));
    d.add("chunks fixed", count(|c| *c == ChunkUse::Fixed));
    d.add("chunks log", count(|c| matches!(c, ChunkUse::Log | ChunkUse::SealLog)));
    d.add("chunks segment", count(|c| *c == ChunkUse::Segment));
    d.add("chunks data", count(|c| matches!(c, ChunkUse::Data(_))));
    s.shard_problems().iter().for_each(|problem| d.add("bad shards", problem));
    let holders = s.holders();
    for (id, shard) in &s.shards {
        let segments: Vec<String> =
            shard.levels.iter().enumerate().map(|(l, list)| format!("L{l}: {}", list.len())).collect();
        let buckets = format!("buckets {}..={}", shard.first_bucket, shard.last_bucket);
        let through = shard.flushed_through;
        d.add(format!("shard {id}"), format!("{buckets}, flushed through {through}, {}", segments.join(" ")));
        for (level, m) in shard.levels.iter().enumerate().flat_map(|(l, list)| list.iter().map(move |m| (l, m))) {
            let range = format!("{:?} .. {:?}", m.first, m.last);
            let shared = if holders.get(&m.id).is_some_and(|shards| *shards > 1) { ", of several shards" } else { "" };
            let what = format!("L{level} {} bytes, {} entries, {range}{shared}", m.len_bytes, m.entries);
            d.add(format!("shard {id} segment {}", m.id), what);
        }
    }
    for run in &s.runs {
        let cut = run.cut.map_or("open".into(), |c| format!("cut at {c}"));
        let name = format!("run of term {}", run.term);
        let floor = format!("floor {}, durable {}", run.floor_number, run.durable_number);
        d.add(name, format!("seals from {}, {floor}, {cut}", run.first_number));
        for l in &run.logs {
            d.add(
                format!("run of term {} log {}", run.term, l.id),
                format!("{} chunks, floor {}", l.chunks.len(), l.floor),
            );
        }
    }
    found.bad.iter().for_each(|(at, e)| d.add(format!("bad copy at {at}"), e));
    Ok(d)
}

/// The runs' seals that count and up to `limit` records of their parts.
pub async fn log(queue: &Rc<dyn Queue>, limit: usize) -> Result<Dump, StoreError> {
    let sb = superblock::read(queue).await?.superblock;
    let found = manifest::read(queue, &sb).await?;
    let mut d = Dump::new("log");
    let mut left = limit;
    for run in &found.state.runs {
        let end = read_run(queue, &sb, run).await?;
        let name = format!("run of term {}", run.term);
        d.add(
            &name,
            format!(
                "{} epochs, {} bytes, last seal {}, last epoch {}",
                end.epochs, end.bytes, end.last_number, end.last_epoch
            ),
        );
        d.add(format!("{name} ends"), &end.end);
        for part in &end.parts {
            for record in log::records(&part.records).take(left) {
                let record = record.map_err(|e| StoreError::record("log part", &e))?;
                left = left.saturating_sub(1);
                let what = match record {
                    Record::Put { key, value } => format!("put {key:?} {}", describe(&key, &value)),
                    Record::Delete { key } => format!("delete {key:?}"),
                    Record::DeleteRange { range } => format!("delete {:?} .. {:?}", range.first, range.last),
                };
                d.add(format!("epoch {}", part.epoch), what);
            }
        }
    }
    Ok(d)
}

async fn read_only(device: &Arc<dyn Device>, queue: &Rc<dyn Queue>) -> Result<Rc<Store>, StoreError> {
    let mut opened = open(device, queue, OpenOptions { read_only: true, ..OpenOptions::default() }).await?;
    let Some(seed) = opened.seeds.pop() else { return Err(StoreError::Closed) };
    Store::start(seed, Rc::new(Everyone)).await
}

/// Up to `limit` items of a range, as recovery would find them.
pub async fn items(
    device: &Arc<dyn Device>,
    queue: &Rc<dyn Queue>,
    mut range: KeyRange,
    limit: usize,
) -> Result<Dump, StoreError> {
    let store = read_only(device, queue).await?;
    let mut d = Dump::new("items");
    while d.fields.len() < limit {
        let page = store.scan(range, (limit - d.fields.len()).min(1024), 1 << 20, View::Applied).await?;
        page.items.iter().for_each(|(key, value)| d.add(format!("{key:?}"), describe(key, value)));
        match page.next {
            Some(next) => range.first = next,
            None => break,
        }
    }
    store.shutdown().await?;
    Ok(d)
}

/// What each chunk is used for, and how full.
pub async fn space(device: &Arc<dyn Device>, queue: &Rc<dyn Queue>) -> Result<Dump, StoreError> {
    let store = read_only(device, queue).await?;
    let sb: &Superblock = store.superblock();
    let mut d = Dump::new("space");
    let status = store.status().await?;
    d.add("blocks", sb.blocks);
    d.add("statfs", format!("{:?}", status.space));
    let chunks = store.central.as_ref().map(|c| c.manifest.state().chunks.clone()).unwrap_or_default();
    for (i, used) in chunks.iter().enumerate().filter(|(_, u)| **u != ChunkUse::Free) {
        let full = match used {
            ChunkUse::Data(_) => format!(", {} blocks used", store.space.borrow().used_in(i as u32)),
            _ => String::new(),
        };
        d.add(format!("chunk {i}"), format!("{used:?}{full}"));
    }
    store.shutdown().await?;
    Ok(d)
}

fn describe(key: &Key, value: &Value) -> String {
    let decoded = match (key.zone(), ItemKind::from_u8(key.kind())) {
        (Some(Zone::Fs), Some(ItemKind::Inode)) => Inode::decode(value).map(|i| format!("{i:?}")),
        (Some(Zone::Fs), Some(ItemKind::Dirent | ItemKind::Readdir | ItemKind::Backref)) => {
            Dirent::decode(value).map(|e| format!("{e:?}"))
        }
        (Some(Zone::Fs), Some(ItemKind::Extent)) => Extent::decode_header(value).map(|h| format!("{h:?}")),
        (Some(Zone::Space), _) if Owners::place(key).is_some() => {
            Owners::decode(value).map(|o| format!("{:?}", o.runs()))
        }
        (Some(Zone::Space), _) => Bitmap::decode(value).map(|b| format!("{} used", b.used())),
        (Some(Zone::Index), _) => {
            Ok(format!("{:?} {:?}", IndexKind::from_u8(key.first() as u8), IndexKind::entry(key)))
        }
        (Some(Zone::System), _) if value.len() == 16 => system::LastBatch::decode(value).map(|b| format!("{b:?}")),
        _ => Ok(format!("{} bytes", value.len())),
    };
    decoded.unwrap_or_else(|e| format!("BAD: {e}"))
}
