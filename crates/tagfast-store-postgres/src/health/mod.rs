//! What calls of a cluster experience: how many fail lately, and why.
//!
//! | file | it holds |
//! |---|---|
//! | `cause.rs` | the causes, each with a sentence and a remedy |
//! | `calls.rs` | the outcomes of a cluster's calls, and the task that tells when a cause begins and ends |
//! | `read_canary.rs` | a read of each cluster now and then, also without calls |

pub(crate) mod calls;
pub(crate) mod cause;
pub(crate) mod read_canary;
