//! The secret that the members of one quorum share: HMAC-SHA256 over their datagrams.
//!
//! A tag proves that a member of this installation wrote these bytes, not when. That is enough: a datagram names its
//! filesystem, sender and term, and the quorum's rules make a repeated one harmless. A repeated vote or heartbeat of an
//! older term is ignored; a repeated vote of this term is counted once per sender; a repeated heartbeat of this term says
//! what was true when it was sent, and an answer to it names its round, so that an old answer confirms no new round. What
//! replay can do is to prolong a follower's patience with a leader of the current term that has just died, for as long as
//! an attacker who sits between the members goes on; who can do that can as well drop their datagrams.

use std::path::Path;

use ring::hmac;

use crate::error::KeysError;
use crate::files;

/// Bytes of a tag.
pub const TAG_LEN: usize = 32;
const KEY_LEN: usize = 32;

pub struct QuorumKey(hmac::Key);

impl QuorumKey {
    pub fn new(secret: &[u8; KEY_LEN]) -> QuorumKey {
        QuorumKey(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// A new secret as the text of its file.
    pub(crate) fn generate() -> Result<String, KeysError> {
        use ring::rand::{SecureRandom, SystemRandom};
        let mut secret = [0u8; KEY_LEN];
        SystemRandom::new().fill(&mut secret).map_err(|_| KeysError::Issue("no randomness".into()))?;
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(hex + "\n")
    }

    pub fn load(path: &Path) -> Result<QuorumKey, KeysError> {
        let text = files::read_secret(path)?;
        let mut secret = [0u8; KEY_LEN];
        let text = text.trim_end();
        if text.len() != 2 * KEY_LEN || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(KeysError::malformed(path, format!("a quorum key is {} hex digits", 2 * KEY_LEN)));
        }
        for (byte, digits) in secret.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).map_err(|_| KeysError::malformed(path, "not hex digits"))?;
        }
        Ok(QuorumKey::new(&secret))
    }

    pub fn tag(&self, bytes: &[u8]) -> [u8; TAG_LEN] {
        let mut out = [0u8; TAG_LEN];
        out.copy_from_slice(hmac::sign(&self.0, bytes).as_ref());
        out
    }

    /// In constant time.
    #[must_use]
    pub fn verifies(&self, bytes: &[u8], tag: &[u8]) -> bool {
        hmac::verify(&self.0, bytes, tag).is_ok()
    }
}

impl std::fmt::Debug for QuorumKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QuorumKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_of_its_key_and_its_bytes() {
        let (ours, theirs) = (QuorumKey::new(&[1; 32]), QuorumKey::new(&[2; 32]));
        let tag = ours.tag(b"vote");
        assert!(ours.verifies(b"vote", &tag));
        assert!(!ours.verifies(b"vot", &tag) && !theirs.verifies(b"vote", &tag));
        for bit in 0..8 * TAG_LEN {
            let mut other = tag;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!ours.verifies(b"vote", &other));
        }
        for len in 0..TAG_LEN {
            assert!(!ours.verifies(b"vote", &tag[..len]), "a tag cut to {len} bytes");
        }
    }

    /// RFC 4231, test case 2 has a short key; this is the same with a key padded as HMAC pads it.
    #[test]
    fn it_is_hmac_sha256() {
        let mut key = [0u8; 32];
        key[..4].copy_from_slice(b"Jefe");
        let tag = QuorumKey::new(&key).tag(b"what do ya want for nothing?");
        let hex: String = tag.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn key_files_are_read_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quorum.key");
        files::create_secret(&path, &QuorumKey::generate().unwrap()).unwrap();
        let key = QuorumKey::load(&path).unwrap();
        assert!(key.verifies(b"x", &QuorumKey::load(&path).unwrap().tag(b"x")));
        for bad in ["", "00", &"0g".repeat(32), &"+1".repeat(32), &"\u{e4}".repeat(32)] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(QuorumKey::load(&path), Err(KeysError::Malformed { .. })), "{bad}");
        }
    }
}
