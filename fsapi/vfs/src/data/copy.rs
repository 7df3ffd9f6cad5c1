//! copy_file_range(2): from one file into another without the way through the kernel.
//!
//! Whole blocks that lie alike in both files are shared ([`super::share`]); the rest is read and written again: parts of
//! blocks, what is inline, what cannot become durable now. Holes are copied as holes.

use vellum_base::BLOCK_SIZE;

use crate::error::{Result, VfsError};
use crate::types::{Allocate, FileHandle, Seek};
use crate::vfs::Vfs;

/// Bytes that are read and written in one go.
const CHUNK: u64 = 1 << 20;
/// Most bytes that one call copies; the caller goes on.
const MAX_COPY: u64 = 64 << 20;
const BLOCK: u64 = BLOCK_SIZE as u64;

impl Vfs {
    /// Copies up to `len` bytes; answers how many: fewer at the end of the source, after 64 MiB, or when something fails
    /// after the first bytes. The two ranges do not overlap within one file: EINVAL.
    pub async fn copy_range(
        &self,
        (from, from_at): (FileHandle, u64),
        (to, to_at): (FileHandle, u64),
        len: u64,
        kill_privileges: bool,
    ) -> Result<u64> {
        let (source, target) = (self.handles.get(from)?, self.handles.get(to)?);
        if !source.flags.read || !target.flags.write || target.flags.append {
            return Err(VfsError::BADF);
        }
        // As the source ends now: what a copy within one file appends is no source of it.
        let size = self.getattr(source.ino).await?.size;
        let len = len.min(size.saturating_sub(from_at));
        if source.ino == target.ino && from_at < to_at.saturating_add(len) && to_at < from_at.saturating_add(len) {
            return Err(VfsError::INVAL);
        }
        let len = len.min(MAX_COPY);
        let mut copied = 0;
        while copied < len {
            let step = self.copy_step((from, from_at + copied), (to, to_at + copied), len - copied, kill_privileges);
            match step.await {
                Ok(0) => break,
                Ok(bytes) => copied += bytes,
                Err(error) if copied == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(copied)
    }

    /// One piece that is all content or all hole; 0 at the end of the source.
    async fn copy_step(
        &self,
        (from, from_at): (FileHandle, u64),
        (to, to_at): (FileHandle, u64),
        len: u64,
        kill_privileges: bool,
    ) -> Result<u64> {
        let (source, target) = (self.handles.get(from)?, self.handles.get(to)?);
        let size = self.getattr(source.ino).await?.size;
        let Some(left) = size.checked_sub(from_at).filter(|left| *left > 0) else { return Ok(0) };
        let len = len.min(left);
        let hole = match self.seek(from, from_at, Seek::Data).await {
            Ok(data) => data - from_at,
            Err(VfsError::NXIO) => len, // nothing but holes up to the end, or somebody truncates: zeros are right
            Err(error) => return Err(error),
        };
        if hole >= BLOCK.min(len) {
            let len = len.min(hole);
            self.fallocate(to, Allocate::Zero { keep_size: false }, to_at, len, kill_privileges).await?;
            return Ok(len);
        }
        let content_end = self.seek(from, from_at + hole, Seek::Hole).await.unwrap_or(size);
        let mut len = len.min(content_end.saturating_sub(from_at));
        let shared = self.share((&source, from_at), (&target, to_at), len, kill_privileges).await?;
        if shared > 0 {
            if target.flags.sync {
                self.fsync_file(&target.file).await?;
            }
            return Ok(shared);
        }
        if from_at % BLOCK == to_at % BLOCK && from_at % BLOCK > 0 {
            len = len.min(BLOCK - from_at % BLOCK); // then whole blocks
        }
        let len = len.min(CHUNK);
        let mut done = 0;
        for slice in self.read(from, from_at, len as usize).await? {
            self.write(to, to_at + done, &slice, kill_privileges).await?;
            done += slice.len() as u64;
        }
        Ok(done)
    }
}
