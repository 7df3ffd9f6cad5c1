//! Replaced step by step: reads see memtables only.

use vellum_base::{Epoch, Key, KeyRange};
use vellum_format::Value;

use super::memtable::Found;
use super::{Edit, Job, LsmError, ScanPage, Shard};

impl Shard {
    pub(super) async fn get_in_segments(&self, _key: &Key, _at: Epoch) -> Result<Option<Value>, LsmError> {
        Ok(None)
    }

    pub async fn scan(
        &self,
        range: KeyRange,
        at: Epoch,
        max_items: usize,
        max_bytes: usize,
    ) -> Result<ScanPage, LsmError> {
        let mut page = ScanPage::default();
        let mut keys = std::collections::BTreeSet::new();
        for (table, _) in self.state().memtables(at) {
            keys.extend(table.borrow().from(&range.first).map(|(key, _)| *key).take_while(|key| *key <= range.last));
        }
        let mut bytes = 0;
        for key in keys {
            let found = self.state().memtables(at).find_map(|(table, at)| table.borrow().get(&key, at));
            let Some(Found::Value(value)) = found else { continue };
            if page.items.len() >= max_items || bytes >= max_bytes {
                page.next = Some(key);
                break;
            }
            bytes += Key::LEN + value.len();
            page.items.push((key, value));
        }
        Ok(page)
    }

    pub async fn flush(&self, _durable: Epoch) -> Result<Option<Edit>, LsmError> {
        Ok(None)
    }

    pub fn pick_compaction(&self) -> Option<Job> {
        None
    }

    pub async fn run_compaction(&self, _job: Job) -> Result<Edit, LsmError> {
        Ok(Edit::default())
    }

    pub fn pressure(&self) -> f32 {
        0.0
    }
}
