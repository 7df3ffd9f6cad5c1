//! Deliberate bugs, each found by a random run: the checkers bite.
