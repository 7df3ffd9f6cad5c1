//! What a device holds after a crash: it is recovered aside, in a world of its own, and read whole.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vellum_base::{Ino, KeyRange, Rid, View, mutant, probe};
use vellum_format::Inode;
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Image};
use vellum_rt::sim::{SimConfig, World};
use vellum_store::{CheckOptions, Everyone, OpenOptions, PolledQueue, Store, StoreError, check, open};

use super::history::Survived;
use crate::work::file::decode_all;

/// How a problem begins that is the rot of a copy of the superblock.
const ROT: &str = "a copy: Superblock";
/// Virtual time that a recovery may take.
const LIMIT: Duration = Duration::from_secs(600);

/// Recovers a copy of the device, and reads what is there. It must be clean, data included.
///
/// `rotten`: a copy of the superblock may be bad. It is done by honest code, and unheard by the checkers.
pub fn inspect(image: &Image, options: &OpenOptions, seed: u64, rotten: bool) -> Result<Survived, String> {
    let _unheard = probe::listen(|_| {});
    let bug = mutant::replace(None);
    let found = recover_and_read(image, options, seed, rotten);
    mutant::replace(bug);
    found
}

fn recover_and_read(image: &Image, options: &OpenOptions, seed: u64, rotten: bool) -> Result<Survived, String> {
    let Problems { found, segments } = problems(image, seed)?;
    let bad: Vec<String> = found.into_iter().filter(|p| !(rotten && p.starts_with(ROT))).take(10).collect();
    if !bad.is_empty() {
        return Err(format!("problems: {}", bad.join("\n  ")));
    }
    Ok(Survived { segments, ..read_whole(image, options, seed)? })
}

/// What a check says.
pub struct Problems {
    pub found: Vec<String>,
    pub segments: u64,
}

/// What an honest node reads, file data aside: nothing is listened to.
pub fn read_whole(image: &Image, options: &OpenOptions, seed: u64) -> Result<Survived, String> {
    let _unheard = probe::listen(|_| {});
    let mut world = World::new(seed, SimConfig::default());
    let node = world.add_node();
    let on = world.add_reactor(node);
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(image.clone()));
    let options = OpenOptions { reactors: 1, evacuation_bytes_per_s: None, ..options.clone() };
    let survived = world.block_on(on, LIMIT, async move { read(device, options).await });
    survived.ok_or("the recovery does not end")?
}

/// The problems that a check of the image tells of; what stops it is one too.
pub fn problems(image: &Image, seed: u64) -> Result<Problems, String> {
    let _unheard = probe::listen(|_| {});
    let mut world = World::new(seed, SimConfig::default());
    let node = world.add_node();
    let on = world.add_reactor(node);
    let checked: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(image.clone()));
    let report = world.block_on(on, LIMIT, async move {
        let queue = PolledQueue::open(&*checked, 64, "check")?;
        check(&checked, &queue, CheckOptions { data: true }).await
    });
    match report.ok_or("the check does not end")? {
        Ok(report) => {
            let found = report.problems.iter().map(ToString::to_string).collect();
            Ok(Problems { found, segments: report.segments })
        }
        Err(e) => Ok(Problems { found: vec![format!("the check: {e}")], segments: 0 }),
    }
}

async fn read(device: Arc<dyn Device>, options: OpenOptions) -> Result<Survived, String> {
    let text = |e: StoreError| e.to_string();
    let queue = PolledQueue::open(&*device, 64, "inspect").map_err(StoreError::from).map_err(text)?;
    let mut opened = open(&device, &queue, options).await.map_err(text)?;
    let seed = opened.seeds.pop().ok_or("no seed")?;
    let store = Store::start(seed, Rc::new(Everyone)).await.map_err(text)?;
    let mut last_batch: BTreeMap<Rid, u64> = BTreeMap::new();
    for (rid, identity) in store.rids().await.map_err(text)? {
        let state = store.open_rid(rid, &identity).await.map_err(text)?;
        last_batch.insert(rid, state.last_batch.0);
    }
    let (mut range, mut items) = (KeyRange::ALL, Vec::new());
    loop {
        let page = store.scan(range, 1000, 1 << 20, View::Applied).await.map_err(text)?;
        items.extend(page.items);
        match page.next {
            Some(next) => range.first = next,
            None => break,
        }
    }
    let inodes = items.iter().filter(|(key, _)| *key == Inode::key(Ino(key.first())));
    let sequences = inodes.filter_map(|(key, value)| Some((Ino(key.first()), Inode::decode(value).ok()?.meta_seq)));
    Ok(Survived { last_batch, sequences: sequences.collect(), files: decode_all(&items)?, segments: 0 })
}
