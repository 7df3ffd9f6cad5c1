//! Deliberate bugs, to prove that the simulation's checkers bite: one at a time is switched on by a test, and each must be
//! found by some seed (`cargo xtask sim --mutants`; what was found is in docs/TESTING.md).
//!
//! A site is one line: `if mutant::active(Mutant::SkipFlush) { .. }`. It is compiled in only with debug assertions: in a
//! release build [`active`] is a constant `false`. The switch belongs to the thread: a simulation is one thread.

macro_rules! mutants {
    ($($(#[doc = $what:literal])+ $name:ident,)*) => {
        /// A deliberate bug; its documentation says what it does.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Mutant { $($(#[doc = $what])+ $name,)* }

        impl Mutant {
            pub const ALL: &[Mutant] = &[$(Mutant::$name,)*];

            pub fn name(self) -> &'static str {
                match self { $(Mutant::$name => stringify!($name),)* }
            }

            /// The bug in words.
            pub fn what(self) -> &'static str {
                match self { $(Mutant::$name => concat!($($what),+).trim_ascii(),)* }
            }
        }
    };
}

mutants! {
    // ---- store
    /// An epoch is called durable without a flush.
    SkipFlush,
    /// A seal neither waits for the flush of new file data nor lists it.
    SkipDataFlush,
    /// A batch is called durable as soon as it is applied.
    AcknowledgeBeforeDurable,
    /// Freed blocks are reusable before the epoch that freed them is durable.
    FreeBeforeDurable,
    /// A batch that is sent again is applied again.
    DropResendDedup,
    /// The epoch does not remember the client's last batch.
    ForgetLastBatch,
    /// Recovery takes a log part that does not verify for an empty one.
    BelieveBadPart,
    /// Logs are trimmed although only memtables hold what is in them.
    TrimUnflushed,
    /// The manifest names a segment that may still be in the device's cache.
    NameUnflushedSegment,
    /// A memtable is frozen in the middle of an epoch.
    FreezeOpenEpoch,
    /// Two compactions may have one input.
    CompactBusyInputs,
    /// A compaction of level 0 leaves out the oldest runs.
    CompactSomeRuns,
    /// Epochs go on after a recovery where the log ended.
    NoEpochGap,
    /// Inode groups are given out before that is durable.
    GroupsBeforeDurable,
    /// The client's record is not durable when its greeting is answered.
    RecordBeforeDurable,
    /// File data are moved while clients have their old place in a cache.
    MoveUnheld,
    /// A block that gets another owner is not counted: the first one's end frees it.
    ForgetOwner,
    /// What was read ahead on the device is believed after its blocks were written.
    BelieveOldNeighbours,
    /// A shard goes to another reactor without what is only in memory of it.
    MoveUnflushed,
    // ---- locks and sessions of the engine
    /// Locks are granted while clients of the term before have not said theirs.
    GrantDuringRecovery,
    /// A waiter gets its lock while others hold it.
    GrantWithoutInvalidation,
    /// A lock is granted to a client that has an invalidation of it to answer.
    GrantOverInvalidation,
    /// Write sequences begin anew in each term.
    SequenceFromZero,
    /// A holder that goes down to READ wakes nobody who waits for that.
    LostWakeup,
    /// A file lock is granted although another one is in its way.
    GrantFileLockInConflict,
    /// A client's locks go before its last batches are durable.
    ReleaseBeforeSettled,
    /// A reclaimed client's locks go before its record is durably gone.
    ReleaseBeforeTombstone,
    /// A client that was reclaimed may come back.
    AdmitFenced,
    /// The clients of the term before are not waited for.
    ForgetKnownClients,
    /// A client is reclaimed as soon as its socket breaks.
    ReclaimAtDisconnect,
    /// Any key may be written without its lock.
    WriteWithoutLock,
    /// A shard goes to another reactor, and its locks do not.
    MoveWithoutLocks,
    /// A new socket begins with what the greeting confirmed, and the peer takes it again.
    TakeFramesTwice,
    /// A new term does not forget what was received in the old one.
    KeepReceivedOverTerms,
    // ---- client
    /// Lock recovery reports the mode that an invalidation is going to.
    ReportNewMode,
    /// An invalidation is answered before what it covers is durable.
    AnswerBeforeDurable,
    /// What is cached stays after its lock is gone.
    KeepCache,
    /// The lease is counted from the answer of a keepalive.
    LeaseFromAnswer,
    /// What locks cover is used after the lease.
    IgnoreLease,
    /// File data is believed whatever its checksum says.
    BelieveBadData,
    /// Of evicted items it is forgotten that they were there.
    ForgetEvicted,
    /// Changes are evicted from the cache before they are durable.
    EvictUndurable,
    /// A batch is sent as two.
    SplitBatch,
    /// Data is not sent again to a new leader.
    ForgetData,
    /// A new leader is not told of file locks.
    ForgetFileLocks,
    // ---- quorum
    /// A vote leaves before it is durable.
    VoteBeforeDurable,
    /// A member that starts again forgets the terms that it has seen.
    ForgetTerm,
    /// A candidate stands without asking whether anybody would vote for it.
    SkipPreVote,
    /// The blocks are read before our own ELECT is durable.
    ReadBeforeElect,
    /// A new leader serves without having those before it fenced.
    LeadUnfenced,
    /// A fence that failed counts as done.
    BelieveFailedFence,
    /// A block that cannot be read counts as one of nobody.
    UnreadableIsNobody,
    /// STOP is written before the engine has stopped.
    StopTooEarly,
    /// A leader does not care for newer terms, nor for answers.
    DeafLeader,
    /// A heartbeat round counts as answered at once.
    ConfirmUnanswered,
    /// While fencing goes on no heartbeat is sent.
    SilentWhileFencing,
    /// A timeout is believed however late it is noticed.
    BelieveLateTimeout,
    /// A leader whose device stalls keeps leading.
    KeepSlowLeader,
    /// A member writes its block although another process does.
    ShareSlot,
    /// Members are let go though no majority remains and clients are mounted.
    LetAllGo,
}

#[cfg(debug_assertions)]
mod switch {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether this bug is switched on.
    pub fn active(mutant: Mutant) -> bool {
        ACTIVE.with(|active| active.get() == Some(mutant))
    }

    /// Switches a bug of this thread on (and every other one off); gives the one that was.
    pub fn replace(mutant: Option<Mutant>) -> Option<Mutant> {
        ACTIVE.with(|active| active.replace(mutant))
    }
}

#[cfg(not(debug_assertions))]
mod switch {
    use super::Mutant;

    /// A release build has no deliberate bugs.
    pub const fn active(_: Mutant) -> bool {
        false
    }

    /// Does nothing in a release build.
    pub fn replace(_: Option<Mutant>) -> Option<Mutant> {
        None
    }
}

pub use switch::{active, replace};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(debug_assertions)]
    fn one_bug_at_a_time_and_only_in_its_thread() {
        replace(Some(Mutant::SkipFlush));
        assert!(active(Mutant::SkipFlush) && !active(Mutant::KeepCache));
        std::thread::spawn(|| assert!(!active(Mutant::SkipFlush))).join().unwrap();
        assert_eq!(replace(None), Some(Mutant::SkipFlush));
        assert!(!active(Mutant::SkipFlush));
        assert_eq!(Mutant::SkipFlush.what(), "An epoch is called durable without a flush.");
    }
}
