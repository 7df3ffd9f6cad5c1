//! Values of items, as clients send them and segments keep them.

use std::fmt::Debug;

use bytes::Bytes;
use vellum_base::{BlockAddr, Ino, Rid};
use vellum_format::item::xattr;
use vellum_format::system::{LastBatch, LastScrub, decode_counter, encode_counter};
use vellum_format::{Bitmap, Dirent, Extent, ExtentHeader, FileKind, Inode, ItemError, Orphan, Owners};

/// What is accepted says the same when it is written again.
fn there_and_back<T: PartialEq + Debug>(
    bytes: &[u8],
    decode: impl Fn(&Bytes) -> Result<T, ItemError>,
    encode: impl Fn(&T) -> Bytes,
) -> bool {
    let Ok(value) = decode(&Bytes::copy_from_slice(bytes)) else { return false };
    assert_eq!(decode(&encode(&value)).as_ref(), Ok(&value));
    true
}

pub fn inodes() -> Vec<Vec<u8>> {
    [0o100644, 0o040755, 0o120777]
        .map(|mode| Inode { mode, nlink: 1, size: 5, next_pos: 3, ..Inode::default() }.encode().to_vec())
        .to_vec()
}

pub fn inode(bytes: &[u8]) -> bool {
    there_and_back(bytes, |value| Inode::decode(value), Inode::encode)
}

pub fn dirents() -> Vec<Vec<u8>> {
    let name = |name: &'static [u8]| Bytes::from_static(name);
    [name(b"a"), name(&[b'x'; 255])]
        .map(|name| Dirent { ino: Ino(77), pos: 1 << 40, kind: FileKind::Regular, name }.encode().to_vec())
        .to_vec()
}

pub fn dirent(bytes: &[u8]) -> bool {
    there_and_back(bytes, Dirent::decode, Dirent::encode)
}

pub fn extents() -> Vec<Vec<u8>> {
    let extent = |start, len_blocks, offline, checksums: usize| {
        let header = ExtentHeader { start: BlockAddr(start), len_blocks, offline };
        Extent { header, checksums: vec![7; checksums] }.encode().to_vec()
    };
    vec![extent(5, 3, false, 3), extent(0, 1 << 20, true, 0)]
}

pub fn extent(bytes: &[u8]) -> bool {
    if let Ok(header) = Extent::decode_header(bytes) {
        // Those of clients may be beyond all addresses, and their end is a number all the same.
        let end = header.start.0.checked_add(u64::from(header.len_blocks));
        assert!(header.offline || end.is_some(), "its blocks have an end");
    }
    there_and_back(bytes, |value| Extent::decode(value), Extent::encode)
}

pub fn orphans() -> Vec<Vec<u8>> {
    [None, Some(Ino(9))].map(|root| Orphan { rid: Rid(7), root }.encode().to_vec()).to_vec()
}

pub fn orphan(bytes: &[u8]) -> bool {
    there_and_back(bytes, |value| Orphan::decode(value), Orphan::encode)
}

pub fn bitmaps() -> Vec<Vec<u8>> {
    let mut bitmap = Bitmap::default();
    [0, 63, 64, 2047].into_iter().for_each(|bit| bitmap.set(bit, true));
    vec![bitmap.encode().to_vec()]
}

pub fn bitmap(bytes: &[u8]) -> bool {
    there_and_back(bytes, |value| Bitmap::decode(value), Bitmap::encode)
}

pub fn counts_of_owners() -> Vec<Vec<u8>> {
    let mut owners = Owners::default();
    [(0, 256), (9, 3), (11, 245)].into_iter().for_each(|(first, len)| owners.add(first, len, 1));
    vec![owners.encode().to_vec()]
}

pub fn owners(bytes: &[u8]) -> bool {
    there_and_back(bytes, |value| Owners::decode(value), Owners::encode)
}

pub fn xattrs() -> Vec<Vec<u8>> {
    [0, 5, 3000].map(|len| xattr::encode(b"user.a", &vec![3; len])[0].to_vec()).to_vec()
}

pub fn first_part(bytes: &[u8]) -> bool {
    let Ok(first) = xattr::decode_first(&Bytes::copy_from_slice(bytes)) else { return false };
    assert!(first.parts() <= xattr::MAX_XATTR.div_ceil(1024) && first.value.len() <= first.value_len);
    true
}

/// Records of the engine's own: a client's last batch, the last scrub, a counter.
pub fn system_values() -> Vec<Vec<u8>> {
    vec![LastBatch::default().encode().to_vec(), LastScrub::default().encode().to_vec(), encode_counter(5).to_vec()]
}

pub fn system_value(bytes: &[u8]) -> bool {
    there_and_back(bytes, |value| LastBatch::decode(value), LastBatch::encode)
        | there_and_back(bytes, |value| LastScrub::decode(value), LastScrub::encode)
        | there_and_back(bytes, |value| decode_counter(value), |value| encode_counter(*value))
}
