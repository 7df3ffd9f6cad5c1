//! What applications may rely on when they use one filesystem through several mounts: what one sees, the others see.
//!
//! Every check works on any list of mounts of one filesystem, in a directory of its own; it knows nothing of engines,
//! gateways and nodes. So the same checks run on one engine with three mounts, and on a cluster while its leaders die.
//! `VELLUM_COHERENCE_MOUNTS=/a:/b:/c` lets them run on mounts that somebody else made.
#![allow(dead_code, reason = "each test binary uses its own part of it")]

pub mod appends;
pub mod content;
pub mod directories;
pub mod locks;
pub mod maps;
pub mod opens;
pub mod posix_lock;
pub mod renames;
pub mod views;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// How long something may take that is done in the background: it includes a failover.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long is looked whether something that must not happen happens.
pub const A_WHILE: Duration = Duration::from_millis(300);

/// Mounts of one filesystem; at least two.
#[derive(Clone)]
pub struct Mounts {
    roots: Vec<PathBuf>,
}

pub type Check = fn(&Mounts);

/// Every check by name, the quick ones first.
pub const ALL: &[(&str, Check)] = &[
    ("what one makes the others see", views::what_one_makes_the_others_see),
    ("open files see what others write", views::open_files_see_what_others_write),
    ("names that were missed appear", views::names_that_were_missed_appear),
    ("appends are never lost or mixed", appends::appends_are_never_lost_or_mixed),
    ("writers of one block keep their bytes", appends::writers_of_one_block_keep_their_bytes),
    ("a replaced name is never missing", renames::a_replaced_name_is_never_missing),
    ("one of many renames wins", renames::one_of_many_renames_wins),
    ("directories never form a circle", renames::directories_never_form_a_circle),
    ("holes and copies are seen", content::holes_and_copies_are_seen),
    ("access control lists are seen", content::access_control_lists_are_seen),
    ("mapped files follow", maps::mapped_files_follow),
    ("locks exclude", locks::locks_exclude),
    ("ranges are told apart", locks::ranges_are_told_apart),
    ("waiters are woken and interrupted", locks::waiters_are_woken_and_interrupted),
    ("a circle of waiters is refused", locks::a_circle_of_waiters_is_refused),
    ("locks end with their files", locks::locks_end_with_their_files),
    ("locks end with their process", locks::locks_end_with_their_process),
    ("locks make a counter count", locks::locks_make_a_counter_count),
    ("unlinked files live until they are closed", opens::unlinked_files_live_until_they_are_closed),
    ("files replaced by a rename live until they are closed", opens::replaced_files_live_until_they_are_closed),
    ("two racing deleters free a file once", opens::racing_deleters),
    ("makers race for one name", directories::makers_race_for_one_name),
    ("a large directory is listed while it changes", directories::a_large_directory_is_listed_while_it_changes),
];

impl Mounts {
    pub fn new(roots: Vec<PathBuf>) -> Mounts {
        assert!(roots.len() >= 2, "coherence needs two mounts");
        Mounts { roots }
    }

    /// Mounts that somebody else made.
    pub fn from_environment() -> Option<Mounts> {
        let list = std::env::var("VELLUM_COHERENCE_MOUNTS").ok()?;
        Some(Mounts::new(list.split(':').map(PathBuf::from).collect()))
    }

    pub fn len(&self) -> usize {
        self.roots.len()
    }

    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// A new directory, as each mount sees it. Made by one of them, and seen by all.
    pub fn fresh(&self, name: &str) -> Vec<PathBuf> {
        let name = format!("{name}-{}", std::process::id());
        let made = self.roots[name.len() % self.roots.len()].join(&name);
        let _ = fs::remove_dir_all(&made);
        fs::create_dir(&made).unwrap();
        let all: Vec<PathBuf> = self.roots.iter().map(|root| root.join(&name)).collect();
        all.iter().for_each(|dir| assert!(dir.is_dir(), "{} is not seen", dir.display()));
        all
    }
}

/// Every ordered pair of two different ones.
pub fn pairs(dirs: &[PathBuf]) -> impl Iterator<Item = (&Path, &Path)> {
    let two = move |a: usize| (0..dirs.len()).filter(move |b| *b != a).map(move |b| (a, b));
    (0..dirs.len()).flat_map(two).map(|(a, b)| (dirs[a].as_path(), dirs[b].as_path()))
}

pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    vellum_base::prng::Prng::new(seed).fill(&mut bytes);
    bytes
}

pub fn fails<T>(result: io::Result<T>, errno: Errno) {
    match result {
        Ok(_) => panic!("it succeeded, {errno:?} was expected"),
        Err(e) => assert_eq!(e.raw_os_error(), Some(errno.raw_os_error()), "{e}, {errno:?} was expected"),
    }
}

/// Polls until it is so.
pub fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
