//! The reactor on glommio's executor, for comparison: the same tasks, timers and pollers, driven by one glommio task.
//!
//! - [`executor`]: makes the executor, and says clearly what it lacks;
//! - [`run`]: the one task, and when it parks;
//! - [`bell`]: wakes that task, from any thread;
//! - [`wait`]: how a descriptor is waited for (unsafe code); [`driver`], [`socket`]: IO.
//!
//! glommio has no way to lend memory of ours to the kernel, nor to poll a descriptor of any kind. So nothing of ours is
//! ever in the kernel's hands here: an operation is tried, and when it would block, glommio's ring is asked when to try again.
//! Dropping a future therefore loses nothing at all.

mod bell;
mod driver;
mod executor;
mod run;
mod socket;
mod wait;

pub(crate) use driver::Driver;
pub(crate) use run::run;
pub(crate) use socket::Socket;
pub(crate) use wait::Wait;
