//! What Vellum is compared with in the same run.

pub mod memfs;
