//! Every durable struct, and nothing else.
