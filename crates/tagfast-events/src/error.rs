//! The boxed source of errors whose cause is an adapter's own type.

/// An error of any type, kept as the `source` of a port's error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
