//! The quorum is changed while it serves: one slot at a time, by the leader.
//!
//! ```text
//!  operator -> engine: SetSlot -> agent: may it be? (a silent member is fenced first) -> engine: the superblock, through the
//!  leadership's valve -> agent: goes by it -> answered.   Others read it with the blocks, every second half of the timeout.
//! ```
//! Any two majorities of neighbouring tables have a member in common (Ongaro's thesis, section 4.1: one server at a time); a
//! table is changed again only when every member that is heard has had time to learn of the last change. A member that slept
//! through several finds the newest table when it reads the blocks after its ELECT, and gives up. What keeps two leaders from
//! writing is fencing, as ever.
//!
//! Refused: without a majority of the new table among those that are heard, without the one that is changed; for an unknown
//! slot; for an address that is in use; for a silent member that cannot be fenced, unless the operator knows it to be dead. A
//! leader whose own slot is meant resigns first.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use serde_json::Value;
use vellum_base::{Rid, Slot};
use vellum_format::quorum::{EventKind, SlotState};
use vellum_proto::quorum::{FenceReason, FenceTarget, QuorumConfig, QuorumRole, QuorumStatus};
use vellum_rt::channel::Sender;
use vellum_rt::{Class, Instant, now, spawn};

use super::agent::{Agent, time};
use super::blocks::{Membership, read_blocks};
use super::fencer::FenceOrder;
use super::status::block_status;

/// One slot with another address, or without one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotEdit {
    pub slot: Slot,
    pub address: Option<SocketAddr>,
    /// The operator knows that the member that had the slot writes nothing any more.
    pub dead: bool,
}

/// Why a slot is not changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotNow {
    Never(String),
    /// It may be asked again in a moment.
    Later(String),
}

#[derive(Default)]
pub(super) struct SlotChanges {
    /// One is being judged or written since then.
    running: Cell<Option<Instant>>,
    /// When the members' last change was learned of, here.
    learned: Cell<Option<Instant>>,
    /// The run that each block was begun by, as this leadership read it.
    lives: RefCell<[Option<Rid>; Slot::COUNT]>,
}

/// What the leader knows when it is asked.
fn refusal(
    members: &Membership,
    status: &QuorumStatus,
    edit: &SlotEdit,
    timeout: std::time::Duration,
) -> Option<String> {
    let known = || members.slots().map(|(slot, address)| format!("{slot}={address}")).collect::<Vec<_>>().join(", ");
    let slot = edit.slot;
    if status.role != QuorumRole::Leading {
        return Some("this member does not lead any more: ask again".into());
    }
    if slot.index() >= Slot::COUNT {
        return Some(format!("slot {slot} does not exist: 0 to {}", Slot::COUNT - 1));
    }
    let before = members.address(slot);
    match edit.address {
        None if before.is_none() => return Some(format!("slot {slot} has no member; there are {}", known())),
        Some(address) if address.port() == 0 || address.ip().is_unspecified() => {
            return Some(format!("{address} is nothing that other members can send to"));
        }
        Some(address) => {
            if let Some((other, _)) = members.slots().find(|(other, known)| *other != slot && *known == address) {
                return Some(format!("slot {slot} would share its address {address} with slot {other}"));
            }
        }
        None => {}
    }
    let table = members.with(slot, edit.address);
    let needed = QuorumConfig::new(status.slot, table.configured(), status.rid, 0).majority();
    let heard = |peer: &Slot| is_heard(status, *peer, timeout);
    let others = table.slots().map(|(peer, _)| peer).filter(|peer| *peer != status.slot && *peer != slot);
    let here = others.filter(heard).count() + usize::from(slot != status.slot);
    (here < needed).then(|| {
        format!("{needed} members would have to agree, and without slot {slot} only {here} are heard: start the others first")
    })
}

fn is_heard(status: &QuorumStatus, slot: Slot, timeout: std::time::Duration) -> bool {
    let peer = status.peers.iter().find(|peer| peer.slot == slot);
    peer.and_then(|peer| peer.heard_ago).is_some_and(|ago| ago < timeout)
}

/// Whom to fence before the slot is anybody else's; none when nobody can be there.
fn silent_member(status: &QuorumStatus, edit: &SlotEdit) -> Option<FenceTarget> {
    let target = |rid, process| FenceTarget { slot: edit.slot, rid, term: None, process, reason: FenceReason::Removed };
    match status.blocks.get(edit.slot.index())? {
        SlotState::Empty => None,
        SlotState::Written(block) => block.running().map(|begin| target(Some(begin.rid), Some(begin.process))),
        SlotState::Unreadable(_) => Some(target(None, None)),
    }
}

