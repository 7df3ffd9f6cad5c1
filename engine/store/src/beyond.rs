//! How a reader of everything goes on behind items that cannot be read.

use vellum_base::{Bucket, Ino, Key, KeyRange, Zone};

/// Most items of a page.
const PAGE_ITEMS: usize = 1024;

/// How a reader goes on after a page that failed: with a smaller one from the same place, down to a single item, so that
/// what stands before the bad block is read; then some inodes further, four times as many with each failure in a row, so that a
/// lost segment costs few steps and a lost block few files. Elsewhere than among inodes: at the next zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beyond {
    items: usize,
    stride: u64,
}

/// A bad block may stand in the way of all later inodes of its bucket: 2^56 of them.
const STRIDE_GROWTH: u64 = 4;

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The same place again, with [`Beyond::items`].
    Again,
    /// What is before this is left out.
    From(Key),
    /// Nothing is left.
    End,
}

impl Default for Beyond {
    fn default() -> Beyond {
        Beyond { items: PAGE_ITEMS, stride: 1 }
    }
}

impl Beyond {
    /// Items that the next page may have.
    pub fn items(&self) -> usize {
        self.items
    }

    pub fn succeeded(&mut self) {
        *self = Beyond { items: (self.items * 2).min(PAGE_ITEMS), stride: 1 };
    }

    pub fn failed(&mut self, from: &Key, last: &Key) -> Next {
        if self.items > 1 {
            self.items = (self.items / 8).max(1);
            return Next::Again;
        }
        let by_inode = from.first().checked_add(self.stride).map(|ino| Key::fs(Ino(ino), 0, 0, 0, 0));
        let by_inode = by_inode.filter(|next| from.zone() == Some(Zone::Fs) && next.bucket() == from.bucket());
        self.stride = self.stride.saturating_mul(STRIDE_GROWTH);
        by_inode.or_else(|| next_zone(from)).filter(|next| next <= last).map_or(Next::End, Next::From)
    }
}

fn next_zone(from: &Key) -> Option<Key> {
    let zone = from.0[1] + 1;
    if let Some(zone) = Zone::from_u8(zone) {
        return Some(Key::new(from.bucket(), zone, 0, 0, 0, 0, 0));
    }
    let bucket = Bucket(from.bucket().0.checked_add(1)?);
    Some(KeyRange::of_buckets(bucket, bucket).first)
}

/// What was left out, for people.
pub(crate) fn left_out(from: &Key, next: Option<&Key>) -> String {
    match (from.zone(), next) {
        (Some(Zone::Fs), Some(next)) if next.zone() == Some(Zone::Fs) && next.bucket() == from.bucket() => {
            format!("inodes {} to {}", from.first(), next.first() - 1)
        }
        (_, Some(next)) => format!("items from {from:?} up to {next:?}"),
        (_, None) => format!("items from {from:?} on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_and_leaves_out_little_where_little_is_bad() {
        let mut beyond = Beyond::default();
        let from = Key::fs(Ino(7), 3, 0, 0, 0);
        while beyond.failed(&from, &Key::MAX) == Next::Again {
            assert!(beyond.items() < PAGE_ITEMS);
        }
        assert_eq!((beyond.items(), beyond.stride), (1, 4), "one item alone failed");
        let first = Key::fs(Ino(8), 0, 0, 0, 0);
        assert_eq!(left_out(&from, Some(&first)), "inodes 7 to 7");
        assert_eq!(beyond.failed(&first, &Key::MAX), Next::From(Key::fs(Ino(12), 0, 0, 0, 0)));
        beyond.succeeded();
        assert_eq!((beyond.items(), beyond.stride), (2, 1));
        let (mut at, mut steps) = (Key::MIN, 0);
        loop {
            match beyond.failed(&at, &Key::MAX) {
                Next::Again => {}
                Next::From(next) => {
                    assert!(next > at);
                    (at, steps) = (next, steps + 1);
                }
                Next::End => break,
            }
        }
        assert!(steps < 256 * 70, "{steps} steps over everything");
    }
}
