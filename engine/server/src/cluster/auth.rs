//! The quorum's datagrams under the secret that the nodes of an installation share (RFC 2104, RFC 4231): the tag is
//! HMAC-SHA256 of all before it. Why a repeated datagram does no harm is said at [`QuorumKey`].

use std::sync::Arc;

use vellum_keys::{QuorumKey, TAG_LEN};
use vellum_wire::{DatagramAuth, MAX_TAG, NoAuth};

const _: () = assert!(TAG_LEN <= MAX_TAG);

struct Secret(Arc<QuorumKey>);

impl DatagramAuth for Secret {
    fn seal(&self, datagram: &mut Vec<u8>) {
        let tag = self.0.tag(datagram);
        datagram.extend_from_slice(&tag);
    }

    fn open<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        let (covered, tag) = datagram.split_at_checked(datagram.len().checked_sub(TAG_LEN)?)?;
        self.0.verifies(covered, tag).then_some(covered)
    }
}

/// Without a secret there is no tag: for sockets on loopback, and simulations.
pub(super) fn auth_of(secret: Option<Arc<QuorumKey>>) -> Arc<dyn DatagramAuth + Send + Sync> {
    match secret {
        Some(secret) => Arc::new(Secret(secret)),
        None => Arc::new(NoAuth),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_without_the_secret_is_nobodys() {
        let auth = |secret| auth_of(Some(Arc::new(QuorumKey::new(&[secret; 32]))));
        let mut datagram = b"vote".to_vec();
        auth(1).seal(&mut datagram);
        assert_eq!(auth(1).open(&datagram), Some(&b"vote"[..]));
        assert_eq!(auth(2).open(&datagram), None);
        assert_eq!(auth(1).open(b"vote"), None, "shorter than a tag");
        datagram[0] ^= 1;
        assert_eq!(auth(1).open(&datagram), None);
    }
}
