//! An archive agent: it walks the index of changes again and again, each time from where it was told that it had seen
//! everything, across crashes of the node. A change that it passes by is lost to the archive (scenario E9).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use vellum_base::{Ino, Rid};
use vellum_client::{Client, ClientError, ClientOptions, ConnectOptions};
use vellum_format::IndexKind;
use vellum_rt::{random_u64, sleep};

use super::Shared;

const PAGE_ENTRIES: usize = 7;
const PAUSE: Duration = Duration::from_millis(30);

#[derive(Default)]
pub struct Agent {
    /// Entries that it saw.
    seen: RefCell<BTreeSet<(u64, Ino)>>,
    /// It was told that there are no others up to here.
    through: Cell<u64>,
    /// Clients to wait for before the last walk.
    pub clients: Cell<usize>,
    pub finished: Cell<bool>,
}

impl Agent {
    /// Its task for the whole run.
    pub async fn live(self: Rc<Self>, shared: Rc<Shared>) {
        while !self.finished.get() {
            let rid = Rid(random_u64());
            let failures = shared.device_failures.get();
            match self.one_life(&shared, rid).await {
                Ok(()) => self.finished.set(true),
                Err(ClientError::Fenced { .. }) => {}
                Err(_) if shared.excuses(failures) => {}
                Err(error) => shared.history.borrow_mut().violate("R", format!("the agent: {error}")),
            }
            sleep(PAUSE).await;
        }
    }

    async fn one_life(&self, shared: &Rc<Shared>, rid: Rid) -> Result<(), ClientError> {
        let link = ConnectOptions {
            timers: shared.timers,
            open_within: None,
            insecure_network: true,
            ..ConnectOptions::default()
        };
        let options = ClientOptions { rid: Some(rid), spare_groups: 0, ..ClientOptions::default() };
        let client = Client::connect(shared.address(), None, link, options).await?;
        loop {
            let is_last = shared.stop.get() && shared.unfinished(self.clients.get()).is_empty();
            self.walk(&client).await?;
            if is_last {
                return client.farewell().await;
            }
            sleep(PAUSE).await;
        }
    }

    async fn walk(&self, client: &Rc<Client>) -> Result<(), ClientError> {
        let mut from = (self.through.get() + 1, Ino::NONE);
        // Later pages are as of later epochs: only the first says what the whole walk has seen.
        let mut through = None;
        loop {
            let page = client.walk(IndexKind::MetaSeq, from, u64::MAX, PAGE_ENTRIES).await?;
            self.seen.borrow_mut().extend(page.entries);
            through.get_or_insert(page.through.0);
            match page.next {
                Some(next) => from = next,
                None => break,
            }
        }
        self.through.set(through.unwrap_or(0).max(self.through.get()));
        Ok(())
    }

    /// What it missed, given the sequence of each file.
    pub fn missed(&self, sequences: &BTreeMap<Ino, u64>) -> Vec<String> {
        let (seen, through) = (self.seen.borrow(), self.through.get());
        let missed = sequences.iter().filter(|(ino, seq)| **seq <= through && !seen.contains(&(**seq, **ino)));
        missed
            .map(|(ino, seq)| format!("the agent was told of all through {through}, and not of {ino} at {seq}"))
            .collect()
    }

    pub fn walked(&self) -> usize {
        self.seen.borrow().len()
    }
}
