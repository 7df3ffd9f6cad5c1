//! Which inodes are below a directory.
//!
//! An inode is led to from the root when one of its names is in the root, or in a directory that is led to. A name counts
//! when all three of its items agree: the backref at the inode, the entry in the listing and the one that is found by name.
//! A client may write each of them where it may write; one that a listing or a lookup does not show, or that says another
//! place than it has, would stay when the name is moved away, and keep inside what everybody else sees outside.
//!
//! What was found is remembered until any name of an inode that is there changes, anywhere ([`Names::generation`]). Only
//! "inside" is remembered: a new inode changes no generation.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{Ino, Key, KeyRange, View};
use vellum_format::{Dirent, ItemKind};
use vellum_wire::WireError;

use crate::backend::Backend;

/// Directories that are looked at for one answer, at most.
const MAX_SEEN: usize = 65_536;
/// Inodes that are remembered to be inside.
const MAX_KNOWN: usize = 65_536;
/// Names that are read at a time.
const PAGE: usize = 256;

/// One inode's names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct NamesOf {
    /// Directories that have an entry for it.
    pub dirs: Vec<Ino>,
    /// It has a backref, true or not.
    pub any: bool,
}

pub(super) trait Names {
    async fn names_of(&self, ino: Ino) -> Result<NamesOf, WireError>;
    /// Grows no later than a read shows another name of an inode that was there.
    fn generation(&self) -> u64;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Led {
    ToRoot,
    Elsewhere,
    /// It has no names, or does not exist.
    Nowhere,
}

#[derive(Default)]
struct Known {
    generation: u64,
    inside: HashSet<Ino>,
}

pub(super) struct Membership<N> {
    names: N,
    root: Ino,
    known: RefCell<Known>,
}

impl<N: Names> Membership<N> {
    pub fn new(names: N, root: Ino) -> Membership<N> {
        Membership { names, root, known: RefCell::default() }
    }

    pub async fn led_to(&self, ino: Ino) -> Result<Led, WireError> {
        // Before the first name is read: what changes from here on, changes it.
        let generation = self.names.generation();
        if self.is_known(ino, generation) {
            return Ok(Led::ToRoot);
        }
        // For each inode on the way up the one below it.
        let mut below = HashMap::from([(ino, None)]);
        let mut todo = VecDeque::from([ino]);
        let mut led = Led::Nowhere;
        while let Some(at) = todo.pop_front() {
            let names = self.names.names_of(at).await?;
            if at == ino && names.any {
                led = Led::Elsewhere;
            }
            for dir in names.dirs {
                if dir == self.root || self.is_known(dir, generation) {
                    self.note(at, &below, generation);
                    return Ok(Led::ToRoot);
                }
                if below.len() < MAX_SEEN && !below.contains_key(&dir) {
                    below.insert(dir, Some(at));
                    todo.push_back(dir);
                }
            }
        }
        Ok(led)
    }

    fn is_known(&self, ino: Ino, generation: u64) -> bool {
        let known = self.known.borrow();
        known.generation == generation && known.inside.contains(&ino)
    }

    /// Remembers the way down from `at`.
    fn note(&self, at: Ino, below: &HashMap<Ino, Option<Ino>>, generation: u64) {
        let mut known = self.known.borrow_mut();
        if known.generation > generation {
            return; // what was read is older than what is known
        }
        if known.generation < generation || known.inside.len() >= MAX_KNOWN {
            known.inside.clear();
            known.generation = generation;
        }
        let mut next = Some(at);
        while let Some(ino) = next {
            known.inside.insert(ino);
            next = below.get(&ino).copied().flatten();
        }
    }
}

/// The names that the engine has.
pub(super) struct Stored(pub Rc<dyn Backend>);

/// Every backref of an inode.
fn backrefs(ino: Ino) -> KeyRange {
    let kind = ItemKind::Backref as u8;
    KeyRange { first: Key::fs(ino, kind, 0, 0, 0), last: Key::fs(ino, kind, u64::MAX, u64::MAX, u8::MAX) }
}

/// What a backref says: a directory, a position in it and a name.
struct Backref {
    dir: Ino,
    pos: u64,
    name: Bytes,
}

impl Backref {
    /// One that is malformed has no name, and is not true.
    fn of((key, value): &(Key, Bytes)) -> Backref {
        let name = Dirent::decode(value).map(|backref| backref.name).unwrap_or_default();
        Backref { dir: Ino(key.second()), pos: key.third(), name }
    }

    /// The items of the same name in the directory.
    fn entries(&self) -> [Key; 2] {
        [Dirent::key_by_pos(self.dir, self.pos), Dirent::key_by_name(self.dir, &self.name, self.pos)]
    }

    fn agrees(&self, ino: Ino, entry: Option<&Bytes>) -> bool {
        let entry = entry.and_then(|value| Dirent::decode(value).ok());
        entry.is_some_and(|entry| (entry.ino, entry.pos, &entry.name) == (ino, self.pos, &self.name))
    }
}

impl Stored {
    async fn read_backrefs(&self, ino: Ino) -> Result<Vec<Backref>, WireError> {
        let mut range = backrefs(ino);
        let mut all = Vec::new();
        loop {
            let (items, next) = self.0.scan(range, PAGE, 1 << 20, View::Applied).await?;
            all.extend(items.iter().map(Backref::of));
            match next {
                Some(next) => range.first = next,
                None => return Ok(all),
            }
        }
    }
}

impl Names for Stored {
    async fn names_of(&self, ino: Ino) -> Result<NamesOf, WireError> {
        let backrefs = self.read_backrefs(ino).await?;
        let mut names = NamesOf { dirs: Vec::new(), any: !backrefs.is_empty() };
        for page in backrefs.chunks(PAGE) {
            let keys = page.iter().flat_map(Backref::entries).collect();
            let entries = self.0.get(keys, View::Applied).await?;
            let both = page.iter().zip(entries.chunks(2));
            let true_ones =
                both.filter(|(backref, entries)| entries.iter().all(|entry| backref.agrees(ino, entry.as_ref())));
            names.dirs.extend(true_ones.map(|(backref, _)| backref.dir));
        }
        Ok(names)
    }

