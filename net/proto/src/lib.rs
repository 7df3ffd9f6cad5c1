//! Sessions as state machines: no IO, no clock.
