//! A seeded model of a misbehaving device.
