//! A: what an epoch freed is reused only after that epoch is durable [A1], and inode groups are given out once for ever.
//! That blocks partition the device [A3] is checked on every image that a crash leaves ([`super::inspect`]).

use std::collections::BTreeMap;

use vellum_base::{Epoch, Term};
use vellum_store::Fact as StoreFact;

use super::Out;
use super::durability::Durability;

#[derive(Default)]
pub struct Space {
    /// Freed ranges by their start.
    freed: BTreeMap<u64, (u64, Term, Epoch)>,
    groups: BTreeMap<u64, Term>,
}

impl Space {
    pub fn store(&mut self, fact: &StoreFact, durability: &Durability, out: &mut Out) {
        match fact {
            // What the run before freed and did not make durable is not free.
            StoreFact::Opened { .. } => self.freed.clear(),
            StoreFact::Freed { term, epoch, start, len } => drop(self.freed.insert(*start, (*len, *term, *epoch))),
            StoreFact::Durable { term, epoch } => self.freed.retain(|_, (_, t, e)| t != term || *e > *epoch),
            StoreFact::Taken { term, start, len } => {
                let end = start + len;
                for (at, (long, by, epoch)) in self.freed.range(..end).filter(|(at, (long, ..))| **at + long > *start) {
                    if by == term && !durability.is_durable(*by, *epoch) {
                        let what = format!(
                            "blocks {start}+{len} are reused; {at}+{long} are freed by epoch {epoch}, not durable"
                        );
                        out.violate("A1", what);
                    }
                }
            }
            StoreFact::Moved { group, blocks, .. } => {
                out.story.say(format!("{blocks} blocks of inode group {group} are moved"));
            }
            StoreFact::GroupGiven { term, group } => {
                if let Some(before) = self.groups.insert(*group, *term) {
                    out.violate("A3", format!("inode group {group} is given out in term {before} and again in {term}"));
                }
            }
            _ => {}
        }
    }
}