    fn generation(&self) -> u64 {
        self.0.names()
    }
}

impl Membership<Stored> {
    /// Directory and position of every backref, true or not.
    pub async fn backrefs_of(&self, ino: Ino) -> Result<Vec<(Ino, u64)>, WireError> {
        let all = self.names.read_backrefs(ino).await?;
        Ok(all.into_iter().map(|backref| (backref.dir, backref.pos)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Names in memory.
    #[derive(Default)]
    struct Map {
        dirs: RefCell<BTreeMap<Ino, Vec<Ino>>>,
        generation: Cell<u64>,
        looks: Cell<usize>,
    }

    impl Names for &Map {
        async fn names_of(&self, ino: Ino) -> Result<NamesOf, WireError> {
            self.looks.set(self.looks.get() + 1);
            let dirs = self.dirs.borrow().get(&ino).cloned().unwrap_or_default();
            Ok(NamesOf { any: !dirs.is_empty(), dirs })
        }

        fn generation(&self) -> u64 {
            self.generation.get()
        }
    }

    impl Map {
        /// `ino` has names in those directories from now on.
        fn set(&self, ino: u64, dirs: &[u64]) {
            self.dirs.borrow_mut().insert(Ino(ino), dirs.iter().copied().map(Ino).collect());
            self.generation.set(self.generation.get() + 1);
        }
    }

    fn led(members: &Membership<&Map>, ino: u64) -> Led {
        match pin!(members.led_to(Ino(ino))).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(led) => led.unwrap(),
            Poll::Pending => panic!("nothing waits here"),
        }
    }

    /// 1 is the filesystem's root; 10 is the directory, 11 and 12 are below it, 20 is beside it.
    fn map() -> Map {
        let map = Map::default();
        for (ino, dir) in [(10, 1), (11, 10), (12, 11), (20, 1), (21, 20)] {
            map.set(ino, &[dir]);
        }
        map
    }

    #[test]
    fn a_chain_of_names_leads_to_what_is_inside() {
        let map = map();
        let members = Membership::new(&map, Ino(10));
        assert_eq!([11, 12].map(|ino| led(&members, ino)), [Led::ToRoot; 2]);
        assert_eq!([20, 21, 10].map(|ino| led(&members, ino)), [Led::Elsewhere; 3]);
        assert_eq!([1, 99].map(|ino| led(&members, ino)), [Led::Nowhere; 2]);
    }

    #[test]
    fn renames_take_all_that_is_below_along() {
        let map = map();
        let members = Membership::new(&map, Ino(10));
        assert_eq!(led(&members, 12), Led::ToRoot);
        map.set(11, &[20]);
        assert_eq!((led(&members, 11), led(&members, 12)), (Led::Elsewhere, Led::Elsewhere));
        map.set(20, &[10]);
        assert_eq!((led(&members, 12), led(&members, 21)), (Led::ToRoot, Led::ToRoot));
        map.set(10, &[21]); // the directory itself may be anywhere, even below itself
        assert_eq!(led(&members, 12), Led::ToRoot);
    }

    #[test]
    fn one_name_of_a_hard_link_is_enough() {
        let map = map();
        let members = Membership::new(&map, Ino(10));
        map.set(30, &[20, 12]);
        assert_eq!(led(&members, 30), Led::ToRoot);
        map.set(30, &[20]);
        assert_eq!(led(&members, 30), Led::Elsewhere);
        map.set(30, &[]);
        assert_eq!(led(&members, 30), Led::Nowhere);
    }

    #[test]
    fn below_a_removed_directory_nothing_is_inside() {
        let map = map();
        let members = Membership::new(&map, Ino(10));
        assert_eq!(led(&members, 12), Led::ToRoot);
        map.set(11, &[]); // its entry went with the directory
        assert_eq!((led(&members, 11), led(&members, 12)), (Led::Nowhere, Led::Elsewhere));
    }

    #[test]
    fn loops_end() {
        let map = map();
        let members = Membership::new(&map, Ino(10));
        map.set(40, &[41, 42]);
        map.set(41, &[40]);
        map.set(42, &[42]);
        assert_eq!(led(&members, 40), Led::Elsewhere);
        map.set(42, &[41, 12]);
        assert_eq!(led(&members, 41), Led::ToRoot);
    }

    #[test]
    fn what_is_known_costs_no_look_until_a_name_changes() {
        let map = map();
        let members = Membership::new(&map, Ino(10));
        led(&members, 12);
        let looks = map.looks.get();
        assert_eq!((led(&members, 12), led(&members, 11), map.looks.get()), (Led::ToRoot, Led::ToRoot, looks));
        map.set(21, &[20]);
        assert_eq!(led(&members, 12), Led::ToRoot);
        assert_eq!(map.looks.get(), looks + 2);
        // What is outside is looked at each time: a new name of a new inode changes no generation.
        map.dirs.borrow_mut().insert(Ino(50), vec![Ino(51)]);
        assert_eq!(led(&members, 50), Led::Elsewhere);
        map.dirs.borrow_mut().insert(Ino(51), vec![Ino(12)]);
        assert_eq!(led(&members, 50), Led::ToRoot);
    }
}
