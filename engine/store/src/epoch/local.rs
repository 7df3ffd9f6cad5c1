//! One reactor's side of the epochs: what was applied in which, and when a part is whole. Pure.
//!
//! Batches take the open epoch. When the coordinator closes it, the reactor moves on and declares to each other one how
//! many messages it sent there for that epoch; a part is whole when all declarations are here and as many messages have
//! come. Parts close in the order of epochs.

use std::collections::BTreeMap;

use vellum_base::Epoch;
use vellum_format::PartBuilder;

use crate::space::SpaceChange;

/// What one epoch changed on this reactor.
#[derive(Debug, Default)]
pub struct Part {
    pub records: PartBuilder,
    pub space: Vec<SpaceChange>,
    /// Log bytes that the batches in it reserved.
    pub charged: usize,
    sent: Vec<u32>,
    received: u32,
    expected: u32,
    declarations: usize,
}

#[derive(Debug)]
pub struct LocalEpochs {
    me: usize,
    reactors: usize,
    open: Epoch,
    closed: Epoch,
    parts: BTreeMap<Epoch, Part>,
    /// The memory of a part that was written, for the next one.
    spent: PartBuilder,
}

/// Parts longer than this give their memory back.
const MAX_SPENT_BYTES: usize = 8 << 20;

impl LocalEpochs {
    pub fn new(me: usize, reactors: usize, first: Epoch) -> LocalEpochs {
        LocalEpochs {
            me,
            reactors,
            open: first,
            closed: Epoch(first.0.saturating_sub(1)),
            parts: BTreeMap::new(),
            spent: PartBuilder::default(),
        }
    }

    /// The epoch that new batches take.
    pub fn open(&self) -> Epoch {
        self.open
    }

    /// Of everything that was applied here.
    pub fn newest(&self) -> Epoch {
        self.parts.last_key_value().map_or(self.open, |(epoch, _)| self.open.max(*epoch))
    }

    /// No change of this epoch or an older one comes any more.
    pub fn closed(&self) -> Epoch {
        self.closed
    }

    pub fn part(&mut self, epoch: Epoch) -> &mut Part {
        assert!(epoch > self.closed, "epoch {epoch} is closed");
        let (reactors, spent) = (self.reactors, &mut self.spent);
        self.parts.entry(epoch).or_insert_with(|| Part {
            records: PartBuilder::reusing(std::mem::take(spent)),
            sent: vec![0; reactors],
            ..Part::default()
        })
    }

    /// The records were written.
    pub fn reuse(&mut self, records: PartBuilder) {
        if records.capacity_bytes() <= MAX_SPENT_BYTES {
            self.spent = records;
        }
    }

    /// Bytes of records that wait in open parts.
    pub fn open_bytes(&self) -> usize {
        self.parts.values().map(|p| p.records.padded_len()).sum()
    }

    /// A part that is not closed frees blocks.
    pub fn frees_blocks(&self) -> bool {
        self.parts.values().flat_map(|p| &p.space).any(|change| !change.frees.is_empty())
    }

    pub fn sent(&mut self, epoch: Epoch, to: usize) {
        if let Some(n) = self.part(epoch).sent.get_mut(to) {
            *n += 1;
        }
    }

    pub fn received(&mut self, epoch: Epoch) {
        self.part(epoch).received += 1;
    }

    /// The coordinator closes `epoch`, the open one: gives what to declare to whom.
    pub fn close(&mut self, epoch: Epoch) -> Vec<(usize, u32)> {
        assert_eq!(epoch, self.open, "epochs close in order");
        let me = self.me;
        let declare: Vec<_> = self.part(epoch).sent.iter().copied().enumerate().filter(|(to, _)| *to != me).collect();
        self.open = epoch.next();
        declare
    }

    pub fn declared(&mut self, epoch: Epoch, messages: u32) {
        let part = self.part(epoch);
        part.declarations += 1;
        part.expected += messages;
    }

    /// The next part that is whole.
    pub fn pop_whole(&mut self) -> Option<(Epoch, Part)> {
        let epoch = self.closed.next();
        if epoch >= self.open {
            return None;
        }
        let others = self.reactors - 1;
        let part = self.parts.get(&epoch)?;
        if part.declarations < others || part.received < part.expected {
            return None;
        }
        self.closed = epoch;
        Some((epoch, self.parts.remove(&epoch)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e7_a_part_is_whole_when_everybody_declared_and_everything_came() {
        let mut a = LocalEpochs::new(0, 3, Epoch(10));
        a.sent(Epoch(10), 1);
        a.received(Epoch(11)); // another reactor has moved on already
        assert_eq!(a.close(Epoch(10)), vec![(1, 1), (2, 0)]);
        assert!(a.pop_whole().is_none());
        a.declared(Epoch(10), 2);
        a.received(Epoch(10));
        a.declared(Epoch(10), 0);
        assert!(a.pop_whole().is_none(), "one message is on its way");
        a.received(Epoch(10));
        assert_eq!(a.pop_whole().map(|(e, _)| e), Some(Epoch(10)));
        assert!(a.pop_whole().is_none());
        assert_eq!((a.open(), a.closed()), (Epoch(11), Epoch(10)));
        a.close(Epoch(11));
        a.declared(Epoch(11), 1);
        a.declared(Epoch(11), 0);
        assert_eq!(a.pop_whole().map(|(e, _)| e), Some(Epoch(11)), "its message came early");
    }
}
