//! Reservations on the reactor that owns the keys (or the blocks) of a batch.
//!
//! A reservation holds everything that applying needs: old values, room in log and memtable, the claim of blocks. While it
//! lives, no other one touches the same inodes, so what was read stays true until it is applied.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use vellum_base::{BatchNo, Epoch, Ino, ItemOp, Key, KeyRange, Mutant, Rid, Zone, mutant, probe};
use vellum_format::system::{self, LastBatch};
use vellum_format::{
    BITMAP_BLOCKS, Extent, IndexKind, Inode, ItemKind, OWNERS_BLOCKS, Orphan, Record, bitmap, log, owners,
};

use super::check::{Checked, check, key_of};
use crate::error::{CommitError, StoreError};
use crate::fact::Fact;
use crate::fold_hash::{FoldState, SecretFoldState};
use crate::mesh::{Refused, Released, Reserved};
use crate::space::SpaceChange;
use crate::store::Store;

/// Log bytes of a part besides its records: header, and the rest of its last block.
const PART_OVERHEAD: usize = 2 * vellum_base::BLOCK_SIZE;
/// Index upkeep and the orphan record of one inode.
const INODE_OVERHEAD: usize = 6 * log::put_len(32);
const NEWEST: Epoch = Epoch(u64::MAX);
/// Percent of a log and of the memtables that only [`Rid::ENGINE`] may take.
const EVACUATION_SHARE: usize = 6;

/// The sequences of an inode as they are.
#[derive(Clone, Copy)]
struct OldInode {
    meta_seq: u64,
    data_seq: u64,
}

/// One operation, ready to be stamped.
enum Resolved {
    Plain(Record),
    Inode {
        ino: Ino,
        value: Bytes,
        old: Option<OldInode>,
        data_changed: bool,
    },
    Death {
        ino: Ino,
        old: Option<OldInode>,
    },
    /// The client's last batch is this one.
    Last {
        rid: Rid,
        number: BatchNo,
    },
}

struct Reservation {
    rid: Rid,
    writes: Vec<Resolved>,
    space: SpaceChange,
    inos: Vec<Ino>,
    charged: usize,
    /// It changes names of inodes that are there.
    renames: bool,
}

/// What a client's operations come to.
struct Resolution {
    writes: Vec<Resolved>,
    released: Vec<Released>,
    renames: bool,
}

/// What is known of an inode that a reservation or an undurable epoch holds.
#[derive(Default)]
struct InoState {
    reserved: bool,
    last: Epoch,
}

#[derive(Default)]
pub(crate) struct Reservations {
    next: Cell<u64>,
    all: RefCell<HashMap<u64, Reservation, FoldState>>,
    /// Clients choose these numbers.
    inos: RefCell<HashMap<Ino, InoState, SecretFoldState>>,
    /// Inodes changed in epochs that are not durable, with those.
    recent: RefCell<Vec<(Epoch, Ino)>>,
}

impl Reservations {
    pub fn len(&self) -> usize {
        self.all.borrow().len()
    }

    /// Takes the inodes for one reservation; none when one is taken. Gives the least epoch that it may use.
    fn lock(&self, inos: &[Ino]) -> Option<Epoch> {
        let mut states = self.inos.borrow_mut();
        if inos.iter().any(|ino| states.get(ino).is_some_and(|s| s.reserved)) {
            return None;
        }
        let mut least = Epoch::NONE;
        for ino in inos {
            let state = states.entry(*ino).or_default();
            state.reserved = true;
            least = least.max(state.last);
        }
        Some(least)
    }

    fn unlock(&self, inos: &[Ino], applied: Option<Epoch>) {
        let mut states = self.inos.borrow_mut();
        for ino in inos {
            let Some(state) = states.get_mut(ino) else { continue };
            state.reserved = false;
            if let Some(epoch) = applied {
                state.last = epoch;
                self.recent.borrow_mut().push((epoch, *ino));
            } else if state.last == Epoch::NONE {
                states.remove(ino);
            }
        }
    }

    /// What is durable needs not be remembered.
    pub fn durable(&self, epoch: Epoch) {
        let mut states = self.inos.borrow_mut();
        self.recent.borrow_mut().retain(|(e, ino)| {
            if *e > epoch {
                return true;
            }
            if let Entry::Occupied(state) = states.entry(*ino)
                && !state.get().reserved
                && state.get().last <= epoch
            {
                state.remove();
            }
            false
        });
    }

    fn keep(&self, reservation: Reservation) -> u64 {
        let token = self.next.get() + 1;
        self.next.set(token);
        self.all.borrow_mut().insert(token, reservation);
        token
    }
}

