//! Epochs on one reactor: applying, closing parts, writing them, and what happens when they are durable.

use std::rc::Rc;
use std::time::Duration;

use vellum_base::{BLOCK_SIZE, BlockRange, DmaBuf, Epoch, Rid, probe};
use vellum_format::{PartPlace, PartRef, Record};
use vellum_rt::{Class, spawn, stay_awake};

use crate::epoch::Part;
use crate::error::{CommitError, StoreError};
use crate::fact::Fact;
use crate::mesh::{Answer, Message, Refused, Request};
use crate::store::Store;

/// A log's write, or a flush, on a device that is worth waiting awake for.
const DURABLE_WITHIN: Duration = Duration::from_micros(200);
/// An open part longer than this asks to be closed.
const PART_BYTES: usize = 4 << 20;

impl Store {
    /// Applies records in `epoch`, which is open here, and puts them into its part.
    pub(crate) fn apply_in(&self, epoch: Epoch, records: &[Record]) {
        for record in records {
            self.apply_record(epoch, record.clone());
        }
        let mut epochs = self.epochs.borrow_mut();
        let part = epochs.part(epoch);
        records.iter().for_each(|r| part.records.push(r));
    }

    /// The coordinator learns that `epoch` is not empty. It may close it at once.
    pub(crate) fn mark_dirty(self: &Rc<Self>, epoch: Epoch) {
        let large = self.epochs.borrow().open_bytes() > PART_BYTES;
        self.to_coordinator(Message::Dirty { epoch });
        if large {
            self.to_coordinator(Message::Want { epoch });
        }
    }

    /// Writes a few records of the engine's own, all in one bucket, wherever that is. Their epoch.
    pub(crate) async fn commit_records(self: &Rc<Self>, records: Vec<Record>) -> Result<Epoch, StoreError> {
        let Some(bucket) = records.first().map(|first| first.first_key().bucket()) else { return Ok(Epoch::NONE) };
        loop {
            let request = Request::CommitRecords { records: records.clone() };
            match self.ask(self.reactor_of(bucket), request).await {
                Ok(Answer::Epoch(epoch)) => return Ok(epoch),
                Err(StoreError::Moved) => self.until_moved().await,
                Err(e) => return Err(e),
                Ok(_) => return Err(StoreError::Closed),
            }
        }
    }

    /// Writes a few records of the engine's own into the open epoch, when there is room. Their keys are this reactor's.
    pub(crate) async fn commit_own(self: &Rc<Self>, records: &[Record]) -> Result<Epoch, StoreError> {
        loop {
            self.check_writable()?;
            match self.reserve_records(Rid::default()) {
                Ok(token) => {
                    if records.iter().any(|record| self.reactor_of(record.first_key().bucket()) != self.me) {
                        self.abort_reserved(token);
                        return Err(StoreError::Moved);
                    }
                    let epoch = self.epochs.borrow().open();
                    self.apply_reserved(token, epoch);
                    self.apply_in(epoch, records);
                    self.mark_dirty(epoch);
                    return Ok(epoch);
                }
                Err(Refused::No(CommitError::Store(e))) => return Err(e),
                Err(_) => {
                    let _ = vellum_rt::timeout(Duration::from_millis(2), self.room.notified()).await; // then look again
                }
            }
        }
    }

    pub(crate) fn close_epoch(self: &Rc<Self>, epoch: Epoch) {
        let declare = self.epochs.borrow_mut().close(epoch);
        for (to, messages) in declare {
            self.mesh.post(vellum_base::ReactorId(to as u16), Message::Declared { epoch, messages });
        }
        self.close_parts();
    }

    /// Closes every part that is whole, in order.
    pub(crate) fn close_parts(self: &Rc<Self>) {
        loop {
            let Some((epoch, part)) = self.epochs.borrow_mut().pop_whole() else { break };
            let allocs = part.space.iter().flat_map(|change| &change.allocs);
            let new_data = allocs.map(|(start, len)| BlockRange::new(*start, *len as u32)).collect();
            let ready = match self.close_part(epoch, part) {
                Ok(ready) => ready,
                Err(e) => {
                    self.fail(e);
                    return;
                }
            };
            let oldest_reader = self.pins.oldest().unwrap_or(self.durable.get()).min(self.durable.get());
            let debt = self.debt();
            let from = self.me;
            self.to_coordinator(Message::PartReady { from, epoch, part: ready, new_data, oldest_reader, debt });
        }
    }

