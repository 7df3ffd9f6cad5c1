//! Writers that share a file.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use super::Mounts;

const WRITERS_PER_MOUNT: usize = 2;
const RECORDS: usize = 60;

/// The `n`-th record of a writer: its length crosses blocks at all kinds of places.
fn record(writer: usize, n: usize) -> Vec<u8> {
    let len = 20 + (writer * 977 + n * 1409) % 6000;
    let mut record = format!("<{writer:02}:{n:04}:{len:04}").into_bytes();
    record.resize(len - 1, b'a' + (n % 26) as u8);
    record.push(b'>');
    record
}

/// Appenders on all mounts: every record is there once, whole, and each writer's in its order.
pub fn appends_are_never_lost_or_mixed(m: &Mounts) {
    let dirs = m.fresh("append");
    let writers = dirs.len() * WRITERS_PER_MOUNT;
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let path = dirs[writer % dirs.len()].join("log");
            scope.spawn(move || {
                let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
                for n in 0..RECORDS {
                    let record = record(writer, n);
                    let written = log.write(&record).unwrap();
                    assert_eq!(written, record.len(), "a short append");
                }
            });
        }
    });
    let text = fs::read(dirs[0].join("log")).unwrap();
    for dir in &dirs {
        assert!(fs::read(dir.join("log")).unwrap() == text);
    }
    let mut next: BTreeMap<usize, usize> = BTreeMap::new();
    let mut rest = &text[..];
    while !rest.is_empty() {
        let number = |range: std::ops::Range<usize>| -> usize {
            let digits = rest.get(range).and_then(|d| std::str::from_utf8(d).ok());
            digits
                .and_then(|d| d.parse().ok())
                .unwrap_or_else(|| panic!("no record begins at {}", text.len() - rest.len()))
        };
        let (writer, n, len) = (number(1..3), number(4..8), number(9..13));
        assert!(rest.get(..len) == Some(&record(writer, n)[..]), "record {n} of writer {writer} is torn");
        let expected = next.entry(writer).or_default();
        assert_eq!(*expected, n, "a record of writer {writer} is lost, or came twice");
        *expected += 1;
        rest = &rest[len..];
    }
    assert_eq!(next.len(), writers);
    assert!(next.values().all(|n| *n == RECORDS));
}

/// Stripes of one file, narrower than a block, each written by one mount again and again: nobody writes over his
/// neighbours' bytes with what they were before.
pub fn writers_of_one_block_keep_their_bytes(m: &Mounts) {
    const STRIPE: u64 = 100;
    const STRIPES: u64 = 200;
    const ROUNDS: u8 = 4;
    let dirs = m.fresh("stripes");
    let mounts = dirs.len() as u64;
    std::thread::scope(|scope| {
        for (n, dir) in dirs.iter().enumerate() {
            scope.spawn(move || {
                let path = dir.join("f");
                let f = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
                for round in 1..=ROUNDS {
                    for stripe in (0..STRIPES).filter(|stripe| stripe % mounts == n as u64) {
                        f.write_all_at(&[round * 10 + n as u8; STRIPE as usize], stripe * STRIPE).unwrap();
                    }
                }
            });
        }
    });
    for dir in &dirs {
        let found = fs::read(dir.join("f")).unwrap();
        assert_eq!(found.len() as u64, STRIPES * STRIPE);
        for (stripe, bytes) in found.chunks(STRIPE as usize).enumerate() {
            let expected = ROUNDS * 10 + (stripe as u64 % mounts) as u8;
            assert!(bytes.iter().all(|b| *b == expected), "stripe {stripe} has {:?}, not {expected}", &bytes[..4]);
        }
    }
}
