//! The listing that READDIR and READDIRPLUS are answered with.

use zerocopy::IntoBytes;

use crate::abi::{DIRENT_ALIGN, Dirent, EntryOut};
use crate::reply::entry_out;
use crate::types::{Entry, Payload};

/// Collects directory entries up to the size that the kernel asked for. Invariant: `bytes.len() <= limit`, and every
/// record in it is whole and padded to 8 bytes.
#[derive(Debug)]
pub struct Dirents {
    bytes: Vec<u8>,
    limit: usize,
    plus: bool,
}

impl Dirents {
    pub fn new(limit: usize, plus: bool) -> Dirents {
        Dirents { bytes: Vec::new(), limit, plus }
    }

    /// True for READDIRPLUS: entries want attributes.
    pub fn plus(&self) -> bool {
        self.plus
    }

    /// Room that is left, in bytes.
    pub fn room(&self) -> usize {
        self.limit - self.bytes.len()
    }

    /// How many entries with names of `name_len` bytes may still fit: to size a page of a scan.
    pub fn room_for(&self, name_len: usize) -> usize {
        self.room() / self.record_len(name_len)
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds an entry without attributes (also in READDIRPLUS, where the kernel then looks the name up when it needs it
    /// and counts no lookup). `next` is the position behind it; `kind` a DT_* value. False: no room, and nothing was added.
    #[must_use]
    pub fn push(&mut self, ino: u64, next: u64, kind: u32, name: &[u8]) -> bool {
        self.push_record(self.plus.then(EntryOut::default).as_ref(), Dirent { ino, off: next, namelen: 0, kind }, name)
    }

    /// Adds an entry with its attributes: the kernel counts one lookup for it (not for "." and "..", for which plain
    /// [`Dirents::push`] must be used). Without READDIRPLUS the attributes are left out.
    #[must_use]
    pub fn push_entry(&mut self, entry: &Entry, next: u64, name: &[u8]) -> bool {
        let kind = (entry.attr.mode & libc::S_IFMT) >> 12;
        let dirent = Dirent { ino: entry.attr.ino, off: next, namelen: 0, kind };
        self.push_record(self.plus.then(|| entry_out(entry)).as_ref(), dirent, name)
    }

    fn record_len(&self, name_len: usize) -> usize {
        let fixed = size_of::<Dirent>() + if self.plus { size_of::<EntryOut>() } else { 0 };
        (fixed + name_len).next_multiple_of(DIRENT_ALIGN)
    }

    fn push_record(&mut self, entry: Option<&EntryOut>, mut dirent: Dirent, name: &[u8]) -> bool {
        let len = self.record_len(name.len());
        if len > self.room() || name.is_empty() {
            return false;
        }
        dirent.namelen = name.len() as u32;
        let end = self.bytes.len() + len;
        if let Some(entry) = entry {
            self.bytes.extend_from_slice(entry.as_bytes());
        }
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }

    pub fn into_payload(self) -> Payload {
        Payload::Bytes(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Attr;

    #[test]
    fn records_are_padded_and_never_pass_the_limit() {
        let mut list = Dirents::new(64 + 7, false);
        assert!(list.push(2, 1, 8, b"a"));
        assert!(list.push(3, 2, 8, b"12345678"));
        assert_eq!(list.room(), 7);
        assert!(!list.push(4, 3, 8, b"x"));
        let Payload::Bytes(bytes) = list.into_payload() else { panic!("bytes") };
        assert_eq!(bytes.len(), 64);
        assert_eq!(bytes[24..32], *b"a\0\0\0\0\0\0\0");
        assert_eq!(bytes[56..64], *b"12345678");
    }

    #[test]
    fn plus_entries_carry_attributes_or_a_zero_node() {
        let mut list = Dirents::new(4096, true);
        let attr = Attr { ino: 5, mode: libc::S_IFDIR | 0o755, ..Attr::default() };
        assert!(list.push_entry(&Entry { nodeid: 9, attr, ..Entry::default() }, 1, b"dir"));
        assert!(list.push(6, 2, 8, b"file"));
        let Payload::Bytes(bytes) = list.into_payload() else { panic!("bytes") };
        assert_eq!(bytes.len(), 160 * 2);
        assert_eq!(bytes[..8], 9u64.to_ne_bytes(), "what the kernel calls it");
        assert_eq!(bytes[128..136], 5u64.to_ne_bytes(), "what applications see");
        assert_eq!(bytes[128 + 20..128 + 24], 4u32.to_ne_bytes(), "DT_DIR");
        assert_eq!(bytes[160..168], 0u64.to_ne_bytes(), "no lookup is counted");
        assert_eq!(bytes[160 + 128..160 + 136], 6u64.to_ne_bytes());
    }
}
