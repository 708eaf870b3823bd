//! Errors as the client sees them: RFC 9457 problem documents with one list of stable codes.
//!
//! | file | content |
//! |---|---|
//! | `codes.rs` | the table of codes |
//! | `document.rs` | a problem and its answer |
//! | `conversions.rs` | which error of a port becomes which problem |

mod codes;
mod conversions;
mod document;

pub use codes::{Code, PROBLEM_CODES, ProblemCode};
pub use document::Problem;
pub(crate) use document::{ProblemBody, bad_header, not_in_this_mode, retry_after_header};
