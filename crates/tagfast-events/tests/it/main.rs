//! The envelope against its golden file and schema; the runtime against scripted sinks and a bus in
//! memory.

mod envelope;
mod faults;
mod random;
mod runtime;
mod support;