impl Agent {
    /// Answers with the table to be written, once it is certain that it may be.
    pub(super) fn judge(self: &Rc<Self>, edit: SlotEdit, answer: Sender<Result<Vec<String>, NotNow>>) {
        // Who asked may be gone.
        let say = move |judged| drop(answer.try_send(judged));
        let (members, timers) = (self.members(), self.member.options.timers);
        let status = self.quorum.borrow().status(time());
        // Every member reads the table this often, and once more in between.
        let learn = timers.heartbeat_timeout + timers.heartbeat_timeout / 2;
        let recent = |since: &Cell<Option<Instant>>| since.get().is_some_and(|at| at.elapsed() < learn);
        if edit.address.is_some() && members.address(edit.slot) == edit.address {
            return say(Ok(members.table())); // so it is: a question that was asked again
        }
        if let Some(why) = refusal(&members, &status, &edit, timers.heartbeat_timeout) {
            return say(Err(NotNow::Never(why)));
        }
        if recent(&self.changes.running) {
            return say(Err(NotNow::Later("another change is under way: one member at a time".into())));
        }
        if recent(&self.changes.learned) {
            let why = "the members are still learning of the last change: ask again in a few seconds";
            return say(Err(NotNow::Later(why.into())));
        }
        if edit.slot == status.slot {
            say(Err(NotNow::Later(format!("slot {} leads: it resigns, ask the next leader", edit.slot))));
            return self.input(|quorum, now| quorum.resign(now, "an operator changes this slot"));
        }
        self.changes.running.set(Some(now()));
        let table = members.with(edit.slot, edit.address).table();
        let had_member = members.address(edit.slot).is_some();
        let silent = had_member && !is_heard(&status, edit.slot, timers.heartbeat_timeout);
        let target = silent_member(&status, &edit).filter(|_| silent);
        let (agent, term, fenced_now) = (self.clone(), status.term, target.is_some());
        spawn(Class::Request, "judge a change of slots", async move {
            let fenced = match target {
                Some(target) if !edit.dead => agent.fence_silent(target, &members, &status).await,
                _ => Ok(()),
            };
            match fenced {
                Ok(()) => {
                    // One that ended in order may have been a worker until later: of it nothing is concluded.
                    if silent && (fenced_now || edit.dead) {
                        agent.gone.note(edit.slot, term);
                    }
                    say(Ok(table));
                }
                Err(why) => {
                    agent.changes.running.set(None);
                    say(Err(NotNow::Never(why)));
                }
            }
        })
        .detach();
    }

    async fn fence_silent(
        &self,
        target: FenceTarget,
        members: &Membership,
        status: &QuorumStatus,
    ) -> Result<(), String> {
        let address = members.address(target.slot);
        let order = FenceOrder { target, address, by: status.slot, for_term: status.term };
        tracing::warn!(%order, "fencing");
        self.member.options.fencer.fence(order).await.map_err(|error| {
            format!(
                "slot {} is not heard and cannot be fenced ({error}): make sure that it is dead, and give --confirm-dead",
                target.slot
            )
        })
    }

    /// The table was written: from here on this member goes by it.
    pub(super) fn changed(self: &Rc<Self>, answer: Sender<Value>) {
        let agent = self.clone();
        spawn(Class::Request, "a change of slots", async move {
            agent.read_members().await;
            agent.changes.running.set(None);
            let members = agent.members();
            let blocks = read_blocks(&agent.queue, &members).await;
            let _ = answer.try_send(block_status(&members, &blocks));
        })
        .detach();
    }

    /// Goes by what the superblock says now. One that cannot be read, or is not ours, changes nothing.
    pub(super) async fn read_members(self: &Rc<Self>) {
        let Ok(sb) = vellum_store::read_superblock(&self.queue).await else { return };
        let (before, after) = (self.members(), Membership::of(&sb));
        if before == after || before.fsid != after.fsid {
            return;
        }
        let slot = self.member.options.slot;
        let table: Vec<String> = after.slots().map(|(slot, address)| format!("{slot}={address}")).collect();
        tracing::warn!(%slot, table = table.join(", "), "the quorum was changed");
        self.changes.learned.set(Some(now()));
        let own = after.address(slot);
        let configured = after.configured();
        if own.is_some() && own != before.address(slot) {
            tracing::warn!(%slot, "this slot has another address now: this member leaves");
            self.set_members(after);
            return self.input(vellum_proto::Quorum::leave);
        }
        if own.is_none() {
            tracing::warn!(%slot, "this slot was taken out of the quorum: this member leaves");
        }
        self.set_members(after);
        self.input(|quorum, now| quorum.reconfigure(now, configured));
    }

