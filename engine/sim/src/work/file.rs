//! The files that simulated clients write: an inode, text in an item, and blocks.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use vellum_base::{Ino, Key, Zone};
use vellum_format::{Extent, Inode, ItemKind};

/// Marks these files: others are the gateways'.
const PROJECT: u64 = 0x51f1e;

/// All that is compared of a file. `stamp` is another one in every version.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct File {
    pub stamp: u64,
    pub text: Option<Bytes>,
    /// Logical block to the checksum of its content.
    pub blocks: BTreeMap<u64, u32>,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text.as_ref().map_or(0, Bytes::len);
        write!(f, "version {} ({text} bytes of text, {} blocks)", self.stamp, self.blocks.len())
    }
}

impl File {
    pub fn inode(&self) -> Inode {
        // No names lead to these files, and the checker counts them.
        let project = PROJECT;
        let online_blocks = self.blocks.len() as u64;
        Inode { mode: 0o100644, nlink: 0, data_version: self.stamp, online_blocks, project, ..Inode::default() }
    }
}

pub fn text_key(ino: Ino) -> Key {
    Key::fs(ino, ItemKind::Inline as u8, 0, 0, 0)
}

/// The file that the items of one inode make; none when there are none.
///
/// Errors: items that make no file.
pub fn decode(items: &[(Key, Bytes)]) -> Result<Option<File>, String> {
    let mut file = File::default();
    let (mut is_there, mut online_blocks) = (false, 0);
    for (key, value) in items {
        match ItemKind::from_u8(key.kind()) {
            Some(ItemKind::Inode) => {
                let inode = Inode::decode(value).map_err(|e| e.to_string())?;
                (file.stamp, online_blocks, is_there) = (inode.data_version, inode.online_blocks, true);
            }
            Some(ItemKind::Inline) => file.text = Some(value.clone()),
            Some(ItemKind::Extent) => {
                let extent = Extent::decode(value).map_err(|e| e.to_string())?;
                let first = Extent::first_block(key, extent.header.len_blocks).ok_or("an extent before the file")?;
                for (i, checksum) in extent.checksums.iter().enumerate() {
                    if file.blocks.insert(first + i as u64, *checksum).is_some() {
                        return Err(format!("block {} is in two extents", first + i as u64));
                    }
                }
            }
            _ => return Err(format!("a foreign item {key:?}")),
        }
    }
    if items.is_empty() {
        return Ok(None);
    }
    if !is_there || online_blocks != file.blocks.len() as u64 {
        return Err(format!("half a file: inode {is_there}, {online_blocks} blocks expected, {file:?}"));
    }
    Ok(Some(file))
}

/// All files among the items of a filesystem.
pub fn decode_all(items: &[(Key, Bytes)]) -> Result<BTreeMap<Ino, File>, String> {
    let mut by_inode: BTreeMap<Ino, Vec<(Key, Bytes)>> = BTreeMap::new();
    for (key, value) in items.iter().filter(|(key, _)| key.zone() == Some(Zone::Fs)) {
        by_inode.entry(Ino(key.first())).or_default().push((*key, value.clone()));
    }
    let mut files = BTreeMap::new();
    let is_ours = |(key, value): &(Key, Bytes)| {
        *key == Inode::key(Ino(key.first())) && Inode::decode(value).is_ok_and(|inode| inode.project == PROJECT)
    };
    by_inode.retain(|_, items| items.iter().any(is_ours));
    for (ino, items) in by_inode {
        if let Some(file) = decode(&items).map_err(|e| format!("{ino}: {e}"))? {
            files.insert(ino, file);
        }
    }
    Ok(files)
}
