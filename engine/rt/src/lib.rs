//! The runtime seam: native polled reactor and deterministic simulation.
