//! Paths of an inode, from its link backrefs: no directory is walked.

use std::collections::HashSet;

use bytes::Bytes;
use thiserror::Error;
use vellum_base::{Ino, KeyRange, View};
use vellum_client::{Client, ClientError};
use vellum_format::{Dirent, ItemError, ItemKind};

/// Backrefs asked for at a time.
const PAGE: usize = 1024;
/// Directories above an inode, at most: deeper paths cannot be named by any system call.
const MAX_DEPTH: usize = 4096;

#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum PathsError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("a backref of inode {ino}: {error}")]
    Item { ino: Ino, error: ItemError },
    #[error("inode {0} is its own ancestor: run `vellum check`")]
    Loop(Ino),
}

/// One name of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub dir: Ino,
    pub name: Bytes,
}

/// The entries that refer to an inode. Empty for the root, for orphans, and for inodes that do not exist.
pub async fn ino_entries(client: &Client, ino: Ino) -> Result<Vec<Entry>, PathsError> {
    let kind = ItemKind::Backref as u8;
    let mut range = KeyRange {
        first: vellum_base::Key::fs(ino, kind, 0, 0, 0),
        last: vellum_base::Key::fs(ino, kind, u64::MAX, u64::MAX, u8::MAX),
    };
    let mut entries = Vec::new();
    loop {
        let page = client.scan_at(range, PAGE, View::Durable).await?;
        for (key, value) in &page.items {
            let backref = Dirent::decode(value).map_err(|error| PathsError::Item { ino, error })?;
            entries.push(Entry { dir: Ino(key.second()), name: backref.name });
        }
        match page.next {
            Some(next) => range.first = next,
            None => return Ok(entries),
        }
    }
}

/// Every path of an inode, absolute within what the client sees of the filesystem. Not atomic against renames: a path may be put together from
/// names of different moments.
pub async fn ino_paths(client: &Client, ino: Ino) -> Result<Vec<Vec<u8>>, PathsError> {
    if ino == client.root() {
        return Ok(vec![b"/".to_vec()]);
    }
    let mut paths = Vec::new();
    for entry in ino_entries(client, ino).await? {
        if let Some(mut path) = dir_path(client, entry.dir).await? {
            path.push(b'/');
            path.extend_from_slice(&entry.name);
            paths.push(path);
        }
    }
    Ok(paths)
}

/// The one path of a directory, without a slash at its end; `None` when it is gone.
async fn dir_path(client: &Client, dir: Ino) -> Result<Option<Vec<u8>>, PathsError> {
    let (mut names, mut seen, mut at) = (Vec::new(), HashSet::new(), dir);
    while at != client.root() {
        if !seen.insert(at) || names.len() > MAX_DEPTH {
            return Err(PathsError::Loop(dir));
        }
        let Some(entry) = ino_entries(client, at).await?.into_iter().next() else { return Ok(None) };
        names.push(entry.name);
        at = entry.dir;
    }
    let mut path = Vec::new();
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Ok(Some(path))
}