    fn close_part(self: &Rc<Self>, epoch: Epoch, mut part: Part) -> Result<Option<PartRef>, StoreError> {
        let closed = self.space.borrow_mut().close(epoch, &part.space);
        for (start, len) in &closed.freed {
            probe::tell(|| Fact::Freed { term: self.term, epoch, start: *start, len: *len });
        }
        for (key, value) in closed.writes {
            let record = match value {
                Some(value) => Record::Put { key, value },
                None => Record::Delete { key },
            };
            part.records.push(&record);
            self.apply_record(epoch, record);
        }
        self.env.closed.set(epoch);
        let mut log = self.log.borrow_mut();
        let Some(log) = log.as_mut() else { return Ok(None) };
        log.release(part.charged);
        if part.records.is_empty() {
            return Ok(None);
        }
        self.full_epochs.set(self.full_epochs.get() + 1);
        let blocks = (part.records.padded_len() / BLOCK_SIZE) as u64;
        let id = log.id;
        let full = || StoreError::corrupt(format!("log {id}"), "a part does not fit: room was promised twice");
        let place = match log.place(epoch, blocks) {
            Some(place) => place,
            None => return Err(full()),
        };
        let addr = log.ring.addr(place).ok_or_else(full)?;
        let at = PartPlace { log: log.id, epoch, term: self.term, place, addr };
        let mut buf = DmaBuf::new(part.records.padded_len());
        let crc = part.records.finish(&mut buf, &at, &self.superblock.fsid);
        self.epochs.borrow_mut().reuse(part.records);
        let slice = buf.freeze();
        // Submitted here and now: the seal is written in parallel, and the flush waits for both.
        let writes: Vec<_> = log
            .ring
            .pieces(place, blocks)
            .into_iter()
            .map(|(addr, at, len)| {
                let (from, to) = (at as usize * BLOCK_SIZE, (at + len) as usize * BLOCK_SIZE);
                self.queue.write(addr.bytes(), slice.slice(from..to), false)
            })
            .collect();
        let store = self.clone();
        let task = async move {
            for write in writes {
                if let Err(e) = write.await {
                    store.fail(format!("log part of epoch {epoch}: {e}"));
                    return;
                }
            }
            store.to_coordinator(Message::PartWritten { epoch });
        };
        spawn(Class::Commit, "log part", task).detach();
        self.catch_up_behind_log();
        self.stay_awake_if_waited_for();
        Ok(Some(PartRef { log: at.log, place, addr, len_blocks: blocks as u32, crc }))
    }

    /// Called when the device was given what somebody may wait for.
    pub(crate) fn stay_awake_if_waited_for(&self) {
        let elsewhere = self.central.as_ref().is_some_and(|central| central.machine.borrow().is_waited_for());
        if elsewhere || self.wanted.get() > self.durable.get() {
            stay_awake(DURABLE_WITHIN);
        }
    }

    pub(crate) fn became_durable(self: &Rc<Self>, epoch: Epoch, oldest_reader: Epoch) {
        if self.failed.borrow().is_some() {
            return;
        }
        self.durable.set(self.durable.get().max(epoch));
        self.env.oldest_reader.set(self.env.oldest_reader.get().max(oldest_reader));
        let ready = {
            let mut waiters = self.waiters.borrow_mut();
            let later = waiters.split_off(&epoch.next());
            std::mem::replace(&mut *waiters, later)
        };
        for waiter in ready.into_values().flatten() {
            let _ = waiter.send(()); // it may have gone
        }
        self.reservations.durable(epoch);
        let cooling = self.space.borrow_mut().durable(epoch);
        if cooling {
            self.cool();
        }
        self.tell_durable(epoch);
        self.maintain.notify_one();
    }
}