impl Store {
    /// Reserves a client's operations, whose keys are all of this reactor.
    pub(crate) async fn reserve(
        self: &Rc<Self>,
        rid: Rid,
        ops: &[ItemOp],
    ) -> Result<Result<Reserved, Refused>, StoreError> {
        if self.moves.paused.get() {
            return Ok(Err(Refused::Busy)); // its locks may be gone already
        }
        if ops.iter().any(|op| self.reactor_of(key_of(op).bucket()) != self.me) {
            return Ok(Err(Refused::NotMine));
        }
        let mut checked = Vec::with_capacity(ops.len());
        let mut bytes = PART_OVERHEAD;
        for op in ops {
            let key = key_of(op);
            match check(op) {
                Ok(what) => checked.push(what),
                Err(reason) => return Ok(Err(Refused::No(CommitError::Malformed { key, reason }))),
            }
            let unheld = rid == Rid::ENGINE && mutant::active(Mutant::MoveUnheld);
            let excused = unheld || mutant::active(Mutant::WriteWithoutLock);
            if !self.authority.may_write(rid, &key) && !excused {
                return Ok(Err(Refused::No(CommitError::Denied { rid, key })));
            }
            bytes += log::put_len(op.len_bytes().max(32)) + INODE_OVERHEAD;
        }
        if let Err(refused) = self.charge(rid, bytes) {
            return Ok(Err(refused));
        }
        let _busy = self.moves.busy();
        let mut inos: Vec<Ino> = checked.iter().map(Checked::ino).collect();
        inos.sort_unstable();
        inos.dedup();
        let Some(least_epoch) = self.reservations.lock(&inos) else {
            self.uncharge(bytes);
            return Ok(Err(Refused::Busy));
        };
        let give_up = || {
            self.reservations.unlock(&inos, None);
            self.uncharge(bytes);
        };
        match self.resolve(ops, &checked).await {
            Ok(Ok(Resolution { writes, released, renames })) => {
                let space = SpaceChange::default();
                let token = self.reservations.keep(Reservation { rid, writes, space, inos, charged: bytes, renames });
                Ok(Ok(Reserved { token, released, least_epoch }))
            }
            Ok(Err(refused)) => {
                give_up();
                Ok(Err(Refused::No(refused)))
            }
            Err(e) => {
                give_up();
                Err(e)
            }
        }
    }

    /// Promises log room, and looks at the memtables. The last part of both is the evacuation's: when clients wait because
    /// there is no space for a flush, it makes some.
    fn charge(&self, rid: Rid, bytes: usize) -> Result<(), Refused> {
        if self.moves.paused.get() {
            return Err(Refused::Busy);
        }
        let share = if rid == Rid::ENGINE { 0 } else { EVACUATION_SHARE };
        let busy = self.shards.borrow().iter().any(|s| s.pressure() >= 1.0 - share as f32 / 100.0);
        let mut log = self.log.borrow_mut();
        let Some(log) = log.as_mut() else { return Err(Refused::No(StoreError::ReadOnly.into())) };
        let most = log.capacity_bytes() / 100 * (100 - share);
        if bytes > most {
            return Err(Refused::No(CommitError::TooLarge { what: "bytes for the log", found: bytes, most }));
        }
        if busy || !log.charge(bytes, most) {
            self.maintain.notify_one();
            return Err(Refused::Busy);
        }
        Ok(())
    }

