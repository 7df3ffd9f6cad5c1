//! Workloads, recorder, reports, peers.
