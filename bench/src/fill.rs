//! Many small files at once, made through the library: what walks, recoveries and space are measured on.

use std::ops::Range;

use anyhow::Result;
use vellum_base::Ino;
use vellum_vfs::{Caller, OpenFlags, Vfs};

/// So many files lie in one directory.
pub const FILES_PER_DIR: usize = 1000;

/// Name of the directory of file `n`, below the root.
pub fn directory(n: usize) -> String {
    format!("d{}", n / FILES_PER_DIR)
}

/// Name of file `n` in its directory.
pub fn name(n: usize) -> String {
    format!("f{n}")
}

/// Makes these files below `root`, each with this content, and waits until they are durable. The range begins with a
/// directory.
pub async fn fill(vfs: &Vfs, caller: Caller, root: Ino, files: Range<usize>, content: &[u8]) -> Result<()> {
    let flags = OpenFlags { write: true, ..OpenFlags::default() };
    let mut dir = root;
    for n in files {
        if n % FILES_PER_DIR == 0 {
            dir = vfs.mkdir(caller, root, directory(n).as_bytes(), 0o755).await?.ino;
        }
        let (_, handle) = vfs.create(caller, dir, name(n).as_bytes(), 0o644, flags).await?;
        if !content.is_empty() {
            vfs.write(handle, 0, content, false).await?;
        }
        vfs.release(handle).await?;
    }
    Ok(vfs.syncfs().await?)
}
