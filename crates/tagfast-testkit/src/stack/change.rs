//! Whether a fault inside a server begins or ends.

/// Whether a fault begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Begin,
    End,
}
