//! How a native reactor behaves.

use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PollMode {
    /// Spins while there is work and nobody else wants the core, then sleeps in the kernel.
    #[default]
    Adaptive,
    /// Never sleeps: for cores that belong to the reactor.
    Always,
}

/// What drives a reactor. Everything above is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Executor {
    /// The reactor itself, on an io_uring of its own.
    #[default]
    Native,
    /// One task of a glommio executor. `RLIMIT_MEMLOCK` must be 512 KiB or more; each has a second thread, which sleeps.
    #[cfg(feature = "glommio")]
    Glommio,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub executor: Executor,
    pub poll: PollMode,
    /// A task poll longer than this is recorded as a stall.
    pub stall: Duration,
    /// How long a task may compute before [`crate::slice_used_up`] asks it to yield.
    pub slice: Duration,
    /// How long an adaptive reactor spins after its last work before it sleeps, at most; less while its waits are longer.
    pub spin: Duration,
    /// Keeps the machine's idle cores from halting while the reactor is busy, where `/dev/cpu_dma_latency` may be written: for
    /// a reactor that others on this machine wait for, a few microseconds at a time. Only a native reactor heeds it.
    pub cores_awake: bool,
    /// Submission queue entries of the ring; completions have eight times as many.
    pub ring_entries: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            executor: Executor::Native,
            poll: PollMode::Adaptive,
            stall: Duration::from_millis(20),
            slice: Duration::from_micros(250),
            spin: Duration::from_micros(50),
            cores_awake: false,
            ring_entries: 256,
        }
    }
}
