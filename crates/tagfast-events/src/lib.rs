//! The event envelope, the bus port, and the consumer runtime.
