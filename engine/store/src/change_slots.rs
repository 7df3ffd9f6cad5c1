//! Changing the quorum of a device that nobody serves.
//!
//! The blocks of removed slots stay: what they say of terms and votes is true for ever. With `stop`, an election without
//! an end is ended in its own block, on the operator's word that its process is dead.

use std::rc::Rc;

use vellum_base::{BlockAddr, DmaBuf, Slot};
use vellum_format::Superblock;
use vellum_format::quorum::{EventKind, SlotState};
use vellum_format::superblock::{MAX_SLOTS, SLOT_BYTES};
use vellum_nvme::Queue;

use crate::error::StoreError;
use crate::mesh::Request;
use crate::store::Store;
use crate::superblock;

pub struct SlotChange {
    /// By slot; empty where there is none.
    pub slots: Vec<String>,
    /// Mark every election without an end as over.
    pub stop: bool,
}

/// The caller has the device alone.
pub async fn change_slots(queue: &Rc<dyn Queue>, change: SlotChange) -> Result<(), StoreError> {
    let mut sb = superblock::look(queue).await?;
    if let Some(refused) = superblock::forbids_writing(&sb) {
        return Err(refused);
    }
    let slots = table(change.slots)?;
    if change.stop {
        for slot in Slot::all() {
            stop(queue, &sb, slot).await?;
        }
    }
    sb.slots = slots;
    sb.generation += 1;
    superblock::write(queue, &sb).await
}

/// As the superblock keeps it.
fn table(slots: Vec<String>) -> Result<Vec<Vec<u8>>, StoreError> {
    if slots.len() > MAX_SLOTS || slots.iter().any(|text| text.len() >= SLOT_BYTES) {
        return Err(StoreError::Options(format!("at most {MAX_SLOTS} slots of less than {SLOT_BYTES} bytes")));
    }
    let mut slots: Vec<Vec<u8>> = slots.into_iter().map(String::into_bytes).collect();
    slots.resize(MAX_SLOTS, Vec::new());
    Ok(slots)
}

impl Store {
    /// Other slots, while this store is served: durable when it answers. Whether that may be is the quorum's to judge.
    pub async fn change_slots(self: &Rc<Self>, slots: Vec<String>) -> Result<(), StoreError> {
        let slots = table(slots)?;
        self.ask(crate::env::COORDINATOR, Request::ChangeSlots { slots }).await.map(|_| ())
    }
}

async fn stop(queue: &Rc<dyn Queue>, sb: &Superblock, slot: Slot) -> Result<(), StoreError> {
    let at = BlockAddr(sb.slots_area.start.0 + slot.index() as u64).bytes();
    let buf = queue.read(at, DmaBuf::new(vellum_base::BLOCK_SIZE)).await?;
    let mut block = match SlotState::decode(&buf, slot, &sb.fsid) {
        SlotState::Empty => return Ok(()),
        SlotState::Written(block) => block,
        SlotState::Unreadable(error) => return Err(StoreError::corrupt("quorum block", error)),
    };
    let Some(elect) = block.unstopped().copied() else { return Ok(()) };
    block.set(EventKind::Stop, vellum_format::SlotEvent { write: block.newest_write() + 1, ..elect });
    queue.write(at, DmaBuf::copy_from(&block.encode(&sb.fsid), true).freeze(), true).await?;
    Ok(queue.flush().await?)
}
