//! Directories that many change.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Mounts, names};

/// Names that are there during the whole test.
const ENTRIES: usize = 3_000;
const MANY_ENTRIES: usize = 100_000;
/// Names that come and go meanwhile, of each mount.
const COMING: usize = 300;

/// All mounts make the same names at once: each is made once, as a file or as a directory.
pub fn makers_race_for_one_name(m: &Mounts) {
    let dirs = m.fresh("makers");
    for round in 0..40 {
        let made: Vec<bool> = std::thread::scope(|scope| {
            let makers: Vec<_> = dirs
                .iter()
                .enumerate()
                .map(|(n, dir)| {
                    let path = dir.join(format!("n{round}"));
                    scope.spawn(move || match (round + n) % 2 {
                        0 => OpenOptions::new().write(true).create_new(true).open(path).is_ok(),
                        _ => fs::create_dir(path).is_ok(),
                    })
                })
                .collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|made| **made).count(), 1, "round {round}: {made:?}");
    }
    dirs.iter().for_each(|dir| assert_eq!(names(dir).len(), 40));
}

pub fn a_large_directory_is_listed_while_it_changes(m: &Mounts) {
    listed_while_it_changes(m, ENTRIES);
}

pub fn a_directory_of_many_names_is_listed_while_it_changes(m: &Mounts) {
    listed_while_it_changes(m, MANY_ENTRIES);
}

/// Listings on all mounts while others make and remove names: what is there all the time is listed exactly once, and
/// nothing twice.
fn listed_while_it_changes(m: &Mounts, entries: usize) {
    let dirs = m.fresh("large");
    // One mount after the other, so that 10^5 take no handover each.
    for (n, dir) in dirs.iter().enumerate() {
        for entry in (n..entries).step_by(m.len()) {
            fs::write(dir.join(format!("stays{entry}")), "").unwrap();
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changers: Vec<_> = dirs
            .iter()
            .enumerate()
            .map(|(n, dir)| {
                scope.spawn(move || {
                    for i in 0..COMING {
                        let name = dir.join(format!("comes{n}-{i}"));
                        fs::write(&name, "").unwrap();
                        match i % 3 {
                            0 => fs::remove_file(&name).unwrap(),
                            1 => fs::rename(&name, dir.join(format!("goes{n}-{i}"))).unwrap(),
                            _ => {}
                        }
                    }
                })
            })
            .collect();
        for dir in &dirs {
            let done = &done;
            scope.spawn(move || {
                let mut last = false;
                while !last {
                    last = done.load(Ordering::Relaxed); // the last listing sees the end
                    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
                    for entry in fs::read_dir(dir).unwrap() {
                        *seen.entry(entry.unwrap().file_name().into_string().unwrap()).or_default() += 1;
                    }
                    let stays = seen.keys().filter(|name| name.starts_with("stays")).count();
                    assert_eq!(stays, entries, "a name that was there was not listed");
                    let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).collect();
                    assert!(twice.is_empty(), "listed twice: {twice:?}");
                }
            });
        }
        let results: Vec<_> = changers.into_iter().map(|changer| changer.join()).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    let expected = entries + m.len() * (COMING - COMING.div_ceil(3));
    for dir in &dirs {
        assert_eq!(names(dir).len(), expected);
    }
    fs::remove_dir_all(&dirs[0]).unwrap();
    assert!(!dirs[1].exists());
}
