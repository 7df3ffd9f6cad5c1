//! What archive agents ask: what changed since a sequence, which paths an inode has, what is durable.
//!
//! Everything here reads the durable state and takes no locks: an agent never holds up an application.

mod paths;
mod walk;

use thiserror::Error;
use vellum_base::{Epoch, Ino, View};
use vellum_client::{Client, ClientError};
use vellum_format::{Inode, ItemError};

pub use paths::{Entry, PathsError, ino_entries, ino_paths};
pub use walk::Walk;

#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum ArchiveError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("inode {ino}: {error}")]
    Item { ino: Ino, error: ItemError },
    #[error("there is no inode {0}")]
    NoInode(Ino),
}

/// The inode as it is durable.
pub async fn inode(client: &Client, ino: Ino) -> Result<Inode, ArchiveError> {
    let values = client.get_at(vec![Inode::key(ino)], View::Durable).await?;
    match values.into_iter().next().flatten() {
        Some(value) => Inode::decode(&value).map_err(|error| ArchiveError::Item { ino, error }),
        None => Err(ArchiveError::NoInode(ino)),
    }
}

/// The last durable epoch: a change whose sequence is at or below it survives any crash.
pub fn committed_seq(client: &Client) -> Epoch {
    client.durable_epoch()
}
