//! An ordered map for a memtable: keys are added and never removed.
//!
//! ```text
//!  top:    | first key | first key | ..          a list, as long as it comes to be
//!              v
//!  branch: | first key | first key | ..          up to 64 leaves
//!              v
//!  leaf:   heads  | u64 | u64 | ..               up to 64, sorted; 8 bytes of each key
//!          slots  | u32 | u32 | ..               where key and value are
//!              v
//!  entries: | key, value | key, value | ..       in the order they came, never moved
//! ```
//! All searches compare integers in one array; a key is looked at only where they are equal, and once at the end to be
//! sure. The head of a key in a leaf are the 8 bytes after those that all keys of the leaf share: items of one inode have
//! up to 18 bytes in common. Above, it is the first 16 bytes. An insertion moves 12 bytes for each entry behind it, not the
//! entry.

use vellum_base::Key;

const LEAF: usize = 64;
/// Heads in a cache line.
const LINE: usize = 8;
const BRANCH: usize = 64;
const CHUNK: usize = 256;
/// Bytes that a key's share of leaf, branch and entry comes to, beside the value: leaves are two thirds full.
pub const KEY_CHARGE: usize = 56;

fn head(key: &Key) -> u128 {
    let (first, second, ..) = key.words();
    u128::from(first) << 64 | u128::from(second)
}

/// Number of leading bytes that two keys share.
fn common(a: &Key, b: &Key) -> usize {
    let (a, b) = (a.words(), b.words());
    let differ = [a.0 ^ b.0, a.1 ^ b.1, a.2 ^ b.2, u64::from(a.3 ^ b.3) << 32];
    match differ.iter().position(|word| *word != 0) {
        Some(at) => at * 8 + differ[at].leading_zeros() as usize / 8,
        None => Key::LEN,
    }
}

/// Things by the first key that each is for.
struct Directory<T> {
    heads: Vec<u128>,
    firsts: Vec<Key>,
    below: Vec<T>,
}

impl<T> Directory<T> {
    /// The first thing is for all keys that are smaller than the second's.
    fn new(first: T) -> Directory<T> {
        Directory { heads: vec![0], firsts: vec![Key::MIN], below: vec![first] }
    }

    /// Which one `key` belongs to.
    fn floor(&self, key: &Key) -> usize {
        let head = head(key);
        let less = self.heads.partition_point(|other| *other < head);
        let equal = self.heads[less..].iter().take_while(|other| **other == head).count();
        let not_above = self.firsts[less..less + equal].partition_point(|first| first <= key);
        (less + not_above).saturating_sub(1)
    }

    fn insert(&mut self, at: usize, first: Key, thing: T) {
        self.heads.insert(at, head(&first));
        self.firsts.insert(at, first);
        self.below.insert(at, thing);
    }

    /// The upper half, with its first key.
    fn split(&mut self) -> (Key, Directory<T>) {
        let at = self.below.len() / 2;
        let (heads, firsts) = (self.heads.split_off(at), self.firsts.split_off(at));
        (firsts[0], Directory { heads, firsts, below: self.below.split_off(at) })
    }
}

struct Leaf {
    len: usize,
    /// Leading bytes that all keys share with `like`.
    shared: usize,
    like: Key,
    /// Those that are not in use are the greatest number.
    heads: [u64; LEAF],
    slots: [u32; LEAF],
}

/// The 8 bytes of `key` from byte `at` on, as if zeros came after it.
fn head_from(key: &Key, at: usize) -> u64 {
    let mut padded = [0u8; Key::LEN + 8];
    padded[..Key::LEN].copy_from_slice(&key.0);
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&padded[at..at + 8]);
    u64::from_be_bytes(bytes)
}

impl Leaf {
    fn new(like: Key) -> Box<Leaf> {
        Box::new(Leaf { len: 0, shared: Key::LEN, like, heads: [u64::MAX; LEAF], slots: [0; LEAF] })
    }

    fn insert(&mut self, at: usize, head: u64, slot: u32) {
        self.heads.copy_within(at..self.len, at + 1);
        self.slots.copy_within(at..self.len, at + 1);
        (self.heads[at], self.slots[at]) = (head, slot);
        self.len += 1;
    }

    /// Heads that are smaller. Counted without branches, so that the memory for all comparisons is on its way at once: a
    /// leaf is seldom in a near cache, and a binary search would wait for one line after the other.
    fn less(&self, head: u64) -> usize {
        let below = |heads: &[u64]| heads.iter().map(|other| usize::from(*other < head)).sum::<usize>();
        let (lines, _) = self.heads.as_chunks::<LINE>();
        let whole = lines.iter().map(|line| usize::from(line[LINE - 1] < head)).sum::<usize>();
        whole * LINE + lines.get(whole).map_or(0, |line| below(line))
    }

    /// Where `key` is, or the place where it would be.
    fn find<V>(&self, key: &Key, entries: &Entries<V>) -> Result<usize, usize> {
        if common(&self.like, key) < self.shared {
            return Err(if *key < self.like { 0 } else { self.len });
        }
        let head = head_from(key, self.shared);
        let less = self.less(head);
        let equal = self.heads[less..self.len].iter().take_while(|other| **other == head).count();
        let place = self.slots[less..less + equal].binary_search_by(|slot| entries.at(*slot).0.cmp(key));
        place.map(|i| less + i).map_err(|i| less + i)
    }