    fn uncharge(&self, bytes: usize) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.release(bytes);
        }
    }

    /// Reads what is there and works out what to write.
    async fn resolve(
        &self,
        ops: &[ItemOp],
        checked: &[Checked],
    ) -> Result<Result<Resolution, CommitError>, StoreError> {
        let mut writes = Vec::with_capacity(ops.len());
        let mut released = Vec::new();
        let dying: BTreeSet<Ino> =
            checked.iter().filter_map(|c| if let Checked::Death(ino) = c { Some(*ino) } else { None }).collect();
        let mut dropped: BTreeSet<Key> = BTreeSet::new();
        let (mut renamed, mut born, mut renames) = (BTreeSet::new(), BTreeSet::new(), false);
        for (op, what) in ops.iter().zip(checked) {
            let key = key_of(op);
            let is_put = matches!(op, ItemOp::Put { .. });
            if is_put && key.zone() == Some(Zone::Fs) && dying.contains(&what.ino()) {
                let reason = "its inode dies in the same batch".into();
                return Ok(Err(CommitError::Malformed { key, reason }));
            }
            if let Checked::Extent(..) = what {
                released.extend(self.old_extent(&key).await?);
                dropped.insert(key);
            }
            if key.zone() == Some(Zone::Fs) && key.kind() == ItemKind::Backref as u8 {
                renamed.insert(what.ino());
            }
            writes.push(match (op, what) {
                (ItemOp::Put { value, .. }, Checked::Inode(ino)) => {
                    let old = self.old_inode(*ino).await?;
                    let bad = |error| StoreError::Item { key, error };
                    let new_version = Inode::decode(value).map_err(bad)?.data_version;
                    let data_changed = old.as_ref().is_none_or(|old| old.data_version != new_version);
                    if old.is_none() {
                        born.insert(*ino);
                    }
                    let old = old.map(|o| OldInode { meta_seq: o.meta_seq, data_seq: o.data_seq });
                    Resolved::Inode { ino: *ino, value: value.clone(), old, data_changed }
                }
                (ItemOp::Put { value, .. }, _) => Resolved::Plain(Record::Put { key, value: value.clone() }),
                (ItemOp::Delete { .. }, _) => Resolved::Plain(Record::Delete { key }),
                (ItemOp::DeleteInode { ino }, _) => {
                    let old = self.old_inode(*ino).await?;
                    renames |= old.as_ref().is_some_and(Inode::is_dir);
                    let old = old.map(|o| OldInode { meta_seq: o.meta_seq, data_seq: o.data_seq });
                    Resolved::Death { ino: *ino, old }
                }
            });
        }
        renames |= renamed.iter().any(|ino| !born.contains(ino) && !dying.contains(ino));
        for ino in dying {
            if let Some(key) = self.remaining_extent(ino, &dropped).await? {
                let reason = "an inode that dies has this extent left".into();
                return Ok(Err(CommitError::Malformed { key, reason }));
            }
        }
        Ok(Ok(Resolution { writes, released, renames }))
    }

    async fn old_inode(&self, ino: Ino) -> Result<Option<Inode>, StoreError> {
        let key = Inode::key(ino);
        match self.shard(&key)?.get(&key, NEWEST).await? {
            Some(value) => Inode::decode(&value).map(Some).map_err(|error| StoreError::Item { key, error }),
            None => Ok(None),
        }
    }

    async fn old_extent(&self, key: &Key) -> Result<Option<Released>, StoreError> {
        match self.shard(key)?.get(key, NEWEST).await? {
            Some(value) => {
                let header = Extent::decode_header(&value).map_err(|error| StoreError::Item { key: *key, error })?;
                Ok(header.blocks().map(|blocks| Released { blocks, value }))
            }
            None => Ok(None),
        }
    }

    /// An extent with blocks that the batch leaves behind.
    async fn remaining_extent(&self, ino: Ino, dropped: &BTreeSet<Key>) -> Result<Option<Key>, StoreError> {
        let kind = ItemKind::Extent as u8;
        let mut range =
            KeyRange { first: Key::fs(ino, kind, 0, 0, 0), last: Key::fs(ino, kind, u64::MAX, u64::MAX, u8::MAX) };
        loop {
            let page = self.shard(&range.first)?.scan(range, NEWEST, 256, 1 << 20).await?;
            for (key, value) in &page.items {
                let header = Extent::decode_header(value).map_err(|error| StoreError::Item { key: *key, error })?;
                if header.blocks().is_some() && !dropped.contains(key) {
                    return Ok(Some(*key));
                }
            }
            match page.next {
                Some(next) => range.first = next,
                None => return Ok(None),
            }
        }
    }

    /// Reserves changes of blocks whose chunks are this reactor's.
    pub(crate) fn reserve_space(&self, rid: Rid, mut change: SpaceChange) -> Result<u64, Refused> {
        let shares: Vec<(u64, u64)> = change.shares.iter().map(|(start, len, _)| (*start, *len)).collect();
        let mut all = change.allocs.iter().chain(&shares).chain(&change.frees);
        if all.any(|(start, _)| !self.space.borrow().owns(*start)) {
            return Err(Refused::NotMine);
        }
        if !change.shares.is_empty() && !self.space.borrow_mut().begin_sharing() {
            return Err(Refused::Busy);
        }
        if let Some((start, len)) = shares.iter().copied().find(|(s, l)| !self.space.borrow().may_count(*s, *l)) {
            let reason = "they have as many owners as can be counted";
            return Err(Refused::No(CommitError::NotShared { rid, start, len, reason }));
        }
        change.counted = self.space.borrow().is_sharing();
        // Items are written once an epoch, however many ranges touch them.
        let items = |ranges: [&[(u64, u64)]; 2], of: u32| {
            let touched = |(s, l): &(u64, u64)| s / u64::from(of)..=(s + l) / u64::from(of);
            ranges.into_iter().flatten().flat_map(touched).collect::<BTreeSet<u64>>().len()
        };
        let mut bytes = PART_OVERHEAD
            + items([&change.allocs, &change.frees], BITMAP_BLOCKS) * 2 * log::put_len(bitmap::BITMAP_BYTES);
        if change.counted {
            bytes += items([&shares, &change.frees], OWNERS_BLOCKS) * log::put_len(owners::OWNERS_BYTES);
        }
        self.charge(rid, bytes)?;
        if let Err((start, len)) = self.space.borrow_mut().claim(rid, &change) {
            self.uncharge(bytes);
            return Err(Refused::No(CommitError::Blocks { rid, start, len }));
        }
        let (writes, inos) = (Vec::new(), Vec::new());
        let renames = false;
        Ok(self.reservations.keep(Reservation { rid, writes, space: change, inos, charged: bytes, renames }))
    }

    /// Room for a few records of the engine's own.
    pub(crate) fn reserve_records(&self, rid: Rid) -> Result<u64, Refused> {
        self.reserve_writes(rid, Vec::new())
    }

    /// Reserves the record of a client's last batch, which is this reactor's.
    pub(crate) fn reserve_last(&self, rid: Rid, number: BatchNo) -> Result<u64, Refused> {
        if self.reactor_of(system::bucket_of_rid(rid)) != self.me {
            return Err(Refused::NotMine);
        }
        let forget = mutant::active(Mutant::ForgetLastBatch);
        self.reserve_writes(rid, if forget { Vec::new() } else { vec![Resolved::Last { rid, number }] })
    }

    fn reserve_writes(&self, rid: Rid, writes: Vec<Resolved>) -> Result<u64, Refused> {
        self.charge(rid, PART_OVERHEAD)?;
        let reservation = Reservation {
            rid,
            writes,
            space: SpaceChange::default(),
            inos: Vec::new(),
            charged: PART_OVERHEAD,
            renames: false,
        };
        Ok(self.reservations.keep(reservation))
    }

    pub(crate) fn abort_reserved(&self, token: u64) {
        let Some(r) = self.reservations.all.borrow_mut().remove(&token) else { return };
        self.reservations.unlock(&r.inos, None);
        self.space.borrow_mut().unclaim(r.rid, &r.space);
        self.uncharge(r.charged);
        self.room.notify_all();
    }

    /// Makes a reservation part of `epoch`. Cannot fail.
    pub(crate) fn apply_reserved(&self, token: u64, epoch: Epoch) {
        let Some(r) = self.reservations.all.borrow_mut().remove(&token) else { return };
        probe::tell(|| {
            let groups: BTreeSet<u64> = r.inos.iter().map(|ino| ino.group()).collect();
            Fact::Wrote { term: self.term, rid: r.rid, groups: groups.into_iter().collect() }
        });
        {
            let mut epochs = self.epochs.borrow_mut();
            let part = epochs.part(epoch);
            let mut apply = |record: Record| {
                part.records.push(&record);
                self.apply_record(epoch, record);
            };
            r.writes.into_iter().for_each(|write| stamp(write, epoch, &mut apply));
            part.charged += r.charged;
            if !r.space.is_empty() {
                part.space.push(r.space);
            }
        }
        if r.renames {
            self.names.fetch_add(1, Ordering::SeqCst);
        }
        self.reservations.unlock(&r.inos, Some(epoch));
        self.room.notify_all();
    }
}

