//! The key-value peer of the `items` suite: fjall, an LSM in Rust, driven with the same keys and batches.

use std::path::Path;

use anyhow::Result;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::recorder::Recorder;

/// A database in a directory of its own.
pub struct Fjall {
    db: Database,
    items: Keyspace,
}

impl Fjall {
    pub fn open(dir: &Path) -> Result<Fjall> {
        let db = Database::builder(dir).cache_size(64 << 20).open()?;
        let items = db.keyspace("items", KeyspaceCreateOptions::default)?;
        Ok(Fjall { db, items })
    }

    /// Puts `keys` with `value_of` in batches; each batch is synced when `sync`. One operation recorded per batch.
    pub fn fill(
        &self,
        keys: &[[u8; 24]],
        value_of: impl Fn(usize) -> [u8; 100],
        batch: usize,
        sync: bool,
        recorder: &mut Recorder,
    ) -> Result<()> {
        for (n, chunk) in keys.chunks(batch).enumerate() {
            recorder.time(chunk.len() as u64 * 124, || -> Result<()> {
                let mut b = self.db.batch();
                for (i, key) in chunk.iter().enumerate() {
                    b.insert(&self.items, &key[..], &value_of(n * batch + i)[..]);
                }
                if sync {
                    b = b.durability(Some(PersistMode::SyncAll));
                }
                Ok(b.commit()?)
            })?;
        }
        Ok(())
    }

    /// Reads every key in the order given and checks that it is there.
    pub fn gets(&self, keys: &[[u8; 24]], recorder: &mut Recorder) -> Result<()> {
        for key in keys {
            let found = recorder.time(124, || self.items.get(key))?;
            anyhow::ensure!(found.is_some_and(|v| v.len() == 100), "fjall lost a key");
        }
        Ok(())
    }

    pub fn persist(&self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }

    /// Bytes that the database takes on disk, journal included.
    pub fn disk_bytes(&self) -> Result<u64> {
        Ok(self.db.disk_space()?)
    }
}
