//! Renames that race.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Mounts, names};

/// Files are renamed over one name from all mounts, while it is opened on all: it is always there, and whole.
pub fn a_replaced_name_is_never_missing(m: &Mounts) {
    let dirs = m.fresh("replace");
    let whole = |who: usize, n: usize| format!("{who}-{n}-").repeat(500);
    fs::write(dirs[0].join("target"), whole(0, 0)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = dirs
            .iter()
            .enumerate()
            .map(|(who, dir)| {
                scope.spawn(move || {
                    for n in 0..40 {
                        let temporary = dir.join(format!("tmp{who}"));
                        fs::write(&temporary, whole(who, n)).unwrap();
                        fs::rename(&temporary, dir.join("target")).unwrap();
                    }
                })
            })
            .collect();
        for dir in &dirs {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let text = fs::read_to_string(dir.join("target")).expect("the name is missing");
                    let (head, rest) = text.split_at(text.len() / 500);
                    assert!(text.len() % 500 == 0 && rest == head.repeat(499), "half of a file");
                }
            });
        }
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    dirs.iter().for_each(|dir| assert_eq!(names(dir), ["target"]));
}

/// One name, renamed on all mounts at once to names of their own: exactly one has it then.
pub fn one_of_many_renames_wins(m: &Mounts) {
    let dirs = m.fresh("race");
    for round in 0..30 {
        fs::write(dirs[round % dirs.len()].join("ball"), "x").unwrap();
        let won: Vec<bool> = std::thread::scope(|scope| {
            let runners: Vec<_> = dirs
                .iter()
                .enumerate()
                .map(|(n, dir)| {
                    scope.spawn(move || fs::rename(dir.join("ball"), dir.join(format!("r{round}-{n}"))).is_ok())
                })
                .collect();
            runners.into_iter().map(|runner| runner.join().unwrap()).collect()
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "round {round}: {won:?}");
        for dir in &dirs {
            assert_eq!(names(dir).len(), round + 1, "round {round}");
        }
    }
}

/// Two directories are moved into each other from different mounts, again and again. If both moves were done, both
/// would be gone from the tree.
pub fn directories_never_form_a_circle(m: &Mounts) {
    let dirs = m.fresh("circle");
    for round in 0..25 {
        let (one, other) = (&dirs[round % dirs.len()], &dirs[(round + 1) % dirs.len()]);
        for path in ["a", "a/x", "b", "b/y"] {
            fs::create_dir(one.join(path)).unwrap();
        }
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| fs::rename(one.join("a"), one.join("b/y/a")).is_ok());
            let second = scope.spawn(|| fs::rename(other.join("b"), other.join("a/x/b")).is_ok());
            (first.join().unwrap(), second.join().unwrap())
        });
        assert!(first != second, "round {round}: {first} {second}");
        for dir in &dirs {
            assert_eq!(count(dir), 4, "round {round}: a directory is gone");
        }
        fs::remove_dir_all(other.join(if first { "b" } else { "a" })).unwrap();
        assert!(names(one).is_empty());
    }
}

fn count(dir: &Path) -> usize {
    let inside = fs::read_dir(dir).unwrap();
    inside.map(|entry| 1 + count(&entry.unwrap().path())).sum()
}
