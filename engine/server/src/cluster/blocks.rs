//! The members' blocks on the device: who may be a member, and what each has recorded.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::{BLOCK_SIZE, BlockAddr, DmaBuf, Fsid, Slot};
use vellum_format::Superblock;
use vellum_format::quorum::{EventKind, SlotBlock, SlotError, SlotEvent, SlotState};
use vellum_nvme::{DeviceError, Queue};
use vellum_rt::{sleep, timeout};

/// A block that does not verify is read so often: it may have been in the middle of a write.
const READS: u32 = 5;
const BETWEEN_READS: Duration = Duration::from_millis(5);
/// A read that takes longer counts as failed. (A write never does: it may still land.)
const READ_WITHIN: Duration = Duration::from_secs(2);

/// The quorum as the superblock has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    pub fsid: Fsid,
    area: BlockAddr,
    addresses: [Option<SocketAddr>; Slot::COUNT],
}

impl Membership {
    pub fn of(sb: &Superblock) -> Membership {
        let address = |slot: usize| std::str::from_utf8(sb.slots.get(slot)?).ok()?.parse().ok();
        Membership { fsid: sb.fsid, area: sb.slots_area.start, addresses: std::array::from_fn(address) }
    }

    pub fn address(&self, slot: Slot) -> Option<SocketAddr> {
        self.addresses.get(slot.index()).copied().flatten()
    }

    /// Bit per slot.
    pub fn configured(&self) -> u16 {
        self.slots().fold(0, |bits, (slot, _)| bits | 1 << slot.0)
    }

    pub fn slots(&self) -> impl Iterator<Item = (Slot, SocketAddr)> + '_ {
        Slot::all().filter_map(|slot| Some((slot, self.address(slot)?)))
    }

    /// With that slot's address, or without one.
    pub fn with(&self, slot: Slot, address: Option<SocketAddr>) -> Membership {
        let mut changed = self.clone();
        if let Some(place) = changed.addresses.get_mut(slot.index()) {
            *place = address;
        }
        changed
    }

    /// As the superblock keeps it.
    pub fn table(&self) -> Vec<String> {
        self.addresses.iter().map(|address| address.map(|a| a.to_string()).unwrap_or_default()).collect()
    }

    fn place(&self, slot: Slot) -> u64 {
        BlockAddr(self.area.0 + slot.index() as u64).bytes()
    }
}

/// Leaderships that have no end on the device: neither STOP nor a later leader's FENCE.
pub fn open_leaderships(blocks: &[SlotState]) -> Vec<SlotEvent> {
    let written = || blocks.iter().filter_map(SlotState::block);
    let newest_fence = written().filter_map(|block| block.get(EventKind::Fence)).map(|fence| fence.term).max();
    let open = written().filter_map(SlotBlock::unstopped).copied();
    open.filter(|elect| elect.term >= newest_fence.unwrap_or_default()).collect()
}

async fn read_block(queue: &Rc<dyn Queue>, members: &Membership, slot: Slot) -> SlotState {
    let unreadable = |why: String| SlotState::Unreadable(SlotError::Read { slot, why });
    let mut state = unreadable("never read".into());
    for again in 0..READS {
        if again > 0 {
            sleep(BETWEEN_READS).await;
        }
        let read = queue.read(members.place(slot), DmaBuf::new(BLOCK_SIZE));
        state = match timeout(READ_WITHIN, read).await {
            Ok(Ok(buf)) => SlotState::decode(&buf, slot, &members.fsid),
            Ok(Err(error)) => unreadable(error.to_string()),
            Err(_) => return unreadable(format!("no answer of the device within {READ_WITHIN:?}")),
        };
        if !matches!(state, SlotState::Unreadable(_)) {
            break;
        }
    }
    state
}

/// Every slot's block, also of slots that have no address (any more).
pub async fn read_blocks(queue: &Rc<dyn Queue>, members: &Membership) -> [SlotState; Slot::COUNT] {
    let mut states: [SlotState; Slot::COUNT] = std::array::from_fn(|_| SlotState::Empty);
    for (slot, state) in Slot::all().zip(&mut states) {
        *state = read_block(queue, members, slot).await;
    }
    states
}

/// Our own block, whole and durable.
pub(super) async fn write_block(
    queue: &Rc<dyn Queue>,
    members: &Membership,
    block: &SlotBlock,
) -> Result<(), DeviceError> {
    let bytes = block.encode(&members.fsid);
    queue.write(members.place(block.slot), DmaBuf::copy_from(&bytes, true).freeze(), true).await
}

#[cfg(test)]
mod tests {
    use vellum_base::{Rid, Term};

    use super::*;

    #[test]
    fn a_leadership_is_open_until_its_stop_or_a_later_leaders_fence() {
        let event = |term| SlotEvent {
            write: 1,
            rid: Rid(term),
            term: Term(term),
            vote: None,
            time_ms: 0,
            process: vellum_format::ProcessIdentity::default(),
        };
        let block = |slot: u8, events: &[(EventKind, u64)]| {
            let mut block = SlotBlock::new(Slot(slot));
            events.iter().for_each(|(kind, term)| block.set(*kind, event(*term)));
            SlotState::Written(block)
        };
        let terms = |blocks: &[SlotState]| open_leaderships(blocks).iter().map(|e| e.term.0).collect::<Vec<_>>();
        let (killed, leads) = (&[(EventKind::Elect, 16), (EventKind::Fence, 16)][..], &[(EventKind::Elect, 33)][..]);
        assert_eq!(terms(&[block(0, killed), SlotState::Empty]), [16]);
        assert_eq!(terms(&[block(0, killed), block(1, leads)]), [16, 33], "it is elected and has fenced nobody yet");
        let fenced = [leads, &[(EventKind::Fence, 33)]].concat();
        assert_eq!(terms(&[block(0, killed), block(1, &fenced)]), [33]);
        let stopped = [&fenced[..], &[(EventKind::Stop, 33)]].concat();
        assert!(terms(&[block(0, killed), block(1, &stopped)]).is_empty());
    }
}
