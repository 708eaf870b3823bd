//! The parts together: an overload, simulated in virtual time.

mod overload;
mod priority;
mod simulation;
