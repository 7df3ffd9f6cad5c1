//! Where new inodes go.
//!
//! Numbers come in groups that the engine gives out once. A group belongs to this client, and to one directory while
//! it is filled; the first inodes of a directory go into the group of the directory itself when that is ours, so that
//! small subdirectories share their parent's group. Spare groups are fetched and locked ahead: allocation is memory
//! only, and since a number that was never given out has no items, nothing about it needs to be asked.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use vellum_base::{Ino, Key, KeyRange};
use vellum_wire::{LockMode, LockName, Request, Response};

use crate::stats::count;
use crate::wait::WakeList;
use crate::{Client, ClientError, env};

/// Wait before the engine is asked again after it had no group.
const RETRY: std::time::Duration = std::time::Duration::from_millis(50);

#[derive(Default)]
struct Place {
    placed: u32,
    own: Option<u64>,
    used_at: u64,
}

#[derive(Default)]
pub(crate) struct InodeGroups {
    /// Next free slot of each group of ours that is not full.
    free: RefCell<HashMap<u64, u64>>,
    dirs: RefCell<BTreeMap<Ino, Place>>,
    spare: RefCell<VecDeque<u64>>,
    fetching: Cell<usize>,
    waiting: Cell<usize>,
    clock: Cell<u64>,
    last_error: RefCell<Option<ClientError>>,
    pub changed: WakeList,
}

impl InodeGroups {
    fn take_slot(&self, group: u64) -> Option<Ino> {
        let mut free = self.free.borrow_mut();
        let slot = free.get_mut(&group)?;
        let ino = Ino(Ino::first_of_group(group).0 + *slot);
        *slot += 1;
        if *slot == Ino::SLOTS_PER_GROUP {
            free.remove(&group);
        }
        Some(ino)
    }

    /// The next number for `dir` without asking anybody.
    fn place(&self, dir: Ino, small: u32, max_dirs: usize) -> Option<Ino> {
        self.clock.set(self.clock.get() + 1);
        let mut dirs = self.dirs.borrow_mut();
        if dirs.len() >= max_dirs && !dirs.contains_key(&dir) {
            self.forget_oldest(&mut dirs);
        }
        let place = dirs.entry(dir).or_default();
        place.used_at = self.clock.get();
        let own = place.own.and_then(|group| self.take_slot(group));
        let near = || (place.placed < small).then(|| self.take_slot(dir.group())).flatten();
        let ino = own.or_else(near).or_else(|| {
            let group = self.spare.borrow_mut().pop_front()?;
            place.own = Some(group);
            self.take_slot(group)
        })?;
        place.placed = place.placed.saturating_add(1);
        Some(ino)
    }

    /// Drops the older half; what is left of their groups serves other directories.
    fn forget_oldest(&self, dirs: &mut BTreeMap<Ino, Place>) {
        let mut ages: Vec<u64> = dirs.values().map(|p| p.used_at).collect();
        let middle = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(middle);
        let median = *median;
        let free = self.free.borrow();
        dirs.retain(|_, place| {
            let keep = place.used_at >= median;
            if let Some(group) = place.own.filter(|g| !keep && free.contains_key(g)) {
                self.spare.borrow_mut().push_front(group);
            }
            keep
        });
    }
}

impl Client {
    /// A number for a new inode in `dir`; it has no items yet. Take it before the locks, then lock its group with the
    /// others: the lease is normally held already.
    pub async fn alloc_ino(self: &Rc<Self>, dir: Ino, is_dir: bool) -> Result<Ino, ClientError> {
        // Directories go with their siblings: what makes them large comes later, and gets groups of its own then.
        let _ = is_dir;
        loop {
            self.check_alive()?;
            let ino = self.inodes.place(dir, self.options.small_dir_inodes, self.options.max_placed_dirs);
            self.fetch_groups();
            if let Some(ino) = ino {
                return Ok(ino);
            }
            let i = &self.inodes;
            i.waiting.set(i.waiting.get() + 1);
            *i.last_error.borrow_mut() = None;
            i.changed
                .until(|| {
                    let over = !i.spare.borrow().is_empty() || i.last_error.borrow().is_some() || self.is_dead();
                    over.then_some(())
                })
                .await;
            i.waiting.set(i.waiting.get() - 1);
            let error = i.last_error.borrow().clone();
            if let Some(error) = error.filter(|_| i.spare.borrow().is_empty()) {
                return Err(error);
            }
        }
    }

    /// Fetches spare groups up to the bound.
    pub(crate) fn fetch_groups(self: &Rc<Self>) {
        let i = &self.inodes;
        while i.spare.borrow().len() + i.fetching.get() < self.options.spare_groups && !self.is_dead() {
            i.fetching.set(i.fetching.get() + 1);
            let client = self.clone();
            env::spawn("fetch inode group", async move {
                let fetched = client.fetch_group().await;
                let failed = fetched.is_err();
                match fetched {
                    Ok(group) => client.inodes.spare.borrow_mut().push_back(group),
                    Err(error) => *client.inodes.last_error.borrow_mut() = Some(error),
                }
                client.inodes.changed.wake_all();
                if failed {
                    env::sleep(RETRY).await;
                }
                client.inodes.fetching.set(client.inodes.fetching.get() - 1);
                if client.inodes.waiting.get() > 0 {
                    client.fetch_groups();
                }
            });
        }
    }

    async fn fetch_group(self: &Rc<Self>) -> Result<u64, ClientError> {
        let group = match self.port.call(Request::AllocGroup { near: None }, None).await?.body {
            Response::Group { group } if group != 0 && group <= u64::MAX >> Ino::SLOT_BITS => group,
            Response::Error(e) => return Err(ClientError::Engine(e)),
            _ => return Err(ClientError::Protocol { request: "AllocGroup" }),
        };
        count(&self.counters.groups_allocated, 1);
        self.inodes.free.borrow_mut().insert(group, 0);
        self.lock(&[(LockName::Group(group), LockMode::Write)]).await?;
        Ok(group)
    }

    /// The numbers of our groups that were not given out have no items, whoever looks.
    pub(crate) fn know_unused_inodes(&self, group: u64, held: LockMode) {
        let slot = self.inodes.free.borrow().get(&group).copied();
        if let Some(slot) = slot.filter(|_| held != LockMode::Null) {
            let first = Ino(Ino::first_of_group(group).0 + slot);
            let last = KeyRange::of_inode(Ino::last_of_group(group)).last;
            self.cache.borrow_mut().know_range(group, KeyRange { first: Key::fs(first, 0, 0, 0, 0), last });
        }
    }
}
