//! Dead letters of embedded mode.
//!
//! | file | what it does |
//! |---|---|
//! | `store` | the dead-letter store over all files |
//! | `rows` | rows of dead letters and replay jobs |
//! | `sql` | filters and transitions as SQL |

mod rows;
mod sql;
mod store;

pub(crate) use rows::insert;
pub use store::EmbeddedDeadLetters;
