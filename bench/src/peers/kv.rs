//! The key-value peers of the `items` suite, driven with the same keys and batches as Vellum.

use std::path::Path;

use anyhow::Result;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::recorder::Recorder;

pub const KEY_LEN: usize = 24;
pub const VALUE_LEN: usize = 100;
/// What each peer may cache of its blocks, and the length of a memtable; a second one may be on its way to the medium.
pub const CACHE_BYTES: usize = 256 << 20;
pub const MEMTABLE_BYTES: usize = 64 << 20;

pub type RawKey = [u8; KEY_LEN];

/// A database in a directory of its own.
pub trait KeyValue: Sync {
    /// What the reports call it.
    fn name(&self) -> &'static str;

    /// Puts all of them or none; on the medium when it returns, if `sync`.
    fn write(&self, items: &[(&RawKey, [u8; VALUE_LEN])], sync: bool) -> Result<()>;

    /// Length of the value in bytes, if it is there.
    fn get(&self, key: &RawKey) -> Result<Option<usize>>;
}

/// Puts `keys` with `value_of` in batches; each is synced when `sync`. One operation recorded per batch.
pub fn fill(
    db: &dyn KeyValue,
    keys: &[RawKey],
    value_of: impl Fn(usize) -> [u8; VALUE_LEN],
    batch: usize,
    sync: bool,
    recorder: &mut Recorder,
) -> Result<()> {
    for (n, chunk) in keys.chunks(batch).enumerate() {
        recorder.time((chunk.len() * (KEY_LEN + VALUE_LEN)) as u64, || {
            let items: Vec<_> = chunk.iter().enumerate().map(|(i, key)| (key, value_of(n * batch + i))).collect();
            db.write(&items, sync)
        })?;
    }
    Ok(())
}

/// Reads every key in the order given and checks that it is there.
pub fn gets<'a>(db: &dyn KeyValue, keys: impl Iterator<Item = &'a RawKey>, recorder: &mut Recorder) -> Result<()> {
    for key in keys {
        let found = recorder.time((KEY_LEN + VALUE_LEN) as u64, || db.get(key))?;
        anyhow::ensure!(found == Some(VALUE_LEN), "{} lost a key", db.name());
    }
    Ok(())
}

/// An LSM in Rust.
pub struct Fjall {
    db: Database,
    items: Keyspace,
}

impl Fjall {
    pub fn open(dir: &Path) -> Result<Fjall> {
        let db = Database::builder(dir).cache_size(CACHE_BYTES as u64).open()?;
        let items = db.keyspace("items", KeyspaceCreateOptions::default)?;
        Ok(Fjall { db, items })
    }
}

impl KeyValue for Fjall {
    fn name(&self) -> &'static str {
        "fjall"
    }

    fn write(&self, items: &[(&RawKey, [u8; VALUE_LEN])], sync: bool) -> Result<()> {
        let mut batch = self.db.batch();
        for (key, value) in items {
            batch.insert(&self.items, &key[..], &value[..]);
        }
        if sync {
            batch = batch.durability(Some(PersistMode::SyncAll));
        }
        Ok(batch.commit()?)
    }

    fn get(&self, key: &RawKey) -> Result<Option<usize>> {
        Ok(self.items.get(key)?.map(|value| value.len()))
    }
}

/// What every peer must do, whatever is behind it.
#[cfg(test)]
pub(super) fn conforms(db: &dyn KeyValue) {
    let key = |n: u8| [n; KEY_LEN];
    for sync in [false, true] {
        let keys: Vec<RawKey> = (0..100).map(|n| key(n + 100 * u8::from(sync))).collect();
        let mut recorder = Recorder::default();
        fill(db, &keys, |i| [i as u8; VALUE_LEN], 30, sync, &mut recorder).unwrap();
        assert_eq!((recorder.ops(), recorder.bytes()), (4, 12_400));
    }
    let keys: Vec<RawKey> = (0..200).map(key).collect();
    let mut recorder = Recorder::default();
    gets(db, keys.iter(), &mut recorder).unwrap();
    assert_eq!(recorder.ops(), 200);
    let absent = gets(db, [key(200)].iter(), &mut recorder).unwrap_err();
    assert_eq!(absent.to_string(), format!("{} lost a key", db.name()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fjall_keeps_what_it_is_given() {
        let dir = tempfile::tempdir().unwrap();
        conforms(&Fjall::open(dir.path()).unwrap());
    }
}
