//! Reads everything of a store that is served, at a bounded rate, and holds it against its checksums: what was written long
//! ago is else verified only when somebody wants it.
//!
//! ```text
//!  coordinator: superblock, manifest, live log   (all three are in memory too: repaired from there)
//!  each reactor, shard by shard: segments, every copy   (repaired from the other copy, or from the cache)
//!                                file data by its extents' checksums   (one copy: named, with the file)
//! ```
//! The coordinator asks for one step after the other and sleeps between them, so there is one place that knows the rate,
//! the progress and the findings, and a step is the most that is read at once.

mod central;
mod node;
mod schedule;
mod step;

pub(crate) use node::ScrubCommand;
pub(crate) use step::{Cursor, Step};
pub use vellum_format::system::LastScrub;

/// Findings that are kept; more are counted.
pub const MAX_FINDINGS: usize = 1000;
/// Bytes per second that a scrub reads when nobody says otherwise.
pub const DEFAULT_SCRUB_RATE: u64 = 64 << 20;

/// Something that does not verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub place: String,
    pub detail: String,
    /// Files or keys; empty when a good copy is left.
    pub affects: String,
    pub repaired: bool,
    /// What an operator is to do.
    pub advice: &'static str,
}

/// How far the scrub of a node is, or how the last one ended.
#[derive(Clone, Debug, Default)]
pub struct ScrubStatus {
    pub running: bool,
    pub phase: &'static str,
    pub rate_bytes_per_s: u64,
    pub read_bytes: u64,
    /// What there was to read when it began.
    pub expected_bytes: u64,
    pub problems: u64,
    pub repaired: u64,
    /// The first [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// Scrubs that went through to their end since the start of the node.
    pub completed: u64,
    /// Why the last one did not.
    pub ended_early: Option<String>,
    /// The last one that did, also of an earlier run of the engine.
    pub last: Option<LastScrub>,
    /// When one begins by itself, in seconds since 1970.
    pub next_at_s: Option<u64>,
}

impl ScrubStatus {
    pub(crate) fn without_findings(&self) -> ScrubStatus {
        ScrubStatus { findings: Vec::new(), ended_early: self.ended_early.clone(), ..*self }
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        self.problems += 1;
        self.repaired += u64::from(finding.repaired);
        let Finding { place, detail, affects, repaired, .. } = &finding;
        tracing::error!(%place, %detail, %affects, repaired, "the scrub found damage");
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }
}
