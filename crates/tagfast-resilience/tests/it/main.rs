//! The mechanisms together: an overload, simulated in virtual time.

mod deadline;
mod overload;
mod priority;
mod retry;
mod retry_budget;
mod simulation;
