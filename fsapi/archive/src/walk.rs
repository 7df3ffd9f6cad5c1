//! Walks of an index: entries since a sequence, oldest first, at a cost of the changes and not of the population.

use std::rc::Rc;
use std::time::Duration;

use vellum_base::{Epoch, Ino};
use vellum_client::Client;
use vellum_format::IndexKind;

use crate::ArchiveError;

/// Entries asked for at a time.
const PAGE: usize = 4096;

/// A resumable walk. An entry is (sequence, inode); an inode that changes again later appears again, with its later
/// sequence, and no longer with the earlier one. Nothing ever appears at or below [`Walk::through`] afterwards.
pub struct Walk {
    client: Rc<Client>,
    index: IndexKind,
    next: Option<(u64, Ino)>,
    to_seq: u64,
    through: Epoch,
}

impl Walk {
    /// From the entry `from` (0 and [`Ino::NONE`]: from the beginning) to the sequence `to_seq`, both included.
    pub fn new(client: Rc<Client>, index: IndexKind, from: (u64, Ino), to_seq: u64) -> Walk {
        Walk { client, index, next: Some(from), to_seq, through: Epoch::NONE }
    }

    /// The next entries, in order; empty when the walk has come to the last durable one (or to its end).
    pub async fn page(&mut self) -> Result<Vec<(u64, Ino)>, ArchiveError> {
        while let Some(from) = self.next {
            let page = self.client.walk(self.index, from, self.to_seq, PAGE).await?;
            self.through = page.through;
            let is_last = page.next.is_none();
            self.next = page.next.or_else(|| {
                // Everything durable was seen: what comes later has a greater sequence than the durable epoch.
                let resume = page.through.0.saturating_add(1).max(from.0);
                (resume <= self.to_seq).then_some((resume, Ino::NONE))
            });
            // A page of a confined client may be empty on the way: what others changed was taken out.
            if is_last || !page.entries.is_empty() {
                return Ok(page.entries);
            }
        }
        Ok(Vec::new())
    }

    /// The durable epoch of the last page: everything at or below it was seen.
    pub fn through(&self) -> Epoch {
        self.through
    }

    /// True when nothing can come any more.
    pub fn is_done(&self) -> bool {
        self.next.is_none()
    }

    /// As [`Walk::page`], but waits for new entries instead of answering with none; empty only at the walk's end.
    pub async fn follow(&mut self, poll: Duration) -> Result<Vec<(u64, Ino)>, ArchiveError> {
        loop {
            let seen = self.through;
            let entries = self.page().await?;
            if !entries.is_empty() || self.is_done() {
                return Ok(entries);
            }
            if self.through == seen {
                vellum_rt::sleep(poll).await;
            }
        }
    }
}