/// Turns a resolved operation into records of `epoch`.
fn stamp(write: Resolved, epoch: Epoch, out: &mut impl FnMut(Record)) {
    match write {
        Resolved::Plain(record) => out(record),
        Resolved::Inode { ino, value, old, data_changed } => {
            let data_seq = match old {
                Some(old) if !data_changed => old.data_seq,
                _ => epoch.0,
            };
            let mut value = BytesMut::from(&value[..]);
            Inode::stamp(&mut value, epoch.0, data_seq);
            out(Record::Put { key: Inode::key(ino), value: value.freeze() });
            let old_meta = old.map(|o| o.meta_seq);
            let old_data = old.map(|o| o.data_seq);
            move_entry(IndexKind::MetaSeq, ino, old_meta, epoch.0, out);
            move_entry(IndexKind::DataSeq, ino, old_data, data_seq, out);
        }
        Resolved::Death { ino, old } => {
            out(Record::DeleteRange { range: KeyRange::of_inode(ino) });
            if let Some(old) = old {
                out(Record::Delete { key: IndexKind::MetaSeq.key(old.meta_seq, ino) });
                out(Record::Delete { key: IndexKind::DataSeq.key(old.data_seq, ino) });
            }
            out(Record::Delete { key: Orphan::key(ino) });
        }
        Resolved::Last { rid, number } => {
            let value = LastBatch { number, epoch }.encode();
            out(Record::Put { key: system::batch_key(rid), value });
        }
    }
}

fn move_entry(kind: IndexKind, ino: Ino, old: Option<u64>, new: u64, out: &mut impl FnMut(Record)) {
    if old == Some(new) {
        return;
    }
    if let Some(old) = old {
        out(Record::Delete { key: kind.key(old, ino) });
    }
    out(Record::Put { key: kind.key(new, ino), value: Bytes::new() });
}
