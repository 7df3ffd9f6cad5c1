//! From the path in a certificate to the directory's inode.

use std::rc::Rc;

use vellum_base::{Ino, KeyRange, View};
use vellum_format::{Dirent, FileKind};
use vellum_keys::Subtree;
use vellum_wire::{Refusal, WireError};

use crate::backend::Backend;

/// Bytes of a path in a refusal, which is no longer than a greeting (256).
const SHOWN_BYTES: usize = 200;

/// Names that share a hash are rare; more of them are read in further pages.
const PAGE: usize = 8;

/// The directory, as names are now. Symbolic links are not followed.
pub(crate) async fn find(backend: &Rc<dyn Backend>, path: &Subtree) -> Result<Result<Ino, Refusal>, WireError> {
    let missing = |exists| Ok(Err(Refusal::NoDirectory { path: shown(path), exists }));
    let mut at = Ino::ROOT;
    for name in path.names() {
        match entry(backend, at, name).await? {
            Some(entry) if entry.kind == FileKind::Directory => at = entry.ino,
            Some(_) => return missing(true),
            None => return missing(false),
        }
    }
    Ok(Ok(at))
}

/// For people: a long path without its end.
fn shown(path: &Subtree) -> String {
    let text = path.to_text();
    if text.len() <= SHOWN_BYTES {
        return text;
    }
    let end = (0..=SHOWN_BYTES - 3).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

async fn entry(backend: &Rc<dyn Backend>, dir: Ino, name: &[u8]) -> Result<Option<Dirent>, WireError> {
    let mut range =
        KeyRange { first: Dirent::key_by_name(dir, name, 0), last: Dirent::key_by_name(dir, name, u64::MAX) };
    loop {
        let (items, next) = backend.scan(range, PAGE, 64 << 10, View::Applied).await?;
        let found = items.iter().filter_map(|(_, value)| Dirent::decode(value).ok()).find(|entry| entry.name == name);
        match (found, next) {
            (None, Some(next)) => range.first = next,
            (found, _) => return Ok(found),
        }
    }
}
