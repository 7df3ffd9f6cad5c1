//! Totals of the filesystem.

use vellum_format::item::MAX_NAME;

use crate::error::Result;
use crate::types::FsStat;
use crate::vfs::Vfs;

impl Vfs {
    pub async fn statfs(&self) -> Result<FsStat> {
        let stat = self.client.statfs().await?;
        Ok(FsStat {
            total_blocks: stat.total_blocks,
            free_blocks: stat.free_blocks,
            available_blocks: stat.available_blocks,
            inodes: stat.inodes,
            max_name: MAX_NAME as u32,
        })
    }
}
