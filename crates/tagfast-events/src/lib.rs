//! The event envelope, the bus port and the consumer runtime.
//!
//! A write's event leaves only through the outbox. Consumers read a bus, apply what is newer and keep their own
//! position beside what they applied, so that a crash at any point repeats work and loses none.

pub mod bus;
pub mod envelope;
pub mod sink;

pub use bus::{
    Bus, BusConsumer, BusError, BusPosition, BusRecord, DeadLetter, Frontier, Group, LetterClass, Partition, Positions,
};
pub use envelope::{EnvelopeError, decode, encode};
pub use sink::{RecordVerdict, Sink, SinkError, SinkRecord, Start};
