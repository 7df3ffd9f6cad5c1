//! The node's figures for a monitoring system: its status as Prometheus text, over a small HTTP answerer of our own.

mod http;
mod latency;
mod text;

pub(crate) use http::{Source, serve};
pub(crate) use latency::Latencies;
pub(crate) use text::render;
