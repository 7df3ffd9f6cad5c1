//! The simulated cluster and its checkers.
