//! Key files as they may lie in a directory: torn, mixed up, of others.
//!
//! An input is the files' texts with zeros between them, in a fixed order.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use vellum_keys::{Authority, Keys, KeysError, Role, Subject, TAG_LEN, Wish};

use crate::samples;

pub fn bundles() -> Vec<Vec<u8>> {
    samples::key_files().drain(..2).collect()
}

pub fn authorities() -> Vec<Vec<u8>> {
    samples::key_files().drain(2..).collect()
}

thread_local! {
    /// In memory where that is possible: what is issued is synced.
    static DIR: tempfile::TempDir =
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
}

/// Calls `f` with a directory that has the files of `names` which the input has, as secret as they must be.
fn with_files<R>(bytes: &[u8], names: &[&str], f: impl FnOnce(&Path) -> R) -> R {
    DIR.with(|dir| {
        let dir = dir.path().join("keys");
        let _ = fs::remove_dir_all(&dir);
        for (name, text) in names.iter().zip(bytes.split(|byte| *byte == 0)) {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&dir)).expect("a directory");
            fs::write(&path, text).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a file of ours");
        }
        f(&dir)
    })
}

/// What is said about a secret that cannot be read does not hold it.
fn is_discreet(error: &KeysError, secrets: &[&[u8]]) {
    let text = error.to_string();
    assert!(!text.is_empty());
    for line in secrets.iter().flat_map(|secret| secret.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        assert!(line.len() < 32 || !text.as_bytes().windows(line.len()).any(|part| part == line), "{text}");
    }
}

pub fn bundle(bytes: &[u8]) -> bool {
    let files: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
    with_files(bytes, &["ca.crt", "own.crt", "own.key", "quorum.key"], |dir| {
        let keys = match Keys::load(dir) {
            Ok(keys) => keys,
            Err(error) => {
                is_discreet(&error, files.get(2..).unwrap_or_default());
                return false;
            }
        };
        let subject = keys.subject();
        assert_eq!(subject.to_string().parse::<Subject>().ok().as_ref(), Some(subject));
        let node = subject.role == Role::Node;
        assert_eq!(
            (keys.server().is_ok(), keys.quorum().is_ok()),
            (node, node),
            "who is a node has all that a node needs"
        );
        let _ = (keys.client(), keys.validity());
        if let Ok(quorum) = keys.quorum() {
            let tag = quorum.tag(bytes);
            assert!(tag.len() == TAG_LEN && quorum.verifies(bytes, &tag));
        }
        true
    })
}

/// Accepted: it lists its bundles and makes one that can be loaded.
pub fn authority(bytes: &[u8]) -> bool {
    let files: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
    let names = ["ca.crt", "ca.key", "quorum.key", "nodes/n0/own.crt", "clients/gw/own.crt"];
    with_files(bytes, &names, |dir| {
        let secrets = files.get(1..3).unwrap_or_default();
        let failed = |error: KeysError| is_discreet(&error, secrets);
        let Ok(authority) = Authority::open(dir).map_err(failed) else { return false };
        let listed = authority.list().map_err(failed);
        for issued in listed.iter().flatten() {
            assert_eq!(issued.subject.to_string().parse::<Subject>().ok().as_ref(), Some(&issued.subject));
        }
        let subject = "vellum:node/n1".parse::<Subject>().expect("a subject");
        let wish = Wish { subject, addresses: vec!["::1".into()], valid: Duration::from_secs(86_400), renew: false };
        let Ok(made) = authority.issue(&wish).map_err(failed) else { return false };
        let loaded = Keys::load(&made).map_err(failed);
        if let Ok(keys) = &loaded {
            assert_eq!(keys.subject(), &wish.subject);
        }
        listed.is_ok() && loaded.is_ok()
    })
}
