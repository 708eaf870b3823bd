//! What calls of a cluster experience: how many fail lately, and why.
//!
//! | file | it holds |
//! |---|---|
//! | `cause.rs` | the causes, each with a sentence and a remedy |
//! | `calls.rs` | the outcomes of a cluster's calls, and the task that tells when a cause begins and ends |

pub(crate) mod calls;
pub(crate) mod cause;
