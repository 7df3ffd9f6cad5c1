//! The intervals of elections, heartbeats and fencing, and how they depend on each other and on those of connections.

use std::time::Duration;

use crate::timers;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuorumTimers {
    pub heartbeat: Duration,
    /// A candidate waits for votes for a random time between these two, and longer on a slow device: always more than
    /// ten times what a durable vote takes (Q9).
    pub election_min: Duration,
    pub election_max: Duration,
    /// A leader from which nothing came for so long is given up; so does a leader itself that hears no majority.
    pub heartbeat_timeout: Duration,
    /// After its election a leader waits so long for signs of life of those before it, until it has them fenced.
    pub answer_wait: Duration,
    /// One that is alive and knows the newer term has so long to write its STOP before it is fenced.
    pub stop_grace: Duration,
    /// A leader that resigns in order keeps others from standing for so long, until its last write is done.
    pub resign_grace: Duration,
    /// The blocks are read again this often while a STOP is waited for.
    pub reread: Duration,
    /// A fencer that has not answered by then has failed.
    pub fence_timeout: Duration,
    /// Failed fences, and failed writes of our own block, are tried again after pauses from here ...
    pub retry_min: Duration,
    /// ... to here.
    pub retry_max: Duration,
}

const HEARTBEAT: Duration = Duration::from_millis(100);
const ELECTION_MIN: Duration = Duration::from_millis(250);
const ELECTION_MAX: Duration = Duration::from_millis(350);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(2_000);
const HEARTBEAT_TIMEOUT_MIN: Duration = Duration::from_millis(500);
const HEARTBEAT_TIMEOUT_MAX: Duration = Duration::from_secs(60);
const ANSWER_WAIT: Duration = Duration::from_millis(50);
const STOP_GRACE: Duration = Duration::from_millis(1_000);

impl QuorumTimers {
    pub const DEFAULT: QuorumTimers = QuorumTimers {
        heartbeat: HEARTBEAT,
        election_min: ELECTION_MIN,
        election_max: ELECTION_MAX,
        heartbeat_timeout: HEARTBEAT_TIMEOUT,
        answer_wait: ANSWER_WAIT,
        stop_grace: STOP_GRACE,
        resign_grace: Duration::from_millis(5_000),
        reread: Duration::from_millis(20),
        fence_timeout: Duration::from_secs(60),
        retry_min: Duration::from_millis(100),
        retry_max: Duration::from_millis(5_000),
    };

    /// The default ones with another heartbeat timeout, within its bounds.
    pub fn with_heartbeat_timeout(timeout: Duration) -> QuorumTimers {
        let heartbeat_timeout = timeout.clamp(HEARTBEAT_TIMEOUT_MIN, HEARTBEAT_TIMEOUT_MAX);
        QuorumTimers { heartbeat_timeout, ..QuorumTimers::DEFAULT }
    }

    /// A follower that has heard its leader within this denies pre-votes (Q10). Shorter than the timeout, so that those
    /// who lose one leader at one moment agree to elect another.
    pub(super) fn loyalty(&self) -> Duration {
        self.heartbeat_timeout.saturating_sub(self.election_min)
    }

    /// Each member writes its block this often while it has nothing to record, so that a stalled device is told from an
    /// idle one.
    pub(super) fn probe(&self) -> Duration {
        self.heartbeat_timeout / 2
    }
}

impl Default for QuorumTimers {
    fn default() -> QuorumTimers {
        QuorumTimers::DEFAULT
    }
}

const fn ms(d: Duration) -> u128 {
    d.as_millis()
}

// A candidate hears of an elected leader before it stands again, also when one heartbeat is lost.
const _: () = assert!(2 * ms(HEARTBEAT) < ms(ELECTION_MIN) && ms(ELECTION_MIN) < ms(ELECTION_MAX));
// Two lost heartbeats in a row end nobody's loyalty, with the shortest timeout too.
const _: () = assert!(2 * ms(HEARTBEAT) < ms(HEARTBEAT_TIMEOUT_MIN) - ms(ELECTION_MIN));
const _: () =
    assert!(ms(HEARTBEAT_TIMEOUT_MIN) <= ms(HEARTBEAT_TIMEOUT) && ms(HEARTBEAT_TIMEOUT) <= ms(HEARTBEAT_TIMEOUT_MAX));
// What the sessions' recovery window allows for an election is enough for the timeout and a few elections (N8).
const _: () = assert!(ms(HEARTBEAT_TIMEOUT) + 4 * ms(ELECTION_MAX) <= ms(timers::ELECTION));
// A live predecessor's STOP is waited for within the failover goal: detection, an election or two, and the grace stay
// under 5 s, with a second left for replay.
const _: () = assert!(ms(HEARTBEAT_TIMEOUT) + 2 * ms(ELECTION_MAX) + ms(ANSWER_WAIT) + ms(STOP_GRACE) < 4_000);