    /// Makes heads anew so that they tell `key` from the others, too.
    fn admit<V>(&mut self, key: &Key, entries: &Entries<V>) {
        if self.len == 0 {
            (self.like, self.shared) = (*key, Key::LEN);
        }
        let shared = common(&self.like, key);
        if shared < self.shared {
            self.share(shared, entries);
        }
    }

    fn share<V>(&mut self, shared: usize, entries: &Entries<V>) {
        self.shared = shared;
        for i in 0..self.len {
            self.heads[i] = head_from(&entries.at(self.slots[i]).0, shared);
        }
    }

    /// Takes what is from `at` on into a new leaf; there is something, and something before it.
    fn split<V>(&mut self, at: usize, entries: &Entries<V>) -> Box<Leaf> {
        let mut upper = Leaf::new(Key::MIN);
        upper.len = self.len - at;
        upper.slots[..upper.len].copy_from_slice(&self.slots[at..self.len]);
        self.len = at;
        self.heads[at..].fill(u64::MAX);
        self.reshare(entries);
        upper.reshare(entries);
        upper
    }

    fn reshare<V>(&mut self, entries: &Entries<V>) {
        self.like = entries.at(self.slots[0]).0;
        self.share(common(&self.like, &entries.at(self.slots[self.len - 1]).0), entries);
    }
}

/// Keys and values in chunks, so that more of them never moves those that are there.
struct Entries<V>(Vec<Vec<(Key, V)>>);

impl<V> Entries<V> {
    fn at(&self, slot: u32) -> &(Key, V) {
        &self.0[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    fn push(&mut self, key: Key, value: V) -> u32 {
        if self.0.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.0.push(Vec::with_capacity(CHUNK));
        }
        let index = self.0.len() - 1;
        let chunk = &mut self.0[index];
        chunk.push((key, value));
        (index * CHUNK + chunk.len() - 1) as u32
    }
}

pub struct KeyMap<V> {
    top: Directory<Directory<Box<Leaf>>>,
    entries: Entries<V>,
}

impl<V> Default for KeyMap<V> {
    fn default() -> Self {
        KeyMap { top: Directory::new(Directory::new(Leaf::new(Key::MIN))), entries: Entries(Vec::new()) }
    }
}

impl<V> KeyMap<V> {
    pub fn is_empty(&self) -> bool {
        self.entries.0.is_empty()
    }

    fn leaf_of(&self, key: &Key) -> (usize, usize, &Leaf) {
        let branch = self.top.floor(key);
        let leaf = self.top.below[branch].floor(key);
        (branch, leaf, &self.top.below[branch].below[leaf])
    }

    pub fn get(&self, key: &Key) -> Option<&V> {
        let (.., leaf) = self.leaf_of(key);
        let at = leaf.find(key, &self.entries).ok()?;
        Some(&self.entries.at(leaf.slots[at]).1)
    }

    /// Adds the key with `value`. When it is there already nothing is changed, and its value is answered.
    pub fn insert(&mut self, key: Key, value: V) -> Option<&mut V> {
        let (branch, at_leaf, leaf) = self.leaf_of(&key);
        match leaf.find(&key, &self.entries) {
            Ok(at) => {
                let slot = leaf.slots[at] as usize;
                Some(&mut self.entries.0[slot / CHUNK][slot % CHUNK].1)
            }
            Err(at) => {
                let slot = self.entries.push(key, value);
                self.add((branch, at_leaf, at), &key, slot);
                None
            }
        }
    }

    fn add(&mut self, (branch, at_leaf, mut at): (usize, usize, usize), key: &Key, slot: u32) {
        let leaves = &mut self.top.below[branch];
        let mut leaf = &mut leaves.below[at_leaf];
        if leaf.len == LEAF {
            // Keys that ascend leave full leaves behind.
            let middle = if at == LEAF { LEAF - 1 } else { LEAF / 2 };
            let upper = leaf.split(middle, &self.entries);
            let upper_first = upper.like;
            leaves.insert(at_leaf + 1, upper_first, upper);
            let above = at > middle;
            at -= if above { middle } else { 0 };
            leaf = &mut leaves.below[at_leaf + usize::from(above)];
        }
        leaf.admit(key, &self.entries);
        leaf.insert(at, head_from(key, leaf.shared), slot);
        if leaves.below.len() > BRANCH {
            let (first, upper) = leaves.split();
            self.top.insert(branch + 1, first, upper);
        }
    }

    /// Keys of at least `key`, in order.
    pub fn from(&self, key: &Key) -> Iter<'_, V> {
        let (branch, at_leaf, leaf) = self.leaf_of(key);
        let at = leaf.find(key, &self.entries).unwrap_or_else(|place| place);
        Iter { map: self, branch, at_leaf, leaf, at }
    }
}

/// Keys in order, with their values.
pub struct Iter<'a, V> {
    map: &'a KeyMap<V>,
    branch: usize,
    at_leaf: usize,
    leaf: &'a Leaf,
    at: usize,
}

impl<'a, V> Iterator for Iter<'a, V> {
    type Item = (&'a Key, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        while self.at == self.leaf.len {
            let branches = &self.map.top.below;
            let here = (self.branch, self.at_leaf + 1);
            let (branch, at_leaf) = if here.1 < branches[here.0].below.len() { here } else { (here.0 + 1, 0) };
            self.leaf = branches.get(branch)?.below.get(at_leaf)?;
            (self.branch, self.at_leaf, self.at) = (branch, at_leaf, 0);
        }
        let (key, value) = self.map.entries.at(self.leaf.slots[self.at]);
        self.at += 1;
        Some((key, value))
    }
}
