//! The record of an inode without names.

use bytes::Bytes;
use vellum_base::{Bucket, Ino, Key, Rid, Zone};

use super::{ItemError, ItemKind};

/// ```text
///  0       8
///  | rid   | root            integers LE; the second only of clients that are confined to a directory
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Orphan {
    /// Who took the last name away, or made the inode without one.
    pub rid: Rid,
    /// The directory that this client was confined to.
    pub root: Option<Ino>,
}

impl Orphan {
    pub fn key(ino: Ino) -> Key {
        Key::new(Bucket(ino.bucket()), Zone::Orphan, ino.0, ItemKind::Inode as u8, 0, 0, 0)
    }

    pub fn encode(&self) -> Bytes {
        let mut out = self.rid.0.to_le_bytes().to_vec();
        out.extend(self.root.iter().flat_map(|root| root.0.to_le_bytes()));
        out.into()
    }

    pub fn decode(value: &[u8]) -> Result<Orphan, ItemError> {
        let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
        match value.as_chunks::<8>() {
            ([rid], []) => Ok(Orphan { rid: Rid(word(rid)), root: None }),
            ([rid, root], []) if word(root) != 0 => Ok(Orphan { rid: Rid(word(rid)), root: Some(Ino(word(root))) }),
            ([_, _], []) => Err(ItemError::Value { what: "orphan's root", found: 0 }),
            _ => Err(ItemError::Length { what: "orphan", expected: 8, found: value.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_survive_their_encoding_and_others_are_refused() {
        for orphan in [Orphan { rid: Rid(7), root: None }, Orphan { rid: Rid(7), root: Some(Ino(9)) }] {
            assert_eq!(Orphan::decode(&orphan.encode()), Ok(orphan));
        }
        for bad in [&[][..], &[1; 7], &[1; 9], &[1; 24], &[0; 16]] {
            assert!(Orphan::decode(bad).is_err(), "{bad:?}");
        }
    }
}
