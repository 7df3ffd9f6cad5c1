//! An authority and its bundles on disk.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use vellum_keys::{Authority, Keys, KeysError, Role, Subject, Wish};

const DAY: u64 = 86_400;

fn wish(subject: &str) -> Wish {
    let subject: Subject = subject.parse().unwrap();
    let addresses = match subject.role {
        Role::Node => vec!["127.0.0.1".into(), "node.example".into(), "::1".into()],
        Role::Client => Vec::new(),
    };
    Wish { subject, addresses, valid: Duration::from_secs(30 * DAY), renew: false }
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: PathBuf) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn bundles_hold_what_their_role_needs_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("authority");
    let authority = Authority::init(&at).unwrap();
    let node = authority.issue(&wish("vellum:node/a")).unwrap();
    let client = authority.issue(&wish("vellum:client/gw?read-only")).unwrap();
    assert_eq!(files(&at), ["ca.crt", "ca.key", "clients", "nodes", "quorum.key"]);
    assert_eq!(files(&node), ["ca.crt", "own.crt", "own.key", "quorum.key"]);
    assert_eq!(files(&client), ["ca.crt", "own.crt", "own.key"], "a client gets no quorum key");
    for secret in [at.join("ca.key"), at.join("quorum.key"), node.join("own.key"), node.join("quorum.key")] {
        assert_eq!(mode(secret), 0o600);
    }
    assert_eq!((mode(at.clone()), mode(client.clone())), (0o700, 0o700));

    let keys = Keys::load(&node).unwrap();
    assert_eq!(keys.subject().to_string(), "vellum:node/a");
    assert!(keys.server().is_ok() && keys.quorum().is_ok());
    let keys = Keys::load(&client).unwrap();
    assert!(keys.subject().read_only && keys.quorum().is_err());
    assert!(matches!(keys.server(), Err(KeysError::NotANode { .. })), "a client serves nobody");

    let confined = authority.issue(&wish("vellum:client/lab?path=/a%20b/c")).unwrap();
    let path = Keys::load(&confined).unwrap().subject().path.clone().unwrap();
    assert_eq!(path.names().collect::<Vec<_>>(), [b"a b".as_slice(), b"c"]);

    let listed: Vec<String> = authority.list().unwrap().iter().map(|issued| issued.subject.to_string()).collect();
    assert_eq!(listed, ["vellum:node/a", "vellum:client/gw?read-only", "vellum:client/lab?path=/a%20b/c"]);
}

#[test]
fn validity_is_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::init(&dir.path().join("a")).unwrap();
    authority.issue(&wish("vellum:client/gw")).unwrap();
    let validity = authority.list().unwrap()[0].validity;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!((now + 30 * DAY as i64 - validity.not_after).abs() < 3600);
    assert!(validity.not_before < now);
}

#[test]
fn nothing_is_overwritten_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("a");
    let authority = Authority::init(&at).unwrap();
    assert!(matches!(Authority::init(&at), Err(KeysError::Exists { .. })));
    let bundle = authority.issue(&wish("vellum:client/gw")).unwrap();
    let before = std::fs::read(bundle.join("own.crt")).unwrap();
    assert!(matches!(authority.issue(&wish("vellum:client/gw")), Err(KeysError::Exists { .. })));
    assert_eq!(std::fs::read(bundle.join("own.crt")).unwrap(), before);
    authority.issue(&Wish { renew: true, ..wish("vellum:client/gw") }).unwrap();
    assert_ne!(std::fs::read(bundle.join("own.crt")).unwrap(), before);
    assert_eq!(files(&at.join("clients")), ["gw"], "no draft is left");
    authority.issue(&Wish { renew: true, ..wish("vellum:client/other") }).unwrap();
    Keys::load(&bundle).unwrap();
}

#[test]
fn keys_that_others_may_read_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::init(&dir.path().join("a")).unwrap();
    let node = authority.issue(&wish("vellum:node/a")).unwrap();
    for file in ["own.key", "quorum.key"] {
        std::fs::set_permissions(node.join(file), PermissionsExt::from_mode(0o640)).unwrap();
        let error = Keys::load(&node).unwrap_err();
        assert!(matches!(error, KeysError::Exposed { mode: 0o640, .. }), "{error}");
        std::fs::set_permissions(node.join(file), PermissionsExt::from_mode(0o600)).unwrap();
    }
    Keys::load(&node).unwrap();
}

