//! Workloads, the recorder that measures them, the peers they are compared with, and the reports.
//!
//! A figure means something only beside another one of the same run: every suite measures a peer or a limit together
//! with Vellum and prints ratios. Nothing here is a test; nothing asserts a time.

pub mod compaction;
pub mod data;
pub mod executors;
pub mod files;
pub mod fill;
pub mod gateways;
pub mod items;
mod link;
pub mod locks;
pub mod node;
pub mod nvme;
pub mod page;
pub mod peers;
pub mod perf;
pub mod recorder;
pub mod report;
pub mod runtime;
pub mod small;
pub mod tree;

pub use recorder::Recorder;
pub use report::{By, Report, Row};
