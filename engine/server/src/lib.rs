//! The node: sessions and locks wired to the store.
//!
//! ```text
//!  socket -> acceptor (greeting) -> home reactor of the rid: session -> dispatch -> store
//!                                         |  lock by lock, ascending
//!                                         v
//!                               owner reactor of the group's bucket: lock table -> grants, invalidations back to the home
//! ```
//! Each reactor runs one [`Reactor`]; they share nothing but the rings of [`mesh`]. The store is seen through
//! [`Backend`], so that sessions, locks and recovery are tested without one. [`Node`] starts it all on native reactors,
//! [`Plan`] in any world.
//!
//! [`cluster`] makes a node the member of a quorum, whose leader runs the [`Plan`].

mod admin;
mod admit;
mod authority;
mod backend;
mod client;
pub mod cluster;
mod commits;
mod confine;
mod crew;
pub mod dispatch;
mod engine_locks;
mod fact;
mod file_service;
mod first;
mod identity;
mod lock_service;
mod mesh;
mod metrics;
mod mounted;
mod moving;
mod node;
mod options;
mod pages;
mod plan;
mod process;
mod reactor;
mod reclaim;
mod recovery;
mod status;
mod store_backend;
mod store_json;
mod table_queue;
pub mod worker;

pub use authority::TableAuthority;
pub use backend::{Backend, BackendFuture, BatchJudge, Scanned, Walked};
pub use crew::WorkerProbe;
pub use fact::Fact;
pub use mesh::{MeshEnds, mesh};
pub use mounted::Mounted;
pub use node::Node;
pub use options::{Limits, NodeOptions};
pub use plan::{NodeError, Plan, Progress, StopHandle, Up};
pub use reactor::{Reactor, ReactorParts};
pub use store_backend::StoreBackend;
