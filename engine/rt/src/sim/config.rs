//! What may go wrong by chance, and how long things take.

use std::ops::Range;
use std::time::Duration;

/// Chances are written as "one in N"; 0 is never.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// One way between nodes.
    pub latency: Range<Duration>,
    /// One way within a node.
    pub local_latency: Range<Duration>,
    /// Messages that take `spike` longer.
    pub spike_one_in: u64,
    pub spike: Duration,
    /// Sends between nodes in whose middle the connection breaks.
    pub reset_one_in: u64,
    pub datagram_loss_one_in: u64,
    pub datagram_duplicate_one_in: u64,
    /// Bytes of a stream that are sent and not received yet, at most.
    pub stream_window: usize,
    /// Between two attempts to get through a partition.
    pub retransmit: Duration,
    /// A connection whose bytes do not get through for so long breaks.
    pub stream_timeout: Duration,
    pub connect_timeout: Duration,
    /// Virtual time that one poll of a task takes.
    pub poll_cost: Range<Duration>,
    /// Delay of messages between the reactors of a node.
    pub channel_delay: Range<Duration>,
    /// Each node's clock runs faster or slower by up to so many millionths.
    pub clock_drift_ppm: u32,
    /// A task poll that takes longer is recorded as a stall (in virtual time: see `World::spend`).
    pub stall: Duration,
}

impl Default for SimConfig {
    /// A healthy network of one machine room.
    fn default() -> SimConfig {
        SimConfig {
            latency: Duration::from_micros(30)..Duration::from_micros(300),
            local_latency: Duration::from_micros(2)..Duration::from_micros(20),
            spike_one_in: 1000,
            spike: Duration::from_millis(10),
            reset_one_in: 0,
            datagram_loss_one_in: 0,
            datagram_duplicate_one_in: 0,
            stream_window: 256 << 10,
            retransmit: Duration::from_millis(200),
            stream_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            poll_cost: Duration::from_nanos(100)..Duration::from_micros(2),
            channel_delay: Duration::from_nanos(100)..Duration::from_micros(5),
            clock_drift_ppm: 50,
            stall: Duration::from_millis(20),
        }
    }
}

impl SimConfig {
    /// Faults of every kind, often.
    pub fn hostile() -> SimConfig {
        SimConfig {
            latency: Duration::from_micros(30)..Duration::from_millis(5),
            spike_one_in: 50,
            spike: Duration::from_millis(100),
            reset_one_in: 500,
            datagram_loss_one_in: 10,
            datagram_duplicate_one_in: 20,
            channel_delay: Duration::from_nanos(100)..Duration::from_micros(50),
            clock_drift_ppm: 500,
            ..SimConfig::default()
        }
    }
}
