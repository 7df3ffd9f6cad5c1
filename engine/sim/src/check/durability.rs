//! P1 and N9 as facts: what an engine or a client calls durable is, recovery ends where it must, and a client's batches
//! are one gapless sequence over sockets and terms.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use vellum_base::{BatchNo, Epoch, Rid, Term};
use vellum_client::Fact as ClientFact;
use vellum_store::Fact as StoreFact;

use super::Out;

#[derive(Default)]
struct Batches {
    /// All up to here are durable.
    certain: BatchNo,
    /// Applied, and not known to be durable.
    open: VecDeque<(BatchNo, Term, Epoch)>,
}

impl Batches {
    fn last(&self) -> BatchNo {
        self.open.back().map_or(self.certain, |(number, ..)| *number)
    }

    fn settle(&mut self, is_durable: impl Fn(Term, Epoch) -> bool) {
        while let Some((number, term, epoch)) = self.open.front().copied() {
            if !is_durable(term, epoch) {
                break;
            }
            self.certain = self.certain.max(number);
            self.open.pop_front();
        }
    }
}

#[derive(Default)]
pub struct Durability {
    /// Per term, the newest durable epoch.
    durable: BTreeMap<Term, Epoch>,
    /// The newest term that has opened the device. What an older leader still applies, deposed in its sleep, never lands.
    term: Term,
    /// What the newest recovery found.
    recovered: Epoch,
    /// Epochs of the newest run that hold something; empty ones leave no trace.
    filled: BTreeSet<Epoch>,
    /// The newest one of them that was called durable.
    promised: Epoch,
    /// Of each older term: epochs that held something which its successor did not find.
    lost: BTreeMap<Term, BTreeSet<Epoch>>,
    batches: BTreeMap<Rid, Batches>,
}

impl Durability {
    pub fn is_durable(&self, term: Term, epoch: Epoch) -> bool {
        epoch <= self.recovered || self.durable.get(&term).is_some_and(|durable| epoch <= *durable)
    }

    pub fn store(&mut self, fact: &StoreFact, out: &mut Out) {
        match fact {
            StoreFact::Opened { term, first_epoch, recovered } => {
                out.story.say(format!(
                    "term {term} opens the device: the log ends at epoch {recovered}, new ones begin at {first_epoch}"
                ));
                let promised = self.promised;
                let filled = std::mem::take(&mut self.filled);
                self.lost.entry(self.term).or_default().extend(filled.range(recovered.next()..));
                self.term = self.term.max(*term);
                if *recovered < promised {
                    out.violate("P1", format!("epoch {promised} was durable, and the recovery ends at {recovered}"));
                }
                self.recovered = self.recovered.max(*recovered);
                for batches in self.batches.values_mut() {
                    batches.settle(|_, epoch| epoch <= *recovered);
                    batches.open.clear(); // these are lost
                }
            }
            StoreFact::Durable { term, epoch } => {
                out.story.detail(|_| format!("epoch {epoch} of term {term} is durable"));
                // A deposed leader may still say so of what its successor has found, and of nothing else: clients believe it.
                if let Some(gone) = self.lost.get(term).and_then(BTreeSet::first).filter(|gone| *gone <= epoch) {
                    let what =
                        format!("the deposed leader of term {term} calls epoch {epoch} durable; {gone} was not found");
                    out.violate("P1", what);
                }
                self.durable.insert(*term, *epoch);
                let later = self.filled.split_off(&epoch.next());
                let now = std::mem::replace(&mut self.filled, later);
                self.promised = now.last().copied().unwrap_or_default().max(self.promised);
                for batches in self.batches.values_mut() {
                    batches.settle(|t, e| t == *term && e <= *epoch);
                }
            }
            StoreFact::RecordMade { term, epoch, .. } | StoreFact::Applied { term, epoch, .. } if *term < self.term => {
                self.lost.entry(*term).or_default().insert(*epoch);
            }
            StoreFact::RecordMade { epoch, .. } => {
                self.filled.insert(*epoch);
            }
            StoreFact::Applied { term, rid, number, epoch } => {
                self.filled.insert(*epoch);
                out.story.detail(|story| format!("batch {number} of {} is in epoch {epoch}", story.name(*rid)));
                let batches = self.batches.entry(*rid).or_default();
                let expected = batches.last().next();
                if *number != expected {
                    let name = out.name(*rid);
                    out.violate(
                        "N9",
                        format!("batch {number} of {name} is applied in term {term}, expected {expected}"),
                    );
                }
                batches.open.push_back((*number, *term, *epoch));
            }
            _ => {}
        }
    }

    pub fn client(&mut self, fact: &ClientFact, out: &mut Out) {
        let ClientFact::Durable { rid, through } = fact else { return };
        let certain = self.batches.get(rid).map_or(BatchNo(0), |batches| batches.certain);
        if *through > certain {
            let name = out.name(*rid);
            out.violate("P1", format!("{name} believes batch {through} to be durable; {certain} is the last that is"));
        }
    }
}
