//! The memtable and its map of keys against `BTreeMap`.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use vellum_base::{Epoch, Ino, Key, KeyRange};

use crate::lsm::key_map::KeyMap;
use crate::lsm::memtable::{Found, Memtable};

/// Keys as filesystems have them (few inodes with much in common, names by hash, entries by number) and as nobody has.
fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        (0..400u64, 0..3u8, 0..2u64).prop_map(|(ino, kind, second)| Key::fs(Ino(ino), kind, second, 0, 0)),
        (0..3u64, any::<u64>()).prop_map(|(ino, hash)| Key::fs(Ino(ino), 2, hash, 0, 0)),
        (0..3000u64).prop_map(|number| Key::fs(Ino(7), 3, number, 9, 0)),
        (0..9u64, 0..9u8).prop_map(|(third, fourth)| Key::fs(Ino(7), 4, 0, third, fourth)),
        any::<[u8; Key::LEN]>().prop_map(Key),
        Just(Key::MIN),
        Just(Key::MAX),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_key_map_says_what_a_btree_map_says(
        keys in prop::collection::vec(any_key(), 0..9000),
        asked in prop::collection::vec(any_key(), 50),
        ascending in any::<bool>(),
    ) {
        let mut keys = keys;
        if ascending {
            keys.sort_unstable();
        }
        let (mut map, mut model) = (KeyMap::default(), BTreeMap::new());
        for (i, key) in keys.iter().enumerate() {
            let there = map.insert(*key, i);
            prop_assert_eq!(there.as_deref(), model.get(key), "{:?}", key);
            match there {
                Some(value) => {
                    *value = i;
                    model.insert(*key, i);
                }
                None => _ = model.insert(*key, i),
            }
        }
        prop_assert_eq!(map.is_empty(), model.is_empty());
        prop_assert!(map.from(&Key::MIN).eq(model.iter()));
        for key in asked.iter().chain(keys.iter().step_by(17)) {
            prop_assert_eq!(map.get(key), model.get(key));
            prop_assert!(map.from(key).take(70).eq(model.range(*key..).take(70)));
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u64, u64, Option<Vec<u8>>),
    DeleteRange(u64, u64, u64),
    /// Readers are at this many epochs before the newest, or later.
    Readers(u64),
}

const KEYS: u64 = 60;

fn key(i: u64) -> Key {
    Key::fs(Ino(i / 4), (i % 4) as u8, 0, 0, 0)
}

/// Epochs are given by how far they are behind the newest.
fn any_step() -> impl Strategy<Value = Step> {
    let value = prop::option::weighted(0.8, prop::collection::vec(any::<u8>(), 0..40));
    prop_oneof![
        12 => (0..KEYS, 0..2u64, value).prop_map(|(key, back, value)| Step::Put(key, back, value)),
        2 => (0..KEYS, 0..8u64, 0..2u64).prop_map(|(first, len, back)| Step::DeleteRange(first, len, back)),
        2 => (2..6u64).prop_map(Step::Readers),
    ]
}

/// All writes of a key, in their order.
#[derive(Default)]
struct Model(BTreeMap<u64, Vec<(Epoch, Found)>>);

impl Model {
    fn write(&mut self, key: u64, epoch: Epoch, found: Found) {
        self.0.entry(key).or_default().push((epoch, found));
    }

    fn get(&self, key: u64, after: Epoch, at: Epoch) -> Option<Found> {
        let writes = self.0.get(&key)?.iter().filter(|(epoch, _)| (after..=at).contains(epoch));
        writes.max_by_key(|(epoch, _)| *epoch).map(|(_, found)| found.clone()) // of equal ones the last
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_memtable_says_what_was_written_to_readers_of_every_epoch(steps in prop::collection::vec(any_step(), 1..300)) {
        let (mut table, mut model) = (Memtable::default(), Model::default());
        let mut oldest = Epoch(1);
        let mut newest = 10;
        for step in &steps {
            newest += u64::from(matches!(step, Step::Readers(_)));
            match step {
                Step::Put(i, back, value) => {
                    let epoch = Epoch(newest - back);
                    table.put(epoch, key(*i), value.as_deref(), || oldest);
                    let found = value.clone().map_or(Found::Deleted, |v| Found::Value(Bytes::from(v)));
                    model.write(*i, epoch, found);
                }
                Step::DeleteRange(first, len, back) => {
                    let (epoch, last) = (Epoch(newest - back), (first + len).min(KEYS - 1));
                    table.delete_range(epoch, KeyRange { first: key(*first), last: key(last) }, oldest);
                    (*first..=last).for_each(|i| model.write(i, epoch, Found::Deleted));
                }
                Step::Readers(back) => oldest = oldest.max(Epoch(newest - back)),
            }
        }
        let later = table.split_after(Epoch(newest - 1));
        let middle = KeyRange { first: key(20), last: key(41) };
        let part = table.part(&middle);
        for at in (oldest.0..=newest).map(Epoch) {
            for i in 0..KEYS {
                let expected = model.get(i, Epoch::NONE, at);
                prop_assert_eq!(&table.get(&key(i), at), &expected, "key {} at {}", i, at);
                let inside = if middle.contains(&key(i)) { expected } else { None };
                prop_assert_eq!(&part.get(&key(i), at), &inside, "key {} at {} of a part", i, at);
                let after = model.get(i, Epoch(newest), at);
                prop_assert_eq!(&later.get(&key(i), at), &after, "key {} at {} after a freeze", i, at);
            }
        }
        let keys: Vec<Key> = table.from(&Key::MIN).map(|(key, _)| *key).collect();
        prop_assert!(keys.is_sorted_by(|a, b| a < b));
    }
}
