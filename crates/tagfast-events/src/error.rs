//! The boxed source of errors whose cause is an adapter's own type.

pub use tagfast_resilience::BoxError;
