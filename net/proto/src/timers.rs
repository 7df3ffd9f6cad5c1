//! Every interval of a connection, and how they depend on each other (N8).

use std::time::Duration;

/// What a session waits for, and how long. The defaults stand in the constants below; tests shorten them together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timers {
    /// A client asks "alive?" this often, whatever else is in flight (scenario 20).
    pub keepalive: Duration,
    /// A socket from which nothing came for so long is dead.
    pub dead_peer: Duration,
    /// What locks cover may be used so long after the sending of the last answered keepalive.
    pub lease: Duration,
    /// A client whose socket broke is waited for so long, then fenced and reclaimed.
    pub reconnect_window: Duration,
    /// A new leader waits so long for the clients of its predecessor.
    pub recovery_window: Duration,
    /// A socket without a greeting is closed after this (N4).
    pub greeting: Duration,
    /// The answer to a greeting may need an epoch; a client waits so long for it.
    pub greeted: Duration,
    /// One send of ours (a frame or many small ones) is taken by the peer within this, or its socket is closed.
    pub send_stall: Duration,
    pub connect_attempt: Duration,
    pub retry_min: Duration,
    pub retry_max: Duration,
}

const KEEPALIVE: Duration = Duration::from_millis(700);
const DEAD_PEER: Duration = Duration::from_millis(2_500);
const LEASE: Duration = Duration::from_millis(6_000);
const RECONNECT_WINDOW: Duration = Duration::from_millis(6_500);
const RECOVERY_WINDOW: Duration = Duration::from_millis(8_000);
/// Clocks of two machines may differ by so much over one lease.
pub const LEASE_DRIFT: Duration = Duration::from_millis(500);
/// Time in which a new leader is elected (spec/numbers: heartbeat timeout and a few elections).
pub(crate) const ELECTION: Duration = Duration::from_millis(3_500);

impl Timers {
    pub const DEFAULT: Timers = Timers {
        keepalive: KEEPALIVE,
        dead_peer: DEAD_PEER,
        lease: LEASE,
        reconnect_window: RECONNECT_WINDOW,
        recovery_window: RECOVERY_WINDOW,
        greeting: Duration::from_millis(2_000),
        greeted: Duration::from_millis(5_000),
        send_stall: Duration::from_millis(10_000),
        connect_attempt: Duration::from_millis(1_000),
        retry_min: Duration::from_millis(50),
        retry_max: Duration::from_millis(500),
    };

    /// All intervals divided by `n`: their relations stay.
    pub fn faster(mut self, n: u32) -> Timers {
        for d in [
            &mut self.keepalive,
            &mut self.dead_peer,
            &mut self.lease,
            &mut self.reconnect_window,
            &mut self.recovery_window,
            &mut self.greeting,
            &mut self.greeted,
            &mut self.send_stall,
            &mut self.connect_attempt,
            &mut self.retry_min,
            &mut self.retry_max,
        ] {
            *d /= n;
        }
        self
    }
}

impl Default for Timers {
    fn default() -> Timers {
        Timers::DEFAULT
    }
}

const fn ms(d: Duration) -> u128 {
    d.as_millis()
}

// A lost keepalive or two don't kill a healthy socket.
const _: () = assert!(3 * ms(KEEPALIVE) < ms(DEAD_PEER));
// A client that notices a dead socket as late as it may still comes back within the window: detection, the longest pause
// between two attempts, one attempt that times out, and one that works (scenario 19).
const _: () = assert!(
    ms(DEAD_PEER) + ms(Timers::DEFAULT.retry_max) + 2 * ms(Timers::DEFAULT.connect_attempt) < ms(RECONNECT_WINDOW)
);
const _: () = assert!(ms(KEEPALIVE) < ms(RECONNECT_WINDOW) && ms(RECONNECT_WINDOW) < ms(RECOVERY_WINDOW));
// The last keepalive that was answered had arrived before the socket was declared broken, so when the window ends the
// lease has ended too, on any clock: reclaim needs no other fence against a client without device access.
const _: () = assert!(ms(LEASE) + ms(LEASE_DRIFT) <= ms(RECONNECT_WINDOW));
// The same for clients of a dead leader, whose leases were renewed until its death.
const _: () = assert!(ms(LEASE) + ms(LEASE_DRIFT) <= ms(RECOVERY_WINDOW));
// A live client's detection, the election and its reconnect fit the recovery window.
const _: () = assert!(
    ms(DEAD_PEER) + ms(ELECTION) + ms(Timers::DEFAULT.retry_max) + ms(Timers::DEFAULT.connect_attempt)
        < ms(RECOVERY_WINDOW)
);
// A lease outlives a quick reconnect, so that a broken socket alone stalls nobody.
const _: () = assert!(ms(LEASE) > ms(DEAD_PEER) + ms(Timers::DEFAULT.retry_max) + ms(Timers::DEFAULT.connect_attempt));
