//! Frames and messages of the RPC.
