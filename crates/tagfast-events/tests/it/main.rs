//! The envelope against its golden file and schema; the consumer runtime against scripted sinks and
//! an in-memory bus.

mod envelope;
mod faults;
mod random;
mod runtime;
mod support;
