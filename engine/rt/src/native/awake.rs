//! Keeps idle cores from halting while a reactor is busy.
//!
//! Whoever waits for a busy reactor waits briefly, and its core goes idle meanwhile. A halted core takes long to wake: some
//! microseconds on hardware (more from a deep idle state), 12 to 25 on a virtual machine, and as long again for the waking side,
//! which leaves its guest to send the interrupt. So a reactor that works without long pauses asks the kernel for its least wake-up
//! latency (PM QoS, Documentation/power/pm_qos_interface.rst): idle cores then poll for work, and a wake-up is a store to
//! memory. The request goes with its descriptor, also when the process is killed.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use crate::time::Instant;

const DEVICE: &str = "/dev/cpu_dma_latency";
/// The request's values, in microseconds: none at all, and whatever others want (`PM_QOS_DEFAULT_VALUE`).
const LEAST: i32 = 0;
const ANY: i32 = -1;

/// How often it is decided.
const WINDOW: Duration = Duration::from_millis(1);
/// Turns with work in a window that make a reactor busy: one in 200 us, as long as KVM guests poll before they halt.
const BUSY: u32 = 5;

pub(super) struct Awake {
    /// `None`: not wanted, or not allowed.
    request: Option<File>,
    decision: Decision,
}

impl Awake {
    pub fn new(wanted: bool) -> Awake {
        let open = || File::options().write(true).open(DEVICE);
        let refused = |error: &_| tracing::debug!(%error, "idle cores may halt: {DEVICE} cannot be opened");
        Awake {
            request: wanted.then(open).and_then(|opened| opened.inspect_err(refused).ok()),
            decision: Decision::default(),
        }
    }

    /// A turn found work.
    pub fn worked(&self, now: Instant) {
        if self.request.is_some() {
            self.decision.count();
            self.look(now);
        }
    }

    /// How long a sleep may last until the next [`Awake::look`]: a sleeping reactor must not hold the cores.
    pub fn sleep_at_most(&self) -> Option<Duration> {
        self.decision.busy.get().then_some(WINDOW)
    }

    pub fn look(&self, now: Instant) {
        if let (Some(mut request), Some(busy)) = (self.request.as_ref(), self.decision.changes(now)) {
            let value = if busy { LEAST } else { ANY };
            if let Err(error) = request.write_all(&value.to_ne_bytes()) {
                tracing::debug!(%error, "{DEVICE} refuses a request");
            }
        }
    }
}

/// Whether the reactor is busy, from the turns with work in the current window.
#[derive(Default)]
struct Decision {
    busy: Cell<bool>,
    began: Cell<Instant>,
    turns: Cell<u32>,
}

impl Decision {
    fn count(&self) {
        self.turns.set(self.turns.get().saturating_add(1));
    }

    /// The new state, where the end of a window changes it.
    fn changes(&self, now: Instant) -> Option<bool> {
        let took = now - self.began.get();
        if took < WINDOW {
            return None;
        }
        self.began.set(now);
        // A window becomes longer while nothing is to be done.
        let busy = WINDOW * self.turns.take() >= took * BUSY;
        (self.busy.replace(busy) != busy).then_some(busy)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn at(us: u64) -> Instant {
        Instant(us * 1000)
    }

    /// Works every `pause` microseconds from `from` to `to`.
    fn work(awake: &Awake, from: u64, to: u64, pause: usize) {
        (from..to).step_by(pause).for_each(|us| awake.worked(at(us)));
    }

    /// What was asked of a device that keeps it all, since the last call.
    fn asked(device: &mut File) -> Vec<i32> {
        let mut bytes = Vec::new();
        device.rewind().unwrap();
        device.read_to_end(&mut bytes).unwrap();
        device.set_len(0).unwrap();
        device.rewind().unwrap();
        bytes.chunks(4).map(|value| i32::from_ne_bytes(value.try_into().unwrap())).collect()
    }

    fn with_device() -> (Awake, File) {
        let device = tempfile::tempfile().unwrap();
        (Awake { request: Some(device.try_clone().unwrap()), decision: Decision::default() }, device)
    }

    #[test]
    fn cores_are_kept_awake_from_the_first_busy_window_to_the_first_that_is_not() {
        let (awake, mut device) = with_device();
        work(&awake, 10_000, 11_000, 20);
        assert_eq!((asked(&mut device), awake.sleep_at_most()), (vec![], None));
        work(&awake, 11_000, 20_000, 20);
        assert_eq!((asked(&mut device), awake.sleep_at_most()), (vec![LEAST], Some(WINDOW)));
        awake.look(at(20_000));
        awake.look(at(20_999));
        assert_eq!(asked(&mut device), [], "the window without work is not over");
        awake.look(at(21_000));
        assert_eq!((asked(&mut device), awake.sleep_at_most()), (vec![ANY], None));
        awake.look(at(90_000));
        assert_eq!(asked(&mut device), []);
    }

    #[test]
    fn work_now_and_then_keeps_nothing_awake() {
        let (awake, mut device) = with_device();
        work(&awake, 10_000, 100_000, 300);
        work(&awake, 200_000, 200_100, 20);
        assert_eq!(asked(&mut device), []);
    }

    #[test]
    fn nothing_is_asked_where_it_is_not_wanted() {
        let awake = Awake::new(false);
        work(&awake, 10_000, 20_000, 20);
        assert!(awake.request.is_none() && awake.sleep_at_most().is_none());
    }
}
