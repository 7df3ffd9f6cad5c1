//! Waiting until what was written is durable.

use std::rc::Rc;

use crate::error::Result;
use crate::file::File;
use crate::types::FileHandle;
use crate::vfs::Vfs;

impl Vfs {
    /// Close of a descriptor: reports a failed write once. Nothing is waited for.
    pub async fn flush(&self, handle: FileHandle) -> Result<()> {
        let handle = self.handles.get(handle)?;
        handle.file.error_since(&handle.seen_error)
    }

    /// Everything of the file, and what was changed before it, is durable on return.
    pub async fn fsync(&self, handle: FileHandle) -> Result<()> {
        let handle = self.handles.get(handle)?;
        let synced = self.fsync_file(&handle.file).await;
        handle.file.error_since(&handle.seen_error)?;
        synced
    }

    pub(crate) async fn fsync_file(&self, file: &Rc<File>) -> Result<()> {
        self.clean(std::slice::from_ref(file)).await;
        Ok(self.client.sync().await?)
    }

    /// Everything of this gateway is durable on return.
    pub async fn syncfs(&self) -> Result<()> {
        let files: Vec<_> = self.files.all().into_iter().filter(|f| f.buffer.borrow().pending.is_some()).collect();
        self.clean(&files).await;
        Ok(self.client.sync().await?)
    }

    /// What the files have in memory now is committed on return; what failed is noted in them.
    pub(crate) async fn clean(&self, files: &[Rc<File>]) {
        self.write_back(files, None).await;
        for file in files {
            // A truncation may have held it back.
            while file.buffer.borrow().holds > 0 && !file.buffer.borrow().dirty.is_empty() {
                file.changed.until(|| (file.buffer.borrow().holds == 0).then_some(())).await;
                self.write_back(std::slice::from_ref(file), None).await;
            }
            self.settle(file, None).await;
        }
    }
}
