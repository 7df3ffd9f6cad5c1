//! The secret that the members of one quorum share: HMAC-SHA256 over their datagrams.
//!
//! A tag proves that a member of this installation wrote these bytes, not when. That is enough, because the quorum's rules
//! make a datagram that is sent again harmless: its fsid, sender, receiver, term and round are under the tag, terms are
//! never used twice, and
//! - a vote or pre-vote counts once per sender and term (attempt); of another term it is ignored;
//! - a heartbeat whose round is not greater than the last one proves no life, so a recorded one does not keep a dead
//!   leader's followers waiting;
//! - an answer confirms the round that it names and no later one;
//! - a resignation was said by the leader of that very term, which has resigned;
//! - who asks to leave, and is let go, is named by its run, and does leave.
//!
//! Who sits between members can drop datagrams, which the quorum is built for.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use ring::hmac;
use vellum_wire::quorum::{DatagramAuth, MAX_TAG, NoAuth};

use crate::bundle::Keys;
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

const _: () = assert!(TAG_LEN <= MAX_TAG);

impl DatagramAuth for QuorumKey {
    fn seal(&self, datagram: &mut Vec<u8>) {
        let tag = self.tag(datagram);
        datagram.extend_from_slice(&tag);
    }

    fn open<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        let (covered, tag) = datagram.split_at_checked(datagram.len().checked_sub(TAG_LEN)?)?;
        self.verifies(covered, tag).then_some(covered)
    }
}

/// How the members of a quorum at `addresses` know each other's datagrams: with a node's keys by their tag, without on
/// loopback alone.
pub fn quorum_auth(
    keys: Option<&Keys>,
    addresses: &[SocketAddr],
) -> Result<Arc<dyn DatagramAuth + Send + Sync>, KeysError> {
    match keys {
        Some(keys) => Ok(keys.quorum()?),
        None => match addresses.iter().find(|address| !address.ip().is_loopback()) {
            None => Ok(Arc::new(NoAuth)),
            Some(address) => Err(KeysError::QuorumNeedsKeys { address: *address }),
        },
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

    #[test]
    fn datagrams_are_sealed_and_opened() {
        use vellum_base::{Fsid, Rid, Slot, Term};
        use vellum_wire::quorum::{QuorumDatagram, QuorumKind, QuorumMessage};
        let message = QuorumMessage {
            kind: QuorumKind::Heartbeat,
            term: Term::of_round(3, Slot(1)),
            round: 9,
            rid: Rid(4),
            granted: false,
            written_ago_us: 7,
        };
        let datagram = QuorumDatagram { fsid: Fsid([3; 16]), from: Slot(1), to: Slot(0), message };
        let (ours, theirs) = (QuorumKey::new(&[1; 32]), QuorumKey::new(&[2; 32]));
        let bytes = datagram.encode(&ours);
        assert_eq!(QuorumDatagram::decode(&bytes, &ours), Ok(datagram));
        assert!(QuorumDatagram::decode(&bytes, &theirs).is_err());
        assert!(QuorumDatagram::decode(&datagram.encode(&NoAuth), &ours).is_err(), "without a tag");
        for len in 0..bytes.len() {
            assert!(QuorumDatagram::decode(&bytes[..len], &ours).is_err());
        }
        for bit in 0..8 * bytes.len() {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(QuorumDatagram::decode(&other, &ours).is_err());
        }
    }

    #[test]
    fn a_quorum_beyond_loopback_needs_keys() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(quorum_auth(None, &[at("127.0.0.1:1"), at("[::1]:2")]).is_ok());
        for beyond in ["10.0.0.1:1", "0.0.0.0:1", "[2001:db8::1]:1"] {
            let error = quorum_auth(None, &[at("127.0.0.1:1"), at(beyond)]).err().unwrap();
            assert!(matches!(error, KeysError::QuorumNeedsKeys { .. }), "{error}");
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