#[test]
fn broken_bundles_say_which_file_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::init(&dir.path().join("a")).unwrap();
    for file in ["ca.crt", "own.crt", "own.key", "quorum.key"] {
        let node = authority.issue(&Wish { renew: true, ..wish("vellum:node/a") }).unwrap();
        std::fs::write(node.join(file), "-----BEGIN NONSENSE-----\n").unwrap();
        let error = Keys::load(&node).unwrap_err();
        assert!(matches!(&error, KeysError::Malformed { path, .. } if path.ends_with(file)), "{file}: {error}");
    }
    // Somebody else's private key.
    let a = authority.issue(&Wish { renew: true, ..wish("vellum:node/a") }).unwrap();
    let b = authority.issue(&wish("vellum:node/b")).unwrap();
    std::fs::copy(b.join("own.key"), a.join("own.key")).unwrap();
    assert!(matches!(Keys::load(&a), Err(KeysError::Tls(_))));
    assert!(matches!(Keys::load(&dir.path().join("none")), Err(KeysError::Io { .. })));
}

/// What reads PEM quotes what it does not understand, which of a torn key is the key; errors go to logs and screens.
#[test]
fn an_error_does_not_quote_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("a");
    let authority = Authority::init(&at).unwrap();
    let node = authority.issue(&wish("vellum:node/a")).unwrap();
    for file in [node.join("own.key"), at.join("ca.key")] {
        let text = std::fs::read_to_string(&file).unwrap();
        let secret = text.lines().nth(1).unwrap();
        std::fs::write(&file, text.replace("-----END PRIVATE KEY", &format!("-----END {secret}"))).unwrap();
        let error = match file.ends_with("own.key") {
            true => Keys::load(&node).unwrap_err(),
            false => authority.issue(&wish("vellum:node/b")).unwrap_err(),
        };
        let text = error.to_string();
        assert!(text.contains("no private key") && !text.contains(secret), "{text}");
    }
}

/// A device says that it has no length, and does not end.
#[test]
fn a_key_file_without_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::init(&dir.path().join("a")).unwrap();
    let node = authority.issue(&wish("vellum:node/a")).unwrap();
    std::fs::remove_file(node.join("own.crt")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", node.join("own.crt")).unwrap();
    let error = Keys::load(&node).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn addresses_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::init(&dir.path().join("a")).unwrap();
    for bad in ["", "10.0.0.1:7000", "a b", "tcp:10.0.0.1", "\u{e4}.example"] {
        let wish = Wish { addresses: vec![bad.into()], ..wish("vellum:node/a") };
        assert!(matches!(authority.issue(&wish), Err(KeysError::Address { .. })), "{bad}");
    }
    assert!(authority.list().unwrap().is_empty());
}

/// A renewal is picked up by who has the keys loaded; files that are half replaced, or somebody else's, are not.
#[test]
fn renewed_keys_are_used_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::init(&dir.path().join("a")).unwrap();
    let at = authority.issue(&wish("vellum:client/gw")).unwrap();
    let keys = Keys::load(&at).unwrap();
    let (before, config) = (keys.validity(), keys.client());
    assert!(std::sync::Arc::ptr_eq(&config, &keys.client()), "read once while nothing changes");

    let longer = Wish { valid: Duration::from_secs(60 * DAY), renew: true, ..wish("vellum:client/gw") };
    authority.issue(&longer).unwrap();
    assert!(keys.validity().not_after > before.not_after);
    assert!(!std::sync::Arc::ptr_eq(&config, &keys.client()));

    let renewed = keys.client();
    let other = authority.issue(&wish("vellum:client/other")).unwrap();
    std::fs::copy(other.join("own.crt"), at.join("own.crt")).unwrap();
    assert!(std::sync::Arc::ptr_eq(&renewed, &keys.client()), "its key is not there");
    std::fs::copy(other.join("own.key"), at.join("own.key")).unwrap();
    assert!(std::sync::Arc::ptr_eq(&renewed, &keys.client()), "another's");
    authority.issue(&longer).unwrap();
    assert!(!std::sync::Arc::ptr_eq(&renewed, &keys.client()), "and mended");
}