    /// A block that was begun by another run than before: whoever had the slot is gone.
    pub(super) fn note_lives(&self, blocks: &[SlotState; Slot::COUNT]) {
        let term = self.quorum.borrow().term();
        let mut lives = self.changes.lives.borrow_mut();
        for ((slot, state), known) in Slot::all().zip(blocks).zip(lives.iter_mut()) {
            let Some(begin) = state.block().and_then(|block| block.get(EventKind::Begin)) else { continue };
            if known.replace(begin.rid).is_some_and(|before| before != begin.rid) {
                self.gone.note(slot, term);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vellum_base::Term;
    use vellum_proto::quorum::{PeerStatus, QuorumCounters};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);

    fn address(n: u8) -> SocketAddr {
        ([10, 0, 0, n], 7400).into()
    }

    fn members(slots: u8) -> Membership {
        let none = vellum_base::BlockRange::new(0, 0);
        Membership::of(&vellum_format::Superblock {
            fsid: vellum_base::Fsid([1; 16]),
            generation: 1,
            format_version: 1,
            features: Default::default(),
            blocks: 0,
            chunk_blocks: 1,
            copy: vellum_base::BlockAddr(0),
            slots_area: none,
            manifest: [[none; 2]; 2],
            manifest_generation: 0,
            metadata_copies: 1,
            created: 0,
            slots: (0..slots).map(|n| address(n).to_string().into_bytes()).collect(),
        })
    }

    /// Slot 0 leads; of the others it hears those.
    fn status(slots: u8, heard: &[u8]) -> QuorumStatus {
        let peer = |slot| PeerStatus {
            slot: Slot(slot),
            rid: None,
            heard_ago: heard.contains(&slot).then_some(Duration::from_millis(50)),
            written_ago: None,
            term: Term(16),
            delays: Default::default(),
        };
        QuorumStatus {
            slot: Slot(0),
            rid: Rid(1),
            configured: (1 << slots) - 1,
            role: QuorumRole::Leading,
            term: Term(16),
            leader: Some(Slot(0)),
            peers: (1..slots).map(peer).collect(),
            fencing: Vec::new(),
            error: None,
            write_latency: Duration::ZERO,
            write_stalled: Duration::ZERO,
            write_errors: 0,
            counters: QuorumCounters::default(),
            blocks: Vec::new(),
        }
    }

    fn judged(slots: u8, heard: &[u8], slot: u8, address: Option<SocketAddr>) -> String {
        let edit = SlotEdit { slot: Slot(slot), address, dead: false };
        refusal(&members(slots), &status(slots, heard), &edit, TIMEOUT).unwrap_or_default()
    }

    #[test]
    fn what_would_cost_the_majority_is_refused() {
        assert_eq!(judged(3, &[1, 2], 2, None), "");
        assert_eq!(judged(3, &[1], 2, None), "", "a dead one of three is taken out");
        assert_eq!(judged(3, &[1, 2], 3, Some(address(3))), "", "three of four are there without the new one");
        assert!(judged(3, &[1], 3, Some(address(3))).contains("3 members would have to agree"));
        assert_eq!(judged(3, &[1], 2, Some(address(9))), "", "a dead one is moved");
        assert!(judged(3, &[], 2, Some(address(9))).contains("2 members would have to agree"));
        assert_eq!(judged(1, &[], 1, Some(address(1))), "", "one alone takes a second");
    }

    #[test]
    fn nonsense_is_refused_with_what_there_is() {
        assert!(judged(3, &[1, 2], 7, None).contains("slot 7 has no member; there are 0=10.0.0.0:7400"));
        assert!(judged(3, &[1, 2], 1, Some(address(2))).contains("share its address 10.0.0.2:7400 with slot 2"));
        assert!(judged(3, &[1, 2], 15, Some(address(9))).contains("does not exist"));
        assert!(judged(3, &[1, 2], 1, Some(([0, 0, 0, 0], 1).into())).contains("nothing that other members"));
        let edit = SlotEdit { slot: Slot(1), address: None, dead: false };
        let deposed = QuorumStatus { role: QuorumRole::Follower, ..status(3, &[1, 2]) };
        assert!(refusal(&members(3), &deposed, &edit, TIMEOUT).is_some_and(|why| why.contains("does not lead")));
    }
}
